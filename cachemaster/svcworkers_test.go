package cachemaster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
)

// joins registers a worker if need be and sends its heartbeat.
func (c *cluster) joins(t *testing.T, id string) {
	t.Helper()
	if _, err := c.registry.Register(t.Context(), registration(id, 1000, 800)); err != nil {
		t.Fatal(err)
	}
	_, err := c.registry.Heartbeat(t.Context(), &api.HeartbeatRequest{
		WorkerId: id, StartEpoch: 1, Addresses: &api.WorkerAddresses{Grpc: id + ":1", Data: id + ":2"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDrainAndForget lets a worker leave step by step.
func TestDrainAndForget(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), nil, testConfig())
	workers, ctx := api.NewWorkersServiceClient(c.conn), t.Context()
	owners := func() (ids []string) {
		for _, w := range c.m.store.State().Placement().Workers {
			ids = append(ids, string(w.ID))
		}
		return ids
	}
	c.joins(t, "w1")
	_, err := workers.DrainWorker(ctx, &api.DrainWorkerRequest{WorkerId: "w1"})
	wantKind(t, "drain the only worker", err, errs.Invalid)
	c.joins(t, "w2")
	r, err := workers.DrainWorker(ctx, &api.DrainWorkerRequest{WorkerId: "w1"})
	if err != nil || r.GetPlacementEpoch() != 3 {
		t.Fatalf("drain: %v, %v", r, err)
	}
	if s := c.workerState(t, "w1"); s != stateDraining {
		t.Errorf("w1 is %s", s)
	}
	if n := len(c.m.members.reachable(true)); n != 2 {
		t.Errorf("%d workers are reachable, want the draining one too", n)
	}
	c.joins(t, "w1") // as after a restart
	if d := cmp.Diff([]string{"w2"}, owners()); d != "" {
		t.Errorf("owners: %s", d)
	}
	if r, err = workers.DrainWorker(ctx, &api.DrainWorkerRequest{WorkerId: "w1", Undrain: true}); err != nil || r.GetPlacementEpoch() != 4 {
		t.Fatalf("undrain: %v, %v", r, err)
	}
	_, err = workers.ForgetWorker(ctx, &api.ForgetWorkerRequest{WorkerId: "w1"})
	wantKind(t, "forget a live worker", err, errs.Busy)
	c.clock.advance(3 * time.Second)
	if _, err = workers.ForgetWorker(ctx, &api.ForgetWorkerRequest{WorkerId: "w1"}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"w2"}, owners()); d != "" {
		t.Errorf("owners: %s", d)
	}
	_, err = workers.ForgetWorker(ctx, &api.ForgetWorkerRequest{WorkerId: "w1"})
	wantKind(t, "forget it again", err, errs.NotFound)
	c.joins(t, "w1")
	if d := cmp.Diff([]string{"w1", "w2"}, owners()); d != "" {
		t.Errorf("owners after it came back: %s", d)
	}
}

// TestFindBlocks names workers that are alive and have all of a block.
func TestFindBlocks(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), nil, testConfig())
	hash := func(i uint32) uint64 { return block.Key{Index: i}.LocationHash() }
	const whole = 1
	report := func(id string, cached ...uint64) {
		t.Helper()
		c.joins(t, id)
		_, err := c.registry.ReportBlocks(t.Context(), &api.ReportBlocksRequest{
			WorkerId: id, StartEpoch: 1, Sequence: 1, FullFirst: true, FullLast: true, Cached: cached,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	report("silent", hash(1)|whole)
	c.clock.advance(3 * time.Second)
	report("a", hash(1)|whole, hash(2))
	report("b", hash(1)|whole, hash(2)|whole, hash(3)|whole)
	if _, err := c.registry.Register(t.Context(), registration("unheard", 1, 1)); err != nil {
		t.Fatal(err)
	}
	locations := api.NewLocationServiceClient(c.conn)
	r, err := locations.FindBlocks(t.Context(), &api.FindBlocksRequest{WorkerId: "a", Blocks: []uint64{hash(1), hash(2), hash(3), hash(4)}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, holders := range r.GetBlocks() {
		text := ""
		for _, at := range holders.GetWorkers() {
			text += r.GetWorkers()[at].GetId() + "@" + r.GetWorkers()[at].GetAddresses().GetData() + " "
		}
		got = append(got, text)
	}
	if d := cmp.Diff([]string{"b@b:2 ", "b@b:2 ", "b@b:2 ", ""}, got); d != "" {
		t.Errorf("what a is told: %s", d)
	}
	if r.GetOthers() != 1 {
		t.Errorf("a is told of %d other live workers, want b", r.GetOthers())
	}
	// Those that are wanted by name, if they are alive.
	r, err = locations.FindBlocks(t.Context(), &api.FindBlocksRequest{WorkerId: "a", Named: []string{"b", "unheard", "unknown"}})
	if err != nil || len(r.GetWorkers()) != 1 || r.GetWorkers()[0].GetId() != "b" {
		t.Errorf("asked for b and for workers that are not alive, the master names %v: %v", r.GetWorkers(), err)
	}
	_, err = locations.FindBlocks(t.Context(), &api.FindBlocksRequest{Blocks: make([]uint64, maxFound+1)})
	wantKind(t, "too many at a time", err, errs.Invalid)
}

// TestPlacementFollowsRoomAndLimit: a worker that was given more disk, or whose
// masters were given another limit of whole files, is asked to register again.
func TestPlacementFollowsRoomAndLimit(t *testing.T) {
	t.Parallel()
	dir, cfg := t.TempDir(), testConfig()
	c := start(t, dir, nil, cfg)
	beat := func(dirs ...int64) bool {
		t.Helper()
		hb := &api.HeartbeatRequest{WorkerId: "w1", StartEpoch: 1}
		for _, capacity := range dirs {
			hb.Tiers = append(hb.Tiers, &api.Tier{CapacityBytes: capacity})
		}
		r, err := c.registry.Heartbeat(t.Context(), hb)
		if err != nil {
			t.Fatal(err)
		}
		return r.GetRegistered()
	}
	placed := func(capacity, smallest, limit int64) {
		t.Helper()
		r, err := c.registry.Register(t.Context(), registration("w1", capacity, smallest))
		if err != nil {
			t.Fatal(err)
		}
		if p := r.GetPlacement(); p.GetWholeFileLimit() != limit || p.GetWorkers()[0].GetWeight() != uint64(capacity) {
			t.Errorf("placement %v, want a limit of %d", p, limit)
		}
	}
	placed(1000, 200, 25)
	if !beat(800, 200) || !beat() {
		t.Error("asked to register again with nothing new")
	}
	if beat(800, 400) || beat(800, 200, 400) {
		t.Error("not asked to register with more room")
	}
	placed(1200, 400, 50)
	if !beat(800, 400) {
		t.Error("asked to register what it registered")
	}
	c.stop()
	cfg.WholeFileLimit = 7
	c = start(t, dir, nil, cfg)
	if beat(800, 400) {
		t.Error("not asked to register under another limit")
	}
	placed(1200, 400, 7)
	if !beat(800, 400) {
		t.Error("asked to register again under the same limit")
	}
}
