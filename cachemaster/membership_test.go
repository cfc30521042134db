package cachemaster

import (
	"os"
	"testing"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
)

// copyDir copies a directory as it is on disk at this moment.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func registration(id string, capacity, smallest int64) *api.RegisterRequest {
	return &api.RegisterRequest{
		WorkerId: id, CapacityBytes: capacity, SmallestDirBytes: smallest,
		Addresses: &api.WorkerAddresses{Grpc: "127.0.0.1:1", Data: "127.0.0.1:2"},
	}
}

func (c *cluster) workerState(t *testing.T, id string) string {
	t.Helper()
	for _, w := range c.m.members.workers() {
		if w.GetId() == id {
			return w.GetState()
		}
	}
	return ""
}

func TestMembership(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"a": newMemStore(nil)}, testConfig())
	ctx := t.Context()
	watch, err := c.status.Watch(ctx, &api.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// watched follows the stream until the membership is as wanted.
	watched := func(what string, ok func(*api.Membership) bool) {
		t.Helper()
		for {
			m, err := watch.Recv()
			if err != nil {
				t.Fatalf("watch until %s: %v", what, err)
			}
			if ok(m) {
				return
			}
		}
	}
	watched("it is empty", func(m *api.Membership) bool { return m.GetClusterId() != "" && len(m.GetWorkers()) == 0 })

	hb := &api.HeartbeatRequest{WorkerId: "w1", StartEpoch: 5, Counters: &api.Counters{PageHits: 3, UfsRequests: map[string]int64{"get": 2}}}
	r, err := c.registry.Heartbeat(ctx, hb)
	if err != nil || r.GetRegistered() {
		t.Errorf("heartbeat of a stranger = %v, %v", r, err)
	}
	reg, err := c.registry.Register(ctx, registration("w1", 1000, 800))
	if err != nil {
		t.Fatal(err)
	}
	if p := reg.GetPlacement(); p.GetEpoch() != 1 || p.GetWholeFileLimit() != 100 || len(p.GetWorkers()) != 1 || p.GetWorkers()[0].GetWeight() != 1000 {
		t.Errorf("placement = %v", p)
	}
	index := c.m.store.State().Index
	if _, err := c.registry.Register(ctx, registration("w1", 1000, 800)); err != nil || c.m.store.State().Index != index {
		t.Errorf("the same registration again: %v, index %d, was %d", err, c.m.store.State().Index, index)
	}
	reg2, err := c.registry.Register(ctx, registration("w2", 2000, 400))
	if err != nil || reg2.GetPlacement().GetEpoch() != 2 || reg2.GetPlacement().GetWholeFileLimit() != 50 {
		t.Errorf("placement of two = %v, %v", reg2.GetPlacement(), err)
	}
	other := registration("w3", 1, 1)
	other.ClusterId = "01ANOTHERCLUSTER"
	_, err = c.registry.Register(ctx, other)
	wantKind(t, "a worker of another cluster", err, errs.Invalid)

	if s := c.workerState(t, "w1"); s != stateSuspect {
		t.Errorf("before its first heartbeat w1 is %s", s)
	}
	c.mount(t, "/", "mem://a", nil)
	if r, err = c.registry.Heartbeat(ctx, hb); err != nil {
		t.Fatal(err)
	}
	if !r.GetRegistered() || !r.GetNeedFull() || r.GetMounts().GetVersion() != 1 || r.GetPlacement().GetEpoch() != 2 || r.GetClusterId() != reg.GetClusterId() {
		t.Errorf("first heartbeat = %v", r)
	}
	status := func() *api.StatusReply {
		t.Helper()
		s, err := c.status.Status(ctx, &api.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if status().GetServing() {
		t.Error("serving before the worker has the mount table")
	}
	hb.MountsVersion, hb.PlacementEpoch = 1, 2
	if r, err = c.registry.Heartbeat(ctx, hb); err != nil || r.GetMounts() != nil || r.GetPlacement() != nil {
		t.Errorf("second heartbeat = %v, %v", r, err)
	}
	if !status().GetServing() {
		t.Error("not serving with a live worker that has the mount table")
	}
	watched("w1 is live", func(m *api.Membership) bool {
		return len(m.GetWorkers()) == 2 && m.GetWorkers()[0].GetState() == stateLive && m.GetMountsVersion() == 1
	})

	for _, id := range []string{"c1", "c2"} {
		if _, err := c.status.ReportClient(ctx, &api.ReportClientRequest{ClientId: id, Counters: &api.Counters{PageHits: 10, OpensCopy: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if s := status().GetCounters(); s.GetPageHits() != 23 || s.GetOpensCopy() != 2 || s.GetUfsRequests()["get"] != 2 {
		t.Errorf("counters = %v", s)
	}

	c.blocks(t, "w1", 5)
	c.clock.advance(3 * time.Second)
	watched("w1 is suspect", func(m *api.Membership) bool { return m.GetWorkers()[0].GetState() == stateSuspect })
	if status().GetServing() {
		t.Error("serving without a live worker")
	}
	if c.m.blocks.Len() != 1 {
		t.Errorf("%d locations of a suspect worker, want 1", c.m.blocks.Len())
	}
	c.clock.advance(27 * time.Second)
	watched("w1 is lost", func(m *api.Membership) bool { return m.GetWorkers()[0].GetState() == stateLost })
	eventually(t, "its locations are dropped", func() bool { return c.m.blocks.Len() == 0 })

	hb.StartEpoch = 6
	if r, err = c.registry.Heartbeat(ctx, hb); err != nil || !r.GetNeedFull() {
		t.Errorf("heartbeat after a restart = %v, %v", r, err)
	}
	hb.StartEpoch = 5
	_, err = c.registry.Heartbeat(ctx, hb)
	wantKind(t, "heartbeat of an older process beside a live one", err, errs.Busy)

	// A worker that says that it leaves is suspect at once, and live again as
	// soon as it is back.
	hb.StartEpoch, hb.Leaving = 6, true
	if _, err = c.registry.Heartbeat(ctx, hb); err != nil {
		t.Fatal(err)
	}
	if s := c.workerState(t, "w1"); s != stateSuspect {
		t.Errorf("a worker that leaves is %s", s)
	}
	hb.StartEpoch, hb.Leaving = 7, false
	if _, err = c.registry.Heartbeat(ctx, hb); err != nil {
		t.Fatal(err)
	}
	if s := c.workerState(t, "w1"); s != stateLive {
		t.Errorf("a worker that is back is %s", s)
	}
}

// blocks sends a full report of one block.
func (c *cluster) blocks(t *testing.T, worker string, epoch uint64) {
	t.Helper()
	id := block.DeriveFileID(1, "p", "t", 1, block.MinBlockSize)
	r, err := c.registry.ReportBlocks(t.Context(), &api.ReportBlocksRequest{
		WorkerId: worker, StartEpoch: epoch, Sequence: 1, FullFirst: true, FullLast: true,
		Cached: []uint64{block.Key{File: id}.LocationHash() | 1},
	})
	if err != nil || r.GetNeedFull() {
		t.Fatalf("report = %v, %v", r, err)
	}
	r, err = c.registry.ReportBlocks(t.Context(), &api.ReportBlocksRequest{WorkerId: worker, StartEpoch: epoch, Sequence: 3})
	if err != nil || !r.GetNeedFull() {
		t.Errorf("report after a gap = %v, %v", r, err)
	}
}

// TestClientBounds forgets clients above the bound and after their time.
func TestClientBounds(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxClients = 2
	clock := &testClock{}
	m := newMembership(cfg, clock.Now, nil, nil)
	for i, id := range []string{"a", "b", "c"} {
		clock.advance(time.Second)
		err := m.reportClient(&api.ReportClientRequest{ClientId: id, Counters: &api.Counters{OpensCopy: 1 << i}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := m.counters().GetOpensCopy(); n != 2+4 {
		t.Errorf("sum = %b, want without the oldest", n)
	}
	wantKind(t, "empty ID", m.reportClient(&api.ReportClientRequest{}), errs.Invalid)
}
