package client

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"millrace/api"
	"millrace/block"
)

// hotCluster is what a master says of five workers and one hot file.
func hotCluster(limit int64, index, servers uint32) (m *membership, key block.Key, order []block.WorkerID) {
	told := &api.Membership{
		Placement:  &api.Placement{WholeFileLimit: limit},
		Hot:        []*api.HotBlock{{FileId: make([]byte, 16), Index: index, Servers: servers}, {FileId: []byte("short"), Servers: 2}},
		HotValidMs: 30_000,
	}
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		told.Workers = append(told.Workers, &api.WorkerInfo{Id: id, State: "live"})
		told.Placement.Workers = append(told.Placement.Workers, &api.PlacedWorker{Id: id, Weight: 1})
	}
	m = membershipOf(told)
	key = block.Key{Index: 4}
	return m, key, m.placement.Owners(key, 100, 5)
}

// TestHotBlocksAreSpread draws each of those that serve a block about as often,
// and of these one that is of this host each time; who is no owner keeps a
// replica, and all others are next in the order that they were.
func TestHotBlocksAreSpread(t *testing.T) {
	for name, tc := range map[string]struct {
		limit    int64
		index    uint32
		servers  uint32
		here     []int // in order
		doubtful []int
		want     []int // those that may be first
	}{
		"a whole file":            {100, block.WholeFile, 3, nil, nil, []int{0, 1, 2}},
		"a block":                 {99, 4, 2, nil, nil, []int{0, 1}},
		"another block":           {99, 5, 3, nil, nil, []int{0}},
		"of another placement":    {99, block.WholeFile, 3, nil, nil, []int{0}},
		"more than there are":     {100, block.WholeFile, 1 << 31, nil, nil, []int{0, 1, 2, 3, 4}},
		"one of this host":        {100, block.WholeFile, 3, []int{2, 4}, nil, []int{2}},
		"the owner is here":       {100, block.WholeFile, 3, []int{0, 2}, nil, []int{0}},
		"only others are here":    {100, block.WholeFile, 2, []int{3}, nil, []int{0, 1}},
		"one of them failed":      {100, block.WholeFile, 3, nil, []int{1}, []int{0, 2}},
		"the owner failed":        {100, block.WholeFile, 3, nil, []int{0}, []int{1}},
		"it is not served by two": {100, block.WholeFile, 1, nil, nil, []int{0}},
	} {
		t.Run(name, func(t *testing.T) {
			m, key, order := hotCluster(tc.limit, tc.index, tc.servers)
			is := func(list []int, id block.WorkerID) bool { return slices.Contains(list, slices.Index(order, id)) }
			doubtful := func(id block.WorkerID) bool { return is(tc.doubtful, id) }
			m.find(func(w *member) bool { return is(tc.here, w.id) })
			count := make(map[int]int)
			for range 1000 {
				list := m.owners(key, 100, max(2, m.servers(key, 100)), doubtful, false)
				list = m.spread(list, key, 100, doubtful)
				first := slices.Index(order, list[0].id)
				count[first]++
				if keeps := first != 0 && !is(tc.doubtful, order[0]); list[0].replica != keeps {
					t.Fatalf("number %d keeps a replica: %v", first, list[0].replica)
				}
				rest := slices.DeleteFunc(m.owners(key, 100, len(list), doubtful, false), func(w member) bool { return w.id == list[0].id })
				if !slices.Equal(rest, list[1:]) {
					t.Fatalf("after number %d come %v, want %v", first, list[1:], rest)
				}
			}
			for _, i := range tc.want {
				if n := count[i]; n < 1000/len(tc.want)/2 {
					t.Errorf("number %d was first %d times", i, n)
				}
				delete(count, i)
			}
			if len(count) > 0 {
				t.Errorf("others were first: %v", count)
			}
		})
	}
}

// TestHotBlocksExpire when nothing is heard of them.
func TestHotBlocksExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, key, _ := hotCluster(100, block.WholeFile, 3)
		time.Sleep(30*time.Second - 1)
		if n := m.servers(key, 100); n != 3 {
			t.Errorf("%d workers serve it in time", n)
		}
		time.Sleep(time.Nanosecond)
		if n := m.servers(key, 100); n != 1 {
			t.Errorf("%d workers serve it after its time", n)
		}
	})
}

