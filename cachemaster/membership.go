package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace/api"
	"millrace/block"
	"millrace/cachemaster/blockmap"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
)

// The states of a worker. A live one that drains is told to be draining.
const (
	stateLive     = "live"
	stateSuspect  = "suspect"
	stateLost     = "lost"
	stateDraining = "draining"
)

// membership is what this master hears of the registered workers and of
// clients. All of it is in memory; the registry itself is replicated. It is
// safe for concurrent use.
type membership struct {
	cfg    Config
	now    func() time.Time
	state  func() *fsm.State
	blocks *blockmap.Map
	change *broadcast
	hot    *hotBlocks

	mu      sync.Mutex
	members map[string]*member
	clients map[string]*clientReport
}

// member is what was heard of one registered worker.
type member struct {
	heard          time.Time // the last heartbeat, or when this master first saw it in the registry
	epoch          uint64    // 0: no heartbeat yet
	addresses      *api.WorkerAddresses
	tiers          []*api.Tier
	counters       *api.Counters
	mountsVersion  uint64
	placementEpoch uint64
	hottest        []heatOf
	state          string // as watchers were told
}

type clientReport struct {
	heard    time.Time
	counters *api.Counters
}

func newMembership(cfg Config, now func() time.Time, state func() *fsm.State, blocks *blockmap.Map) *membership {
	return &membership{
		cfg: cfg, now: now, state: state, blocks: blocks, change: newBroadcast(), hot: newHotBlocks(cfg, now),
		members: make(map[string]*member), clients: make(map[string]*clientReport),
	}
}

// of returns the member for a registered worker. One that was never heard of
// gets its time from now on, as after this master's start. The lock is held.
func (m *membership) of(id string) *member {
	w := m.members[id]
	if w == nil {
		w = &member{heard: m.now()}
		w.state = m.stateOf(w)
		m.members[id] = w
	}
	return w
}

// stateOf computes a worker's state from the silence since its last heartbeat.
func (m *membership) stateOf(w *member) string {
	switch silence := m.now().Sub(w.heard); {
	case silence >= m.cfg.LostAfter.Std():
		return stateLost
	case silence >= m.cfg.SuspectAfter.Std(), w.epoch == 0:
		return stateSuspect
	default:
		return stateLive
	}
}

// heartbeat takes a worker's heartbeat in and says what the worker lacks.
func (m *membership) heartbeat(r *api.HeartbeatRequest) (*api.HeartbeatReply, error) {
	st := m.state()
	reply := &api.HeartbeatReply{ClusterId: st.ClusterID}
	known, ok := st.Workers[r.GetWorkerId()]
	if !ok {
		return reply, nil
	}
	if err := m.hear(r); err != nil {
		return nil, err
	}
	reply.Registered = m.isCurrent(st, known, r)
	reply.NeedFull = m.blocks.NeedFull(block.WorkerID(r.GetWorkerId()), r.GetStartEpoch())
	if r.GetMountsVersion() != st.MountsVersion {
		reply.Mounts = mountsProto(st)
	}
	if r.GetPlacementEpoch() != st.PlacementEpoch {
		reply.Placement = placementProto(st)
	}
	return reply, nil
}

// isCurrent reports whether the registry has what placement hangs on as it is
// now: the room that the worker says to have, and the limit of whole files as
// it is configured. Else the worker is to register again, with the leader.
func (m *membership) isCurrent(st *fsm.State, known fsm.Worker, r *api.HeartbeatRequest) bool {
	var sum, least int64
	for i, t := range r.GetTiers() {
		sum += t.GetCapacityBytes()
		if i == 0 || t.GetCapacityBytes() < least {
			least = t.GetCapacityBytes()
		}
	}
	if len(r.GetTiers()) > 0 && (sum != known.CapacityBytes || least != known.SmallestDirBytes) {
		return false
	}
	return st.WholeFileLimit == fsm.WholeFileLimit(st.Workers, int64(m.cfg.WholeFileLimit))
}

func (m *membership) hear(r *api.HeartbeatRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.of(r.GetWorkerId())
	if r.GetStartEpoch() < w.epoch && m.stateOf(w) == stateLive {
		return errs.E(errs.Busy, "heartbeat", r.GetWorkerId(), errors.New("a worker of this ID that was started later is alive")).
			WithHint("do two workers share a copy of one data directory?")
	}
	changed := !proto.Equal(w.addresses, r.GetAddresses()) || len(w.tiers) != len(r.GetTiers())
	w.heard, w.epoch = m.now(), max(r.GetStartEpoch(), 1)
	if r.GetLeaving() {
		// As if it had been silent; one that comes back is live at once.
		w.heard = w.heard.Add(-m.cfg.SuspectAfter.Std())
	}
	w.addresses, w.tiers = r.GetAddresses(), r.GetTiers()
	w.counters, w.hottest = r.GetCounters(), heatsOf(r.GetHottest())
	w.mountsVersion, w.placementEpoch = r.GetMountsVersion(), r.GetPlacementEpoch()
	if state := m.stateOf(w); state != w.state {
		w.state, changed = state, true
	}
	if changed {
		m.change.notify()
	}
	return nil
}

