package cacheworker

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
	"millrace/tier"
)

// fakeMaster keeps a registry and a block map as a master does.
type fakeMaster struct {
	api.UnimplementedWorkerRegistryServiceServer

	mu         sync.Mutex
	id         string
	group      []*api.MasterAddress
	cluster    string
	down       bool // every call fails
	follower   bool // does not register
	known      bool // the worker
	mounts     *api.Mounts
	placement  *api.Placement
	beats      int
	registers  int
	fulls      int // complete full reports
	reports    int
	epoch      uint64
	sequence   uint64
	wantFull   bool
	inFull     bool
	blocks     map[uint64]bool // by location hash: whole
	finds      []*api.FindBlocksRequest
	holders    []*api.Holder // of every block; also those that have none of it
	findFails  error
	lastBeat   *api.HeartbeatRequest
	lastRegist *api.RegisterRequest
}

func newFakeMaster() *fakeMaster {
	return &fakeMaster{cluster: "C1", blocks: make(map[uint64]bool), wantFull: true}
}

func (m *fakeMaster) heartbeat(in *api.HeartbeatRequest) (*api.HeartbeatReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, errs.Unavailable
	}
	m.beats++
	m.lastBeat = in
	if m.epoch != in.GetStartEpoch() {
		m.epoch, m.sequence, m.wantFull, m.inFull = in.GetStartEpoch(), 0, true, false
	}
	out := &api.HeartbeatReply{
		Registered: m.known, NeedFull: m.wantFull && !m.inFull, ClusterId: m.cluster, MasterId: m.id, Masters: m.group,
	}
	if m.known && in.GetMountsVersion() != m.mounts.GetVersion() {
		out.Mounts = m.mounts
	}
	if m.known && in.GetPlacementEpoch() < m.placement.GetEpoch() {
		out.Placement = m.placement
	}
	return out, nil
}

func (m *fakeMaster) register(in *api.RegisterRequest) (*api.RegisterReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.down:
		return nil, errs.Unavailable
	case m.follower:
		return nil, &rpcerr.NotLeader{}
	}
	m.registers++
	m.lastRegist = in
	m.known = true
	return &api.RegisterReply{ClusterId: m.cluster, Mounts: m.mounts, Placement: m.placement}, nil
}

func (m *fakeMaster) report(in *api.ReportBlocksRequest) (*api.ReportBlocksReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, errs.Unavailable
	}
	m.reports++
	fits := in.GetStartEpoch() == m.epoch && in.GetSequence() == m.sequence+1
	m.sequence = in.GetSequence()
	switch {
	case in.GetFullFirst():
		clear(m.blocks)
		m.inFull = true
	case !fits:
		m.wantFull, m.inFull = true, false
		return &api.ReportBlocksReply{NeedFull: true}, nil
	case m.wantFull && !m.inFull:
		return &api.ReportBlocksReply{NeedFull: true}, nil
	}
	for _, l := range in.GetCached() {
		m.blocks[location(l).hash()] = l&1 != 0
	}
	for _, h := range in.GetGone() {
		delete(m.blocks, h)
	}
	if in.GetFullLast() {
		m.wantFull, m.inFull = false, false
		m.fulls++
	}
	return &api.ReportBlocksReply{}, nil
}

func (m *fakeMaster) find(in *api.FindBlocksRequest) (*api.FindBlocksReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finds = append(m.finds, in)
	if m.findFails != nil {
		return nil, m.findFails
	}
	out := &api.FindBlocksReply{Workers: m.holders, Others: uint32(len(m.holders))}
	for range in.GetBlocks() {
		holders := &api.Holders{}
		for i, h := range m.holders {
			if h.GetId() != in.GetWorkerId() {
				holders.Workers = append(holders.Workers, uint32(i))
			}
		}
		out.Blocks = append(out.Blocks, holders)
	}
	return out, nil
}

// set changes the master under its lock.
func (m *fakeMaster) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// count reads one of the master's numbers.
func (m *fakeMaster) count(n *int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *n
}

func (m *fakeMaster) blockMap() map[uint64]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.blocks)
}

// directMaster is a fakeMaster without a network in between.
type directMaster struct{ *fakeMaster }

func (m directMaster) Heartbeat(_ context.Context, in *api.HeartbeatRequest, _ ...grpc.CallOption) (*api.HeartbeatReply, error) {
	return m.heartbeat(in)
}

func (m directMaster) Register(_ context.Context, in *api.RegisterRequest, _ ...grpc.CallOption) (*api.RegisterReply, error) {
	return m.register(in)
}

func (m directMaster) ReportBlocks(_ context.Context, in *api.ReportBlocksRequest, _ ...grpc.CallOption) (*api.ReportBlocksReply, error) {
	return m.report(in)
}

// fakeSelf is a worker with a set of cached blocks.
type fakeSelf struct {
	mu      sync.Mutex
	cluster string
	known   bool
	version uint64              // of the mount table
	cached  map[block.Key]int64 // wholeBytes of them are all
	r       *reporter
}

func (s *fakeSelf) registerRequest() *api.RegisterRequest { return &api.RegisterRequest{WorkerId: "W"} }