// TestReadsOfAHotFile: many readers of one file ask all that serve it, those
// that do not own it for a replica; when it is told not to be hot, the owner
// alone.
func TestReadsOfAHotFile(t *testing.T) {
	c := newCluster(t, 3)
	ticket := c.master.addFile("/x", "1", 64<<10, 1<<20, time.Time{})
	cl := c.dial(t, func(cfg *Config) { cfg.HedgeShare = 0 }) // whoever is slow
	readAll := func() (asked []bool) {
		t.Helper()
		var before []int64
		for _, w := range c.workers {
			before = append(before, w.reads.Load())
		}
		for range 64 { // each draws one: two thirds to the 64th that one is left out
			check(t, open(t, cl, "/x"), bytesOf(ticket), 0, 64<<10)
		}
		for i, w := range c.workers {
			asked = append(asked, w.reads.Load() > before[i])
		}
		return asked
	}
	tell := func(hot ...*api.HotBlock) {
		t.Helper()
		_, news := cl.members.now()
		c.master.tell(func(m *api.Membership) { m.Hot, m.HotValidMs = hot, time.Hour.Milliseconds() })
		<-news
	}
	owner := c.owner(ticket, 0, 0)
	only := []bool{false, false, false}
	only[owner] = true
	if asked := readAll(); !slices.Equal(asked, only) {
		t.Errorf("%v are asked before it is hot, want %v", asked, only)
	}
	tell(&api.HotBlock{FileId: ticket.FileID[:], Index: block.WholeFile, Servers: 3})
	if asked := readAll(); slices.Contains(asked, false) {
		t.Errorf("%v are asked for a hot file", asked)
	}
	for i, w := range c.workers {
		if replica := w.replicas.Load() > 0; replica != (i != owner) {
			t.Errorf("worker %d is to keep a replica: %v", i, replica)
		}
	}
	tell()
	if asked := readAll(); !slices.Equal(asked, only) {
		t.Errorf("%v are asked after it was hot, want %v", asked, only)
	}
}

// TestWhoIsAskedBesideAReplica: it may wait for the owner, so that the next one
// is asked where there is one.
func TestWhoIsAskedBesideAReplica(t *testing.T) {
	m, key, order := hotCluster(100, block.WholeFile, 1)
	m.find(func(w *member) bool { return w.id == order[4] })
	cfg := DefaultConfig()
	f := &File{
		c: &Client{
			cfg: cfg, workers: newWorkers(&cfg, "", slog.New(slog.DiscardHandler)),
			members: &members{cur: m}, hedges: newBudget(cfg.HedgeShare),
		},
		entry: &Entry{FileID: key.File, Size: 100},
	}
	f.ticket.Store(&block.Ticket{})
	began := time.Now()
	second := func(slow int) int {
		h := hedge{read: hedgedRead{f: f, key: key, from: &worker{member: member{id: order[slow]}}, began: began}}
		w, _, _ := h.next()
		if w == nil {
			return -1
		}
		return slices.Index(order, w.id)
	}
	if a, b, c := second(4), second(0), second(1); a != 1 || b != 4 || c != 4 {
		t.Errorf("beside the replica %d is asked, beside the owner %d, beside the next one %d; want 1, 4, 4", a, b, c)
	}
	for _, i := range []int{1, 2} {
		m.members[order[i]] = member{id: order[i], state: "lost"}
	}
	if a := second(4); a != 0 {
		t.Errorf("beside the replica %d is asked, want the owner when there is no other one", a)
	}
	m.members[order[0]] = member{id: order[0], state: "lost"}
	if a := second(4); a != -1 {
		t.Errorf("beside the replica %d is asked, of those that are lost", a)
	}
	began = began.Add(-slowMost)
	if a := second(4); a != 3 {
		t.Errorf("%d is asked after a long wait, want the next one that is alive, 3", a)
	}
	m.members[order[3]] = member{id: order[3], state: "lost"}
	if a := second(4); a != 0 {
		t.Errorf("%d is asked after a long wait, want the owner, though it is lost", a)
	}
}