// tick follows the workers' silence: it tells watchers of changed states and
// forgets the blocks of lost workers, and of clients that went away long ago.
func (m *membership) tick() {
	st := m.state()
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for id := range st.Workers {
		w := m.of(id)
		state := m.stateOf(w)
		if state == w.state {
			continue
		}
		w.state, changed = state, true
		if state == stateLost {
			m.blocks.Drop(block.WorkerID(id))
		}
	}
	for id := range m.members {
		if _, ok := st.Workers[id]; !ok {
			delete(m.members, id)
			m.blocks.Drop(block.WorkerID(id))
			changed = true
		}
	}
	changed = m.judgeHeat(st) || changed
	for id, c := range m.clients {
		if m.now().Sub(c.heard) > m.cfg.ClientTTL.Std() {
			delete(m.clients, id)
		}
	}
	if changed {
		m.change.notify()
	}
}

// judgeHeat sums up what live workers said of their hottest blocks, and reports
// whether watchers are to be told which are hot. The lock is held.
func (m *membership) judgeHeat(st *fsm.State) (tell bool) {
	demand, owners := make(map[block.Key]int64), 0
	for id, reg := range st.Workers {
		if !reg.Draining {
			owners++
		}
		w := m.members[id]
		if w == nil || m.stateOf(w) != stateLive {
			continue
		}
		for _, h := range w.hottest {
			demand[h.key] += h.rate
		}
	}
	return m.hot.judge(demand, owners)
}

// run ticks until ctx ends.
func (m *membership) run(ctx context.Context) {
	t := time.NewTicker(min(time.Second, m.cfg.SuspectAfter.Std()))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.tick()
		case <-ctx.Done():
			return
		}
	}
}

// workers describes the registered workers, in the order of their IDs.
func (m *membership) workers() []*api.WorkerInfo {
	st := m.state()
	m.mu.Lock()
	defer m.mu.Unlock()
	infos := make([]*api.WorkerInfo, 0, len(st.Workers))
	for id, reg := range st.Workers {
		w := m.of(id)
		info := &api.WorkerInfo{Id: id, State: m.stateOf(w), Tiers: w.tiers, Addresses: w.addresses}
		if reg.Draining && info.GetState() == stateLive {
			info.State = stateDraining
		}
		if info.Addresses == nil {
			info.Addresses = addressesProto(reg.Addresses)
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b *api.WorkerInfo) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return infos
}

// peer is a worker that can be asked.
type peer struct {
	id      string
	address string // gRPC
}

// reachable returns the workers that are not lost, live ones only if asked
// for, in the order of their IDs. Those that drain are live.
func (m *membership) reachable(liveOnly bool) []peer {
	var peers []peer
	for _, w := range m.workers() {
		switch state := w.GetState(); {
		case state == stateLive, state == stateDraining, !liveOnly && state == stateSuspect:
			peers = append(peers, peer{id: w.GetId(), address: w.GetAddresses().GetGrpc()})
		}
	}
	return peers
}

// live returns the addresses of a worker whose last heartbeat came a moment
// ago, draining or not; nil for any other.
func (m *membership) live(id string) *api.WorkerAddresses {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.members[id]; w != nil && m.stateOf(w) == stateLive {
		return w.addresses
	}
	return nil
}

// others returns how many workers beside id are live.
func (m *membership) others(id string) (n uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, w := range m.members {
		if other != id && m.stateOf(w) == stateLive {
			n++
		}
	}
	return n
}

// serving reports whether a live worker has the current mount table.
func (m *membership) serving() bool {
	st := m.state()
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range st.Workers {
		if w := m.of(id); m.stateOf(w) == stateLive && w.mountsVersion == st.MountsVersion {
			return true
		}
	}
	return false
}

// reportClient takes the counters of a client in. Above the bound the client
// that was not heard of for longest is forgotten.
func (m *membership) reportClient(r *api.ReportClientRequest) error {
	if id := r.GetClientId(); id == "" || len(id) > maxIDLength {
		return errs.E(errs.Invalid, "report client", "", fmt.Errorf("client ID of %d bytes, want 1 to %d", len(id), maxIDLength))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.clients[r.GetClientId()]; !ok && len(m.clients) >= m.cfg.MaxClients {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(m.clients)), func(a, b string) int {
			return m.clients[a].heard.Compare(m.clients[b].heard)
		})
		delete(m.clients, oldest)
	}
	m.clients[r.GetClientId()] = &clientReport{heard: m.now(), counters: r.GetCounters()}
	return nil
}

// counters returns the sums over workers and clients.
func (m *membership) counters() *api.Counters {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := &api.Counters{UfsRequests: make(map[string]int64)}
	for _, w := range m.members {
		addCounters(sum, w.counters)
	}
	for _, c := range m.clients {
		addCounters(sum, c.counters)
	}
	return sum
}

func addCounters(sum, c *api.Counters) {
	sum.BytesServed += c.GetBytesServed()
	sum.UfsBytesRead += c.GetUfsBytesRead()
	sum.UfsListBytes += c.GetUfsListBytes()
	for op, n := range c.GetUfsRequests() {
		sum.UfsRequests[op] += n
	}
	sum.PageHits += c.GetPageHits()
	sum.PageMisses += c.GetPageMisses()
	sum.ChecksumErrors += c.GetChecksumErrors()
	sum.EvictedBytes += c.GetEvictedBytes()
	sum.OpensPassthrough += c.GetOpensPassthrough()
	sum.OpensCopy += c.GetOpensCopy()
}

// countByState returns how many workers are in each state.
func (m *membership) countByState() map[string]int {
	count := map[string]int{stateLive: 0, stateSuspect: 0, stateLost: 0, stateDraining: 0}
	for _, w := range m.workers() {
		count[w.GetState()]++
	}
	return count
}

// broadcast tells any number of waiters that something changed.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// next returns a channel that is closed at the next change. Whoever waits
// takes it before looking at what may change.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