func (s *fakeSelf) heartbeatRequest() *api.HeartbeatRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &api.HeartbeatRequest{WorkerId: "W", StartEpoch: 5, MountsVersion: s.version}
}

func (s *fakeSelf) who() (string, uint64) { return "W", 5 }

func (s *fakeSelf) adopt(cluster string, mounts *api.Mounts, _ *api.Placement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = max(s.version, mounts.GetVersion())
	if s.cluster != "" && cluster != s.cluster {
		return errs.E(errs.Invalid, "join", cluster, nil)
	}
	return nil
}

func (s *fakeSelf) registered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = true
}

func (s *fakeSelf) isKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// wholeBytes make a block of a fakeSelf whole.
const wholeBytes = 10

func (s *fakeSelf) state(k block.Key) tier.BlockState {
	n := s.cached[k]
	return tier.BlockState{File: k.File, Index: k.Index, CachedBytes: n, Whole: n == wholeBytes}
}

// told is what masters should know.
func (s *fakeSelf) told() map[uint64]bool { return told(s.blocks()) }

func told(blocks iter.Seq[tier.BlockState]) map[uint64]bool {
	all := make(map[uint64]bool)
	for b := range blocks {
		all[block.Key{File: b.File, Index: b.Index}.LocationHash()] = b.Whole
	}
	return all
}

func (s *fakeSelf) blocks() iter.Seq[tier.BlockState] {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]tier.BlockState, 0, len(s.cached))
	for k := range s.cached {
		all = append(all, s.state(k))
	}
	return slices.Values(all)
}

// put changes a block and tells the reporter.
func (s *fakeSelf) put(i int, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := block.Key{Index: uint32(i)}
	if n == 0 {
		delete(s.cached, key)
	} else {
		s.cached[key] = n
	}
	s.r.changes.note(s.state(key))
}

// reporting runs a reporter in a bubble of synctest.
func reporting(t *testing.T, m *fakeMaster, s *fakeSelf, test func()) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.ReportQueue = 2 * reportBatch
		s.cached = make(map[block.Key]int64)
		s.r = newReporter("m", directMaster{m}, s, cfg, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.r.run(ctx); close(done) }()
		synctest.Wait()
		test()
		cancel()
		<-done
	})
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestReporterRegistersAndBeats(t *testing.T) {
	m, s := newFakeMaster(), &fakeSelf{}
	m.down = true
	reporting(t, m, s, func() {
		after(10 * time.Second)
		if s.isKnown() {
			t.Error("registered with a master that is down")
		}
		m.set(func() { m.down = false })
		after(2 * time.Second)
		if !s.isKnown() || m.count(&m.registers) != 1 {
			t.Fatalf("known %v after %d registrations", s.isKnown(), m.count(&m.registers))
		}
		before := m.count(&m.beats)
		after(10 * time.Second)
		if n := m.count(&m.beats) - before; n < 9 || n > 11 {
			t.Errorf("%d heartbeats in 10 s", n)
		}
		// A master that lost its registry gets the worker again.
		m.set(func() { m.known = false })
		after(2 * time.Second)
		if m.count(&m.registers) != 2 {
			t.Errorf("%d registrations", m.count(&m.registers))
		}
		// A kick is answered by a heartbeat at once.
		before = m.count(&m.beats)
		answer := make(chan error, 1)
		s.r.kicks <- answer
		synctest.Wait()
		if err := <-answer; err != nil || m.count(&m.beats) != before+1 {
			t.Errorf("a kick: %v, %d beats", err, m.count(&m.beats)-before)
		}
		m.set(func() { m.down = true })
		s.r.kicks <- answer
		if err := <-answer; !errors.Is(err, errs.Unavailable) {
			t.Errorf("a kick at a master that is down: %v", err)
		}
	})
}

// A master hears at once that the worker has the mount table that it just
// sent: until then it does not say that the cluster serves it.
func TestReporterTellsWhatItTook(t *testing.T) {
	m, s := newFakeMaster(), &fakeSelf{}
	reporting(t, m, s, func() {
		after(5 * time.Second)
		for version := uint64(1); version < 4; version++ {
			m.set(func() { m.mounts = &api.Mounts{Version: version} })
			before := m.count(&m.beats)
			answer := make(chan error, 1)
			s.r.kicks <- answer
			if err := <-answer; err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := m.lastBeat.GetMountsVersion(); got != version {
				t.Errorf("the master was told version %d, want %d", got, version)
			}
			if n := m.count(&m.beats) - before; n != 2 {
				t.Errorf("%d heartbeats for one new table, want 2", n)
			}
		}
		// A table that is older than the worker's brings no heartbeats of its own.
		m.set(func() { m.mounts = &api.Mounts{Version: 1} })
		before := m.count(&m.beats)
		after(5 * time.Second)
		if n := m.count(&m.beats) - before; n > 6 {
			t.Errorf("%d heartbeats in 5 s", n)
		}
	})
}

