package client

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// member is what the masters say about a worker.
type member struct {
	id     block.WorkerID
	data   string // TCP address of its data plane
	unix   string // path of its socket, on the host of boot
	bootID string
	state  string // "live", "suspect", "lost", "draining"
	here   bool   // it is on this host, and its socket can be seen
	// replica says that it is to keep a replica of what it is asked for.
	replica bool
}

// believed reports whether the masters expect the worker to answer.
func (w *member) believed() bool { return w.state != "lost" && w.state != "suspect" }

// rank orders workers by how likely they are to answer; 0 is best.
func (w *member) rank(doubtful func(block.WorkerID) bool) int {
	r := 0
	if !w.believed() {
		r++
	}
	if doubtful(w.id) {
		r += 2
	}
	return r
}

// membership is one version of who is there. It is immutable.
type membership struct {
	clusterID string
	placement block.Placement
	members   map[block.WorkerID]member
	hot       map[block.Key]int // how many serve a hot block; by its unit of placement
	hotUntil  time.Time         // then none is
}

func membershipOf(m *api.Membership) *membership {
	out := &membership{clusterID: m.GetClusterId(), members: make(map[block.WorkerID]member, len(m.GetWorkers()))}
	p := m.GetPlacement()
	out.placement.Epoch, out.placement.WholeFileLimit = p.GetEpoch(), p.GetWholeFileLimit()
	for _, w := range p.GetWorkers() {
		out.placement.Workers = append(out.placement.Workers, block.PlacedWorker{ID: block.WorkerID(w.GetId()), Weight: w.GetWeight()})
	}
	out.hot, out.hotUntil = hotOf(m.GetHot()), time.Now().Add(time.Duration(m.GetHotValidMs())*time.Millisecond)
	for _, w := range m.GetWorkers() {
		a := w.GetAddresses()
		id := block.WorkerID(w.GetId())
		out.members[id] = member{id: id, data: a.GetData(), unix: a.GetUnixSocket(), bootID: a.GetBootId(), state: w.GetState()}
	}
	return out
}

// find notes who is on this host: once, since every open file wants to know.
func (m *membership) find(local func(*member) bool) {
	for id, w := range m.members {
		if w.here = local(&w); w.here {
			m.members[id] = w
		}
	}
}

// owners returns who to ask for a block, best first: the owners in the order
// of placement, those that are believed to answer before the others. With keep,
// and if the first owner is not on this host, the best of the workers that are
// comes before all others, to keep a replica.
func (m *membership) owners(k block.Key, length int64, n int, doubtful func(block.WorkerID) bool, keep bool) []member {
	most := n
	if keep {
		most = max(n, len(m.placement.Workers))
	}
	ids := m.placement.Owners(k, length, most)
	list := make([]member, 0, n+1)
	for _, id := range ids[:min(n, len(ids))] {
		if w, ok := m.members[id]; ok {
			list = append(list, w)
		}
	}
	slices.SortStableFunc(list, func(a, b member) int { return a.rank(doubtful) - b.rank(doubtful) })
	if !keep {
		return list
	}
	for i, id := range ids {
		w, ok := m.members[id]
		switch {
		case !ok || !w.here:
		case i == 0:
			return list
		case w.rank(doubtful) == 0:
			list = slices.DeleteFunc(list, func(o member) bool { return o.id == id })
			w.replica = true
			return slices.Insert(list, 0, w)
		}
	}
	return list
}

// members follows the membership through a stream from a master.
type members struct {
	masters *masters
	local   func(*member) bool
	log     *slog.Logger
	changed func(*membership) // told each version, one at a time

	kick chan struct{} // asks a follower that waits to try at once

	mu   sync.Mutex
	cur  *membership
	news chan struct{} // closed at the next version
}

func newMembers(m *masters, local func(*member) bool, log *slog.Logger, changed func(*membership)) *members {
	return &members{masters: m, local: local, log: log, changed: changed, kick: make(chan struct{}, 1), news: make(chan struct{})}
}

// now returns the version that is known, nil before the first, and a channel
// that is closed when there is a newer one.
func (m *members) now() (*membership, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cur, m.news
}

// wait returns the membership, and waits for the first one until ctx ends.
func (m *members) wait(ctx context.Context) (*membership, <-chan struct{}, error) {
	for {
		cur, news := m.now()
		if cur != nil {
			return cur, news, nil
		}
		select {
		case m.kick <- struct{}{}:
		default:
		}
		select {
		case <-news:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, nil, errs.E(errs.Canceled, "", "", ctx.Err())
			}
			return nil, nil, errs.E(errs.Unavailable, "", "", errors.New("no master told which workers there are"))
		}
	}
}

// run follows until ctx ends.
func (m *members) run(ctx context.Context) {
	var p pause
	for ctx.Err() == nil {
		addr, cc, err := m.masters.pick()
		if err != nil {
			return
		}
		told, err := m.follow(ctx, cc)
		if told {
			p.reset()
		}
		if ctx.Err() != nil {
			return
		}
		m.log.LogAttrs(ctx, slog.LevelDebug, "membership stream ended", slog.String("master", addr), slog.Any("error", err))
		if nl, ok := errors.AsType[*rpcerr.NotLeader](err); ok {
			m.masters.moved(addr, nl.Leader)
		} else {
			m.masters.failed(addr)
		}
		p.wait(ctx, m.kick)
	}
}

// follow reads one stream to its end, which is also that of a master that has
// fallen silent: it may have been cut off with workers that it believes in. told
// says whether it brought anything.
func (m *members) follow(ctx context.Context, cc *grpc.ClientConn) (told bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	defer g.Wait()
	defer cancel()
	g.Go(func() {
		m.masters.untilSilent(ctx, cc)
		cancel()
	})
	stream, err := api.NewClusterServiceClient(cc).Watch(ctx, &api.WatchRequest{})
	if err != nil {
		return false, err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return told, err
		}
		told = true
		v := membershipOf(msg)
		v.find(m.local)
		m.take(v)
	}
}

// take accepts a version, unless a master that lags behind told an older one.
func (m *members) take(v *membership) {
	m.mu.Lock()
	if m.cur != nil && m.cur.clusterID == v.clusterID && v.placement.Epoch < m.cur.placement.Epoch {
		m.mu.Unlock()
		return
	}
	m.cur = v
	close(m.news)
	m.news = make(chan struct{})
	m.mu.Unlock()
	m.changed(v)
}
