package cachemaster

import (
	"fmt"
	"testing"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/internal/size"
)

const hotTestRate = 1000

// newTestHot returns hot blocks whose time stands still but for who moves it.
func newTestHot(replicas int) (h *hotBlocks, pass func(time.Duration)) {
	cfg, now := testConfig(), time.Unix(0, 0)
	cfg.HotRate, cfg.HotReplicas = hotTestRate, replicas
	return newHotBlocks(cfg, func() time.Time { return now }), func(d time.Duration) { now = now.Add(d) }
}

func hotKey(i int) block.Key { return block.Key{File: block.FileID{byte(i), byte(i >> 8), 1}} }

// servers returns how many serve a block, 1 if it is not hot.
func (h *hotBlocks) servers(k block.Key) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.all[k]; b != nil {
		return b.servers
	}
	return 1
}

// TestHotBlocksRiseAndFall: more servers at once when more is read than those
// that there are should serve, fewer only when far less is for a while.
func TestHotBlocksRiseAndFall(t *testing.T) {
	t.Parallel()
	h, pass := newTestHot(3)
	hold := testConfig().HotHold.Std()
	for i, step := range []struct {
		demand int64
		after  time.Duration // since the step before
		owners int
		want   int
		tell   bool
	}{
		{hotTestRate - 1, 0, 9, 1, false},
		{hotTestRate, 0, 9, 2, true},
		{hotTestRate, time.Second, 9, 2, false},
		{3 * hotTestRate, 0, 9, 4, true},
		{30 * hotTestRate, 0, 9, 4, false}, // no more than configured
		{0, 0, 9, 4, false},
		{0, hold - 1, 9, 4, true}, // told again
		{3 * hotTestRate, 0, 9, 4, false},
		{2 * hotTestRate, 0, 9, 4, false}, // would rise again too soon
		{1400, hold, 9, 4, true},
		{1400, hold - 1, 9, 4, true},
		{1400, 1, 9, 3, true},
		{400, 0, 9, 3, false},
		{400, hold, 9, 1, true},
		{0, hold, 9, 1, false},
		{9 * hotTestRate, 0, 2, 2, true}, // no more than there are workers
		{9 * hotTestRate, 0, 1, 1, true},
		{9 * hotTestRate, 0, 9, 4, true},
		{9 * hotTestRate, hotEvery - 1, 9, 4, false},
		{9 * hotTestRate, 1, 9, 4, true}, // told again in time
	} {
		pass(step.after)
		tell := h.judge(map[block.Key]int64{hotKey(1): step.demand}, step.owners)
		if n := h.servers(hotKey(1)); n != step.want || tell != step.tell {
			t.Errorf("step %d: %d servers, told: %v; want %d, %v", i, n, tell, step.want, step.tell)
		}
	}
}

// TestHotBlocksAreBounded: the hottest come first, and what is hot stays.
func TestHotBlocksAreBounded(t *testing.T) {
	t.Parallel()
	h, _ := newTestHot(1)
	demand := make(map[block.Key]int64)
	for i := range 2 * maxHotBlocks {
		demand[hotKey(i)] = hotTestRate + int64(i)
	}
	h.judge(demand, 9)
	demand[hotKey(-1)] = 1 << 40
	h.judge(demand, 9)
	all, valid := h.proto()
	if len(all) != maxHotBlocks || h.len() != maxHotBlocks || valid != hotValid {
		t.Errorf("%d blocks are hot for %v", len(all), valid)
	}
	for i := maxHotBlocks; i < 2*maxHotBlocks; i++ {
		if h.servers(hotKey(i)) != 2 {
			t.Fatalf("block %d is not hot", i)
		}
	}
	for _, b := range all {
		if b.GetServers() != 2 || len(b.GetFileId()) != 16 {
			t.Fatalf("told %v", b)
		}
	}
}

func TestNothingIsHotAtRate0(t *testing.T) {
	t.Parallel()
	h, _ := newTestHot(3)
	h.rate = 0
	if h.judge(map[block.Key]int64{hotKey(1): 1 << 60}, 9) || h.len() != 0 {
		t.Error("a block is hot")
	}
}

// TestHeatOfHeartbeats: what live workers say of a block counts together, and
// who watches is told; what a silent one said, or makes no sense, does not.
func TestHeatOfHeartbeats(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.HotRate = hotTestRate
	cfg.SuspectAfter, cfg.LostAfter, cfg.HotHold = size.Duration(time.Minute), size.Duration(time.Hour), size.Duration(time.Minute)
	c := start(t, t.TempDir(), nil, cfg)
	watch, err := c.status.Watch(t.Context(), &api.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	heat := func(k block.Key, rate int64) *api.BlockHeat {
		return &api.BlockHeat{FileId: k.File[:], Index: k.Index, Rate: rate}
	}
	beat := func(id string, hottest ...*api.BlockHeat) {
		t.Helper()
		_, err := c.registry.Heartbeat(t.Context(), &api.HeartbeatRequest{
			WorkerId: id, StartEpoch: 1, Addresses: &api.WorkerAddresses{Grpc: id + ":1", Data: id + ":2"}, Hottest: hottest,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		c.joins(t, fmt.Sprintf("w%d", i))
	}
	key := block.Key{File: block.FileID{7}, Index: block.WholeFile}
	negative := heat(hotKey(2), -1<<62)
	short := heat(hotKey(3), 1<<40)
	short.FileId = short.FileId[1:]
	beat("w0", heat(key, hotTestRate), negative, short)
	beat("w1", heat(key, hotTestRate), heat(hotKey(4), 1))
	beat("unknown", heat(key, hotTestRate))
	until := func(what string, ok func([]*api.HotBlock) bool) {
		t.Helper()
		for {
			m, err := watch.Recv()
			if err != nil {
				t.Fatalf("watch until %s: %v", what, err)
			}
			if len(m.GetHot()) > 0 && m.GetHotValidMs() != hotValid.Milliseconds() {
				t.Errorf("valid for %d ms", m.GetHotValidMs())
			}
			if ok(m.GetHot()) {
				return
			}
		}
	}
	until("it is hot", func(hot []*api.HotBlock) bool {
		return len(hot) == 1 && hot[0].GetServers() == 3 && block.FileID(hot[0].GetFileId()) == key.File && hot[0].GetIndex() == key.Index
	})
	c.clock.advance(time.Minute) // w0 and w1 are silent
	eventually(t, "it is calm", func() bool {
		c.m.members.hot.mu.Lock()
		defer c.m.members.hot.mu.Unlock()
		b := c.m.members.hot.all[key]
		return b != nil && !b.calm.IsZero()
	})
	c.clock.advance(time.Minute)
	until("it is not hot any more", func(hot []*api.HotBlock) bool { return len(hot) == 0 })
}
