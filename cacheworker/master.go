package cacheworker

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/wait"
	"millrace/tier"
)

// registry is what the worker needs of a master.
type registry interface {
	Register(ctx context.Context, in *api.RegisterRequest, opts ...grpc.CallOption) (*api.RegisterReply, error)
	Heartbeat(ctx context.Context, in *api.HeartbeatRequest, opts ...grpc.CallOption) (*api.HeartbeatReply, error)
	ReportBlocks(ctx context.Context, in *api.ReportBlocksRequest, opts ...grpc.CallOption) (*api.ReportBlocksReply, error)
}

// self is what a reporter tells of the worker, and whom it tells what masters
// say.
type self interface {
	registerRequest() *api.RegisterRequest
	heartbeatRequest() *api.HeartbeatRequest
	// who returns the worker's ID and start epoch.
	who() (id string, epoch uint64)
	// adopt takes what a master said; an error means that it is not ours.
	adopt(clusterID string, mounts *api.Mounts, p *api.Placement) error
	// registered tells that the cluster knows the worker.
	registered()
	blocks() iter.Seq[tier.BlockState]
}

// reporter keeps one master informed.
type reporter struct {
	addr     string
	master   registry
	self     self
	beat     time.Duration
	gather   time.Duration // how long changes are gathered
	timeout  time.Duration
	changes  *changes
	log      *slog.Logger
	kicks    chan chan<- error // asks for a heartbeat now
	sequence uint64            // of the last report; only the reports goroutine uses it

	// met is told who the master is and which others there are, and says whether
	// to go on; nil: nobody wants to know.
	met       func(r *reporter, id string, group []*api.MasterAddress) (goOn bool)
	inContact atomic.Bool   // the last heartbeat was answered
	retired   chan struct{} // closed when it is to end, without a word to the master
	retireOne sync.Once

	contact chan bool // what beats tells reports: whether the master listens
	heard   bool      // the same; only the reports goroutine uses it until it ends
}

// kickQueue bounds how many can wait for one heartbeat.
const kickQueue = 64

func newReporter(addr string, master registry, s self, cfg Config, log *slog.Logger) *reporter {
	return &reporter{
		addr: addr, master: master, self: s,
		beat: cfg.Heartbeat.Std(), gather: cfg.ReportInterval.Std(), timeout: cfg.MasterTimeout.Std(),
		changes: newChanges(cfg.ReportQueue), log: log.With("master", addr),
		kicks: make(chan chan<- error, kickQueue), contact: make(chan bool, 1),
		retired: make(chan struct{}),
	}
}

// run reports until ctx ends, and then tells the master that the worker
// leaves, so that nobody is sent to it any more.
func (r *reporter) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error {
		select {
		case <-r.retired:
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error { r.beats(ctx); return nil })
	g.Go(func() error { r.reports(ctx); return nil })
	_ = g.Wait() // neither fails
	select {
	case <-r.retired:
		return // another one reports to that master
	default:
	}
	if !r.heard {
		return
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), min(r.timeout, stopPatience))
	defer cancel()
	in := r.self.heartbeatRequest()
	in.Leaving = true
	if _, err := r.master.Heartbeat(ctx, in); err != nil {
		r.log.Debug("leaving a master", "err", err)
	}
}

// retire ends the reporter: another one reports to its master.
func (r *reporter) retire() { r.retireOne.Do(func() { close(r.retired) }) }

// last sends the changes that are left once run has returned, if the master
// listened. What it is not told now a full report at the next start tells it.
func (r *reporter) last(ctx context.Context) {
	for r.heard {
		full, deltas := r.changes.due()
		if !full && deltas == 0 {
			return
		}
		if err := r.report(ctx, full); err != nil {
			r.log.Debug("the last report of blocks", "err", err)
			return
		}
	}
}

// backoff grows from a tenth of a heartbeat to a whole one.
type backoff struct {
	most, delay time.Duration
}

func (b *backoff) next() time.Duration {
	b.delay = min(max(2*b.delay, b.most/10), b.most)
	return b.delay*9/10 + rand.N(b.delay/5+1)
}

func (b *backoff) reset() { b.delay = 0 }

// beats sends heartbeats, sooner while the worker is not registered.
func (r *reporter) beats(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := backoff{most: r.beat}
	well := true // what was logged
	for {
		var kicked []chan<- error
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case k := <-r.kicks:
			kicked = append(kicked, k)
		}
		for len(r.kicks) > 0 {
			kicked = append(kicked, <-r.kicks)
		}
		heard, news, err := r.exchange(ctx)
		for _, k := range kicked {
			k <- err
		}
		if ctx.Err() != nil {
			return
		}
		r.tell(heard)
		switch {
		case err != nil && well:
			r.log.Warn("no contact to a master", "err", err)
		case err == nil && !well:
			r.log.Info("in contact with a master")
		}
		switch well = err == nil; {
		case news: // the master waits to hear that we have it
			timer.Reset(0)
		case well:
			retry.reset()
			timer.Reset(r.beat)
		default:
			timer.Reset(retry.next())
		}
	}
}