func TestReporterAtAFollower(t *testing.T) {
	m, s := newFakeMaster(), &fakeSelf{}
	m.follower = true
	reporting(t, m, s, func() {
		s.put(1, 10)
		after(3 * time.Second)
		if s.isKnown() || m.count(&m.beats) < 3 {
			t.Errorf("known %v after %d beats", s.isKnown(), m.count(&m.beats))
		}
		if d := cmp.Diff(s.told(), m.blockMap()); d != "" {
			t.Errorf("a follower's block map: %s", d)
		}
		m.set(func() { m.known = true }) // the leader has told it
		after(2 * time.Second)
		if !s.isKnown() {
			t.Error("not known")
		}
	})
}

func TestReporterKeepsAwayFromAForeignMaster(t *testing.T) {
	m, s := newFakeMaster(), &fakeSelf{cluster: "C2"}
	reporting(t, m, s, func() {
		s.put(1, 10)
		after(10 * time.Second)
		if s.isKnown() || m.count(&m.registers) != 0 || m.count(&m.reports) != 0 {
			t.Errorf("known %v, %d registrations, %d reports", s.isKnown(), m.count(&m.registers), m.count(&m.reports))
		}
	})
}

func TestReports(t *testing.T) {
	m, s := newFakeMaster(), &fakeSelf{}
	reporting(t, m, s, func() {
		start := 0
		same := func(what string, fulls int) {
			t.Helper()
			if got := m.blockMap(); !maps.Equal(s.told(), got) {
				t.Errorf("%s: the master has %d blocks, the worker %d", what, len(got), len(s.cached))
			}
			if n := m.count(&m.fulls) - start; n != fulls {
				t.Errorf("%s: %d full reports, want %d", what, n, fulls)
			}
		}
		for i := range 2*fullPart + 7 {
			s.put(i, 10)
		}
		after(time.Second)
		start = m.count(&m.fulls) - 1
		same("at the start", 1)

		before := m.count(&m.reports)
		for i := range 50 {
			s.put(3, int64(i+1))
			s.put(100_000+i, 5)
		}
		s.put(4, 0)
		after(time.Second)
		same("changes", 1)
		if m.count(&m.reports) != before+1 {
			t.Errorf("%d reports for changes of 52 blocks at once", m.count(&m.reports)-before)
		}

		for i := range reportBatch + reportBatch/2 {
			s.put(200_000+i, 5)
		}
		after(time.Second)
		same("more than a batch", 1)

		for i := range 3 * reportBatch {
			s.put(300_000+i, 5)
		}
		after(2 * time.Second)
		start = m.count(&m.fulls) - 2 // or not: batches may leave while they are put
		same("more than the queue holds", 2)

		m.set(func() { m.sequence += 3 })
		s.put(5, 0)
		after(2 * time.Second)
		same("a gap", 3)

		m.set(func() { m.down = true })
		s.put(6, 0)
		after(5 * time.Second)
		m.set(func() { m.down = false })
		after(5 * time.Second)
		same("a lost report", 4)

		m.set(func() { clear(m.blocks); m.epoch = 0 }) // the master started anew
		after(3 * time.Second)
		same("a new master", 5)
	})
}

func TestChangesAreBounded(t *testing.T) {
	c := newChanges(10)
	c.takeFull()
	for i := range 10 {
		c.note(tier.BlockState{Index: uint32(i), CachedBytes: 1})
		c.note(tier.BlockState{Index: uint32(i), CachedBytes: 2})
	}
	if full, n := c.due(); full || n != 10 {
		t.Fatalf("full %v, %d changes", full, n)
	}
	c.note(tier.BlockState{Index: 11, CachedBytes: 3})
	if full, n := c.due(); !full || n != 1 {
		t.Fatalf("past the bound: full %v, %d changes", full, n)
	}
	c.takeFull()
	c.note(tier.BlockState{Index: 1, CachedBytes: 4})
	c.note(tier.BlockState{Index: 1, CachedBytes: 5, Whole: true})
	c.note(tier.BlockState{Index: 2, CachedBytes: 4})
	c.note(tier.BlockState{Index: 2})
	got := c.take(5)
	want := &api.ReportBlocksRequest{
		Cached: []uint64{block.Key{Index: 1}.LocationHash() | 1}, Gone: []uint64{block.Key{Index: 2}.LocationHash()},
	}
	if !proto.Equal(got, want) {
		t.Errorf("took %v, want %v", got, want)
	}
	if full, n := c.due(); full || n != 0 {
		t.Errorf("in the end: full %v, %d changes", full, n)
	}
}

// A master that asks for a full report while one is under way, or came between
// its answer and the question, gets it once.
func TestFullReportIsNotAskedForTwice(t *testing.T) {
	due := func(c *changes) bool { full, _ := c.due(); return full }
	c := newChanges(10)
	asked := c.fulls()
	c.takeFull()
	c.needFullSince(asked)
	if due(c) {
		t.Error("one is under way")
	}
	during := c.fulls()
	c.endFull()
	c.needFullSince(asked)
	c.needFullSince(during)
	if due(c) {
		t.Error("one came since")
	}
	c.needFullSince(c.fulls())
	if !due(c) {
		t.Error("the master lost what it had")
	}
}
