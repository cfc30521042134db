package cachemaster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
)

const (
	// announceInterval is how often a master tells the leader that it is there.
	announceInterval = time.Second
	// silentAfter is after what time without that a master counts as silent.
	silentAfter = 3 * time.Second
	// maxAnnounced bounds the masters that are remembered, those included that
	// do not belong to the group.
	maxAnnounced = 64
	// maxAddress bounds an address, in bytes.
	maxAddress = 4 << 10
)

// announced is what the leader heard of the other masters. It is in memory: a
// new leader hears of everybody within announceInterval. It is safe for
// concurrent use.
type announced struct {
	now func() time.Time

	mu    sync.Mutex
	heard map[string]announcement
	news  *broadcast
}

type announcement struct {
	at time.Time
	*api.AnnounceRequest
}

func newAnnounced(now func() time.Time) *announced {
	return &announced{now: now, heard: make(map[string]announcement), news: newBroadcast()}
}

func (a *announced) put(r *api.AnnounceRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.heard[r.GetId()]; !ok && len(a.heard) >= maxAnnounced {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(a.heard)), func(x, y string) int {
			return a.heard[x].at.Compare(a.heard[y].at)
		})
		delete(a.heard, oldest)
	}
	a.heard[r.GetId()] = announcement{at: a.now(), AnnounceRequest: r}
	a.news.notify()
}

// lately returns what was heard of a master within silentAfter.
func (a *announced) lately(id string) (*api.AnnounceRequest, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, ok := a.heard[id]
	if !ok || a.now().Sub(h.at) > silentAfter {
		return nil, false
	}
	return h.AnnounceRequest, true
}

// forget forgets a master: what it said before does not hold any more.
func (a *announced) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.heard, id)
}

// ids returns of whom was heard lately.
func (a *announced) ids() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for id, h := range a.heard {
		if a.now().Sub(h.at) <= silentAfter {
			list = append(list, id)
		}
	}
	return list
}

// announce tells the leader where this master is, until ctx ends. Who is the
// only voter has nobody to tell: the masters that it knows of may be another
// group's, as where several clusters share a host.
func (m *Master) announce(ctx context.Context) {
	told, pause := false, time.Duration(0)
	for sleep(ctx, m.clock, pause) == nil {
		pause = announceInterval
		if m.leading.Load() || m.raft.alone() {
			m.setApart(false)
			continue
		}
		reply, err := m.announceOnce(ctx)
		if err == nil {
			m.setApart(!reply.GetMember())
		}
		switch {
		case err != nil:
			m.log.DebugContext(ctx, "announcing this master", "error", err)
			pause = foundingPause // a new leader should hear of it soon
		case reply.GetMember():
			told = false
		case !told:
			told = true
			m.log.WarnContext(ctx, "this master does not belong to the group: it waits to be added, or may be stopped",
				"command", "millrace masters add "+m.raft.id)
		}
	}
}

// setApart keeps whether the group counts on this master.
func (m *Master) setApart(apart bool) {
	if m.apart.Swap(apart) != apart {
		m.members.change.notify() // streams end, or go on
	}
}

func (m *Master) announceOnce(ctx context.Context) (*api.AnnounceReply, error) {
	in := &api.AnnounceRequest{
		Id: m.raft.id, Grpc: m.grpc, Http: m.deps.HTTPAddr, Raft: m.raft.address(),
		AppliedIndex: m.store.State().Index, Empty: m.fresh.Load(),
	}
	addresses := m.others()
	if m.running.Load() {
		if leader := m.store.State().Masters[m.raft.leaderID()].GRPC; leader != "" && leader != m.grpc {
			addresses = append([]string{leader}, addresses...)
		}
	}
	return askLeader(ctx, m.group, addresses, func(ctx context.Context, c api.GroupServiceClient) (*api.AnnounceReply, error) {
		return c.Announce(ctx, in)
	})
}

// Announce implements api.GroupServiceServer.
func (s *groupService) Announce(ctx context.Context, r *api.AnnounceRequest) (*api.AnnounceReply, error) {
	m := s.m
	if _, err := m.begin(ctx, 0); err != nil {
		return nil, err
	}
	if err := checkAnnouncement(r); err != nil {
		return nil, err
	}
	m.announced.put(r)
	_, member, err := m.raft.member(r.GetId())
	if err != nil {
		return nil, err
	}
	switch {
	case !member && r.GetEmpty():
		// It relies on our word: its removal must be committed.
		if err := m.raft.barrier(); err != nil {
			return nil, err
		}
		_, member, err = m.raft.member(r.GetId())
		return &api.AnnounceReply{Member: member}, err
	case !member, r.GetEmpty():
		return &api.AnnounceReply{Member: member}, nil
	}
	if err := m.raft.readdress(r.GetId(), r.GetRaft()); err != nil {
		return nil, err
	}
	if self := (fsm.Master{ID: r.GetId(), GRPC: r.GetGrpc(), HTTP: r.GetHttp()}); m.store.State().Masters[self.ID] != self {
		if _, err := m.raft.apply(ctx, fsm.Command{RegisterMaster: &self}); err != nil {
			return nil, err
		}
	}
	return &api.AnnounceReply{Member: true}, nil
}

func checkAnnouncement(r *api.AnnounceRequest) error {
	switch {
	case r.GetId() == "" || len(r.GetId()) > maxIDLength:
		return errs.E(errs.Invalid, "announce master", "", errors.New("its ID is missing or too long"))
	case r.GetGrpc() == "" || r.GetRaft() == "":
		return errs.E(errs.Invalid, "announce master", r.GetId(), errors.New("an address is missing"))
	case max(len(r.GetGrpc()), len(r.GetHttp()), len(r.GetRaft())) > maxAddress:
		return errs.E(errs.Invalid, "announce master", r.GetId(), errors.New("an address is too long"))
	}
	return nil
}