// tell leaves the newest word for the reports goroutine.
func (r *reporter) tell(heard bool) {
	select {
	case <-r.contact:
	default:
	}
	r.contact <- heard
}

// exchange is one heartbeat and, when the master asks for it, a registration.
// heard says that the master is one of ours and took the heartbeat, news that
// what it said made the heartbeat out of date.
func (r *reporter) exchange(ctx context.Context) (heard, news bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	told, fulls := r.self.heartbeatRequest(), r.changes.fulls()
	reply, err := r.master.Heartbeat(ctx, told)
	r.inContact.Store(err == nil)
	if err != nil {
		return false, false, err
	}
	if err := r.self.adopt(reply.GetClusterId(), reply.GetMounts(), reply.GetPlacement()); err != nil {
		return false, false, err
	}
	if r.met != nil && !r.met(r, reply.GetMasterId(), reply.GetMasters()) {
		r.retire()
		return false, false, nil
	}
	if reply.GetNeedFull() {
		r.changes.needFullSince(fulls)
	}
	if reply.GetRegistered() {
		r.self.registered()
		return true, r.advanced(told), nil
	}
	in, err := r.master.Register(ctx, r.self.registerRequest())
	if errors.Is(err, errs.NotLeader) {
		return true, false, nil // the leader registers us, and this master will learn of it
	}
	if err != nil {
		return true, false, err
	}
	if err := r.self.adopt(in.GetClusterId(), in.GetMounts(), in.GetPlacement()); err != nil {
		return false, false, err
	}
	r.self.registered()
	return true, r.advanced(told), nil
}

// advanced reports whether the worker has a newer mount table or placement
// than it told. A master that sends what is older than ours changes nothing,
// so that this cannot go on for ever.
func (r *reporter) advanced(told *api.HeartbeatRequest) bool {
	now := r.self.heartbeatRequest()
	return now.GetMountsVersion() != told.GetMountsVersion() || now.GetPlacementEpoch() != told.GetPlacementEpoch()
}

// reports streams the changes of cached blocks while the master listens.
func (r *reporter) reports(ctx context.Context) {
	retry := backoff{most: max(r.beat, r.gather)}
	for {
		select {
		case <-ctx.Done():
			return
		case r.heard = <-r.contact:
		case <-r.changes.wake:
		}
		full, deltas := r.changes.due()
		if !r.heard || (!full && deltas == 0) {
			continue // a wake that is lost here comes again with the next heartbeat
		}
		if !full && deltas < reportBatch && wait.For(ctx, r.gather) != nil {
			return
		}
		if err := r.report(ctx, full); err != nil {
			if ctx.Err() != nil {
				return
			}
			r.log.Debug("reporting blocks", "err", err)
			r.changes.needFull() // whether it arrived is not known
			if wait.For(ctx, retry.next()) != nil {
				return
			}
			continue
		}
		if again, _ := r.changes.due(); !again {
			retry.reset()
		} else if wait.For(ctx, retry.next()) != nil { // it wants another full report
			return
		}
	}
}

// report sends a full report or one batch of changes.
func (r *reporter) report(ctx context.Context, full bool) error {
	if !full {
		return r.send(ctx, r.changes.take(reportBatch))
	}
	r.changes.takeFull()
	defer r.changes.endFull()
	left := locations(r.self.blocks())
	for first := true; ; first = false {
		n := min(len(left), fullPart)
		part := &api.ReportBlocksRequest{FullFirst: first, FullPart: true, FullLast: n == len(left), Cached: left[:n]}
		if err := r.send(ctx, part); err != nil || part.GetFullLast() {
			return err
		}
		left = left[n:]
	}
}

// send numbers a report and sends it. A master that does not know what came
// before it makes a full report due.
func (r *reporter) send(ctx context.Context, in *api.ReportBlocksRequest) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	r.sequence++
	in.Sequence = r.sequence
	in.WorkerId, in.StartEpoch = r.self.who()
	reply, err := r.master.ReportBlocks(ctx, in)
	if err != nil {
		return errs.Wrap(err, "report blocks", r.addr)
	}
	if reply.GetNeedFull() {
		r.changes.needFull()
	}
	return nil
}
