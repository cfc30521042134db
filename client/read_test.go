package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
)

func open(t *testing.T, c *Client, p string) *File {
	t.Helper()
	f, err := c.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReadAt(t *testing.T) {
	c := newCluster(t, 1)
	ticket := c.master.addFile("/x", "1", 20<<20+77, 4<<20, time.Time{})
	want := bytesOf(ticket)
	f := open(t, c.dial(t), "/x")
	if f.Size() != ticket.Length || f.Entry().Path != "/x" {
		t.Error(f.Size(), f.Entry())
	}
	for _, r := range [][2]int64{
		{0, 1},
		{0, int64(len(want))},
		{0, int64(len(want)) + 1},
		{int64(len(want)) - 1, 1},
		{int64(len(want)) - 1, 2},
		{block.PageSize - 1, 2},
		{3, 15 << 20},
		{4<<20 - 1, 4<<20 + 2},
	} {
		check(t, f, want, r[0], r[1])
	}
	if n, err := f.ReadAt(make([]byte, 1), f.Size()); n != 0 || !errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
	if n, err := f.ReadAt(nil, f.Size()); n != 0 || err != nil {
		t.Error(n, err)
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	whole, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<62))
	if err != nil || !bytes.Equal(whole, want) {
		t.Error(len(whole), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

func TestReadersInParallel(t *testing.T) {
	c := newCluster(t, 3)
	c.master.tell(func(m *api.Membership) { m.Placement.WholeFileLimit = 1 << 20 })
	ticket := c.master.addFile("/x", "1", 13<<20+5, 1<<20, time.Time{})
	want := bytesOf(ticket)
	f := open(t, c.dial(t), "/x")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			for range 12 {
				off := rnd.Int64N(ticket.Length)
				check(t, f, want, off, rnd.Int64N(min(3<<20, ticket.Length-off)))
			}
		})
	}
	wg.Wait()
	for _, w := range c.workers {
		if w.reads.Load() == 0 {
			t.Errorf("%s was never asked: blocks do not spread", w.id)
		}
	}
}

func TestKnownEntryNeedsNoMaster(t *testing.T) {
	c := newCluster(t, 1)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Now().Add(time.Hour))
	cl := c.dial(t)
	e, err := cl.Stat(t.Context(), "/x", StatOptions{WithTicket: true})
	if err != nil {
		t.Fatal(err)
	}
	asked := c.master.calls.Load()
	for range 5 {
		f, err := cl.OpenEntry(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		check(t, f, bytesOf(ticket), 0, 100)
		f.Close()
	}
	if n := c.master.calls.Load() - asked; n != 0 {
		t.Errorf("%d calls to the master", n)
	}
	if n := c.workers[0].opens.Load(); n != 1 { // a small file stays on one connection
		t.Errorf("registered %d times", n)
	}
	// Open by path: within the answer's validity the master is asked once.
	for range 3 {
		open(t, cl, "/x").Close()
	}
	if n := c.master.calls.Load() - asked; n != 1 {
		t.Errorf("%d calls to the master", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	c := newCluster(t, 1)
	c.master.addFile("/x", "2", 1<<20, 1<<20, time.Time{})
	c.master.set(func() {
		c.master.files["/d"] = &api.Entry{Path: []byte("/d"), Type: api.FileType_FILE_TYPE_DIR}
	})
	cl := c.dial(t)
	if _, err := cl.Open(t.Context(), "/d"); !errors.Is(err, errs.IsDir) {
		t.Error(err)
	}
	if _, err := cl.Open(t.Context(), "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	other := &Entry{Path: "/x", FileID: block.FileID{1}}
	if _, err := cl.OpenEntry(t.Context(), other); !errors.Is(err, errs.Stale) {
		t.Error(err)
	}
}

func TestNextOwner(t *testing.T) {
	for _, kind := range []errs.Kind{errs.Unavailable, errs.Corrupt, errs.Throttled, errs.Internal} {
		t.Run(kind.String(), func(t *testing.T) {
			c := newCluster(t, 3)
			ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
			first, second := c.workers[c.owner(ticket, 0, 0)], c.workers[c.owner(ticket, 0, 1)]
			first.failWith(func(*block.Ticket, block.Extent) error { return errs.E(kind, "read", "", nil) })
			f := open(t, c.dial(t), "/x")
			for range 5 {
				check(t, f, bytesOf(ticket), 0, 1<<20)
			}
			if a, b := first.reads.Load(), second.reads.Load(); a == 0 || b != 5 {
				t.Errorf("%d reads of the first owner, %d of the second", a, b)
			}
		})
	}
}

// TestMoreOwnersAreTried: a read does not stay with owners that fail.
func TestMoreOwnersAreTried(t *testing.T) {
	c := newCluster(t, 4)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	for n := range 3 {
		c.stops[c.owner(ticket, 0, n)]()
	}
	f := open(t, c.dial(t, func(cfg *Config) { cfg.Owners = 1 }), "/x")
	check(t, f, bytesOf(ticket), 0, 1<<20)
}

func TestOrderOfOwners(t *testing.T) {
	m := membershipOf(&api.Membership{Placement: &api.Placement{Workers: []*api.PlacedWorker{
		{Id: "a", Weight: 1}, {Id: "b", Weight: 1}, {Id: "c", Weight: 1}, {Id: "d", Weight: 1}, {Id: "unknown", Weight: 1},
	}}})
	key := block.Key{File: block.FileID{3}}
	var order []block.WorkerID
	for _, id := range m.placement.Owners(key, 1, 5) {
		if id != "unknown" {
			order = append(order, id)
			m.members[id] = member{id: id, state: "live"}
		}
	}
	ids := func(doubtful ...block.WorkerID) []block.WorkerID {
		var got []block.WorkerID
		for _, w := range m.owners(key, 1, 5, func(id block.WorkerID) bool { return slices.Contains(doubtful, id) }, false) {
			got = append(got, w.id)
		}
		return got
	}
	if diff := cmp.Diff(order, ids()); diff != "" {
		t.Error(diff)
	}
	// One that failed a moment ago comes last, one that is lost before it.
	m.members[order[1]] = member{id: order[1], state: "lost"}
	want := []block.WorkerID{order[2], order[3], order[1], order[0]}
	if diff := cmp.Diff(want, ids(order[0])); diff != "" {
		t.Error(diff)
	}
}

// TestReplicaComesFirst: the best worker of this host is asked before the
// owners, to keep a replica, unless the first owner is one of this host, and as
// long as it is likely to answer.
func TestReplicaComesFirst(t *testing.T) {
	m := membershipOf(&api.Membership{Placement: &api.Placement{Workers: []*api.PlacedWorker{
		{Id: "a", Weight: 1}, {Id: "b", Weight: 1}, {Id: "c", Weight: 1}, {Id: "d", Weight: 1},
	}}})
	key := block.Key{File: block.FileID{3}}
	order := m.placement.Owners(key, 1, 4)
	for _, id := range order {
		m.members[id] = member{id: id, state: "live"}
	}
	for name, tc := range map[string]struct {
		here     []int // in order
		doubtful []int
		lost     int
		want     []int
		replica  bool
	}{
		"nobody is here":          {nil, nil, -1, []int{0, 1}, false},
		"the owner is here":       {[]int{0, 3}, nil, -1, []int{0, 1}, false},
		"the last is here":        {[]int{3}, nil, -1, []int{3, 0, 1}, true},
		"the second owner is":     {[]int{1}, nil, -1, []int{1, 0}, true},
		"the better of two":       {[]int{3, 2}, nil, -1, []int{2, 0, 1}, true},
		"the better one failed":   {[]int{3, 2}, []int{2}, -1, []int{3, 0, 1}, true},
		"the one that is is lost": {[]int{3}, nil, 3, []int{0, 1}, false},
	} {
		is := func(list []int, id block.WorkerID) bool {
			return slices.ContainsFunc(list, func(i int) bool { return order[i] == id })
		}
		v := &membership{placement: m.placement, members: maps.Clone(m.members)}
		if tc.lost >= 0 {
			v.members[order[tc.lost]] = member{id: order[tc.lost], state: "lost"}
		}
		v.find(func(w *member) bool { return is(tc.here, w.id) })
		got := v.owners(key, 1, 2, func(id block.WorkerID) bool { return is(tc.doubtful, id) }, true)
		var ids, want []block.WorkerID
		for i, w := range got {
			ids = append(ids, w.id)
			if w.replica != (tc.replica && i == 0) {
				t.Errorf("%s: number %d keeps a replica: %v", name, i, w.replica)
			}
		}
		for _, i := range tc.want {
			want = append(want, order[i])
		}
		if diff := cmp.Diff(want, ids); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDeadAndSuspectOwners(t *testing.T) {
	c := newCluster(t, 3)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	first := c.owner(ticket, 0, 0)
	c.stops[first]()
	f := open(t, c.dial(t), "/x")
	check(t, f, bytesOf(ticket), 5, 1000)

	// One that the masters call suspect is not asked first.
	second := c.owner(ticket, 0, 1)
	before := c.workers[second].reads.Load()
	c.master.tell(func(m *api.Membership) {
		m.Workers = nil
		for i, w := range c.workers {
			state := "live"
			if i == second || i == first {
				state = "suspect"
			}
			m.Workers = append(m.Workers, w.info(state))
		}
	})
	for {
		if m, _ := f.c.members.now(); m.placement.Epoch == c.master.membership.GetPlacement().GetEpoch() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	check(t, f, bytesOf(ticket), 5, 1000)
	if n := c.workers[second].reads.Load(); n != before {
		t.Error("a suspect worker was asked")
	}
}

func TestErrorsOfTheFileSurface(t *testing.T) {
	c := newCluster(t, 2)
	c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	f := open(t, c.dial(t), "/x")
	for kind, want := range map[errs.Kind]errs.Kind{
		errs.Stale: errs.Stale, errs.NotFound: errs.Stale, errs.Permission: errs.Permission,
	} {
		for _, w := range c.workers {
			w.failWith(func(*block.Ticket, block.Extent) error { return errs.E(kind, "fetch", "", nil) })
		}
		if n, err := f.ReadAtContext(t.Context(), make([]byte, 10), 0); n != 0 || !errors.Is(err, want) {
			t.Errorf("%v: %d, %v", kind, n, err)
		}
	}
}

// A version that a worker found gone is asked about at the under-store, once.
func TestGoneVersionIsLookedAt(t *testing.T) {
	c := newCluster(t, 1)
	c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	cl := c.dial(t)
	f := open(t, cl, "/x")
	c.workers[0].failWith(func(*block.Ticket, block.Extent) error { return errs.E(errs.Stale, "fetch", "", nil) })
	if _, err := f.ReadAt(make([]byte, 10), 0); !errors.Is(err, errs.Stale) {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := cl.Stat(t.Context(), "/x", StatOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.master.mu.Lock()
	defer c.master.mu.Unlock()
	if diff := cmp.Diff([]string{"/x"}, c.master.looks); diff != "" {
		t.Errorf("paths looked at (-want +got):\n%s", diff)
	}
}

// A worker that does not answer is named, also where the time of the attempt
// ends with that of the read.
func TestSilentWorkerIsNamed(t *testing.T) {
	c := newCluster(t, 1)
	c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	f := open(t, c.dial(t), "/x")
	silent := make(chan struct{})
	defer close(silent)
	c.workers[0].failWith(func(*block.Ticket, block.Extent) error {
		<-silent
		return errs.Unavailable
	})
	until := time.Now().Add(50 * time.Millisecond)
	ctx, cancel := context.WithDeadline(t.Context(), until)
	defer cancel()
	err := f.readSlowly(ctx, until, &piece{key: block.Key{File: f.entry.FileID}, p: make([]byte, 10)}, false, nil)
	if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "no answer within") || !strings.Contains(err.Error(), string(c.workers[0].id)) {
		t.Error(err)
	}
}

func TestReadsWaitForAWorker(t *testing.T) {
	c := newCluster(t, 1)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	f := open(t, c.dial(t), "/x")
	check(t, f, bytesOf(ticket), 0, 10)
	addr := c.workers[0].tcp
	c.stops[0]()
	done := make(chan error, 1)
	go func() {
		p := make([]byte, 10)
		_, err := f.ReadAt(p, 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatal("the read did not wait: ", err)
	case <-time.After(200 * time.Millisecond):
	}
	c.workers[0].serve(t, addr, "") // it is back, and the file is registered anew
	if err := <-done; err != nil {
		t.Error(err)
	}
	check(t, f, bytesOf(ticket), 0, 1<<20)

	// It may also come back at another address.
	c.stops = nil
	moved := &fakeWorker{id: c.workers[0].id, bootID: "elsewhere"}
	moved.serve(t, "", "")
	c.workers[0] = moved
	c.announce()
	for moved.reads.Load() == 0 {
		check(t, f, bytesOf(ticket), 0, 10)
	}
}

func TestReadsGiveUp(t *testing.T) {
	c := newCluster(t, 1)
	c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	cl := c.dial(t, func(c *Config) { c.ReadRetryFor = size.Duration(300 * time.Millisecond) })
	f := open(t, cl, "/x")
	c.stops[0]()
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.ReadAtContext(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// No worker at all.
	c.workers = nil
	c.announce()
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

func TestSlowWorkerIsPassedOver(t *testing.T) {
	c := newCluster(t, 2)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	release := make(chan struct{})
	defer close(release)
	c.workers[c.owner(ticket, 0, 0)].failWith(func(*block.Ticket, block.Extent) error { <-release; return nil })
	f := open(t, c.dial(t, func(c *Config) { c.ReadTimeout = size.Duration(100 * time.Millisecond) }), "/x")
	check(t, f, bytesOf(ticket), 0, 1000)
}

func TestSameHostUsesTheSocket(t *testing.T) {
	boot := (&Config{}).hostID()
	if boot == "" {
		t.Skip("SKIPPED, NOT TESTED: no boot ID")
	}
	c := newCluster(t, 0)
	w := &fakeWorker{id: "w", bootID: boot}
	stop := w.serve(t, "", socketPath(t))
	tcp := w.tcp
	w.tcp = "127.0.0.1:1" // nobody is there
	c.workers = []*fakeWorker{w}
	c.announce()
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	f := open(t, c.dial(t), "/x")
	check(t, f, bytesOf(ticket), 0, 1000)

	// Without the socket's file, as in a container, it is TCP.
	stop()
	w.serve(t, tcp, "")
	w.unix = "/nonexistent/socket"
	c.announce()
	f2 := open(t, c.dial(t), "/x")
	check(t, f2, bytesOf(ticket), 0, 1000)
}

func TestWrongWorkerAtTheAddress(t *testing.T) {
	c := newCluster(t, 2)
	ticket := c.master.addFile("/x", "1", 1000, 1<<20, time.Time{})
	first, second := c.owner(ticket, 0, 0), c.owner(ticket, 0, 1)
	c.workers[first].tcp = c.workers[second].tcp
	c.announce()
	f := open(t, c.dial(t), "/x")
	check(t, f, bytesOf(ticket), 0, 1000)
	if c.workers[second].reads.Load() != 1 {
		t.Error("the wrong worker was read as the first owner")
	}
}

func TestTicketIsRenewed(t *testing.T) {
	c := newCluster(t, 1)
	soon := time.Now().Add(renewBefore / 2)
	ticket := c.master.addFile("/x", "1", 1000, 1<<20, soon)
	f := open(t, c.dial(t), "/x")
	later := time.Now().Add(2 * time.Hour)
	c.master.addFile("/x", "1", 1000, 1<<20, later)
	check(t, f, bytesOf(ticket), 0, 1000)
	for f.ticket.Load().Expiry.Before(soon.Add(time.Minute)) {
		time.Sleep(time.Millisecond)
	}
	check(t, f, bytesOf(ticket), 0, 1000)
	if n := c.master.calls.Load(); n != 2 {
		t.Errorf("%d calls to the master", n)
	}
}

func TestTicketOfAVersionThatIsGone(t *testing.T) {
	c := newCluster(t, 1)
	ticket := c.master.addFile("/x", "1", 1000, 1<<20, time.Now().Add(renewBefore/2))
	f := open(t, c.dial(t), "/x")
	c.master.addFile("/x", "2", 1000, 1<<20, time.Now().Add(2*time.Hour))
	check(t, f, bytesOf(ticket), 0, 1000)
	for !f.replaced.Load() {
		time.Sleep(time.Millisecond)
	}
	check(t, f, bytesOf(ticket), 0, 1000) // while the old ticket is valid
	past := *f.ticket.Load()
	past.Expiry = time.Now().Add(-time.Hour)
	f.ticket.Store(&past)
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, errs.Stale) {
		t.Error(err)
	}
}

func TestIdleHandlesAreBounded(t *testing.T) {
	c := newCluster(t, 1)
	cl := c.dial(t, func(c *Config) { c.IdleHandles, c.TCPConnections = 3, 1 })
	var files []*File
	for i := range 10 {
		p := fmt.Sprint("/f", i)
		ticket := c.master.addFile(p, "1", 1000, 1<<20, time.Time{})
		f := open(t, cl, p)
		files = append(files, f)
		check(t, f, bytesOf(ticket), 0, 1000)
	}
	w := c.workers[0]
	for w.closes.Load() < 7 {
		time.Sleep(time.Millisecond)
	}
	if w.opens.Load() != 10 || w.closes.Load() != 7 {
		t.Errorf("%d opens, %d closes", w.opens.Load(), w.closes.Load())
	}
	check(t, files[9], bytesOf(files[9].ticket.Load()), 0, 10)
	if w.opens.Load() != 10 {
		t.Error("an idle handle was not used again")
	}
	check(t, files[0], bytesOf(files[0].ticket.Load()), 0, 10) // and one that was closed opens again
}

func TestFirstReadWaitsForTheMembership(t *testing.T) {
	c := newCluster(t, 1)
	ticket := c.master.addFile("/x", "1", 1000, 1<<20, time.Time{})
	addr := c.master.addr
	late := newFakeMaster()
	late.membership, late.files = c.master.membership, c.master.files
	cl := dial(t, []string{"127.0.0.1:1", addr})
	check(t, open(t, cl, "/x"), bytesOf(ticket), 0, 1000)
}

func TestMembershipIsFollowedOverMasters(t *testing.T) {
	first := newFakeMaster()
	stop := first.serve(t, "127.0.0.1:0")
	cl := dial(t, []string{first.addr})
	var last atomic.Uint64
	epoch := func(want uint64) {
		t.Helper()
		for last.Load() != want {
			m, _, err := cl.members.wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			last.Store(m.placement.Epoch)
			time.Sleep(time.Millisecond)
		}
	}
	epoch(1)
	first.tell(func(*api.Membership) {})
	epoch(2)
	stop()
	second := newFakeMaster()
	second.membership = first.membership
	second.serve(t, first.addr)
	second.tell(func(*api.Membership) {})
	epoch(3)
	// A master that lags behind does not take the client back.
	cl.members.take(membershipOf(&api.Membership{ClusterId: "c", Placement: &api.Placement{Epoch: 1}}))
	epoch(3)
}

// TestRefusedTicketIsRenewedOnce has a worker whose clock says that a ticket
// is over which by ours is not.
func TestRefusedTicketIsRenewedOnce(t *testing.T) {
	c := newCluster(t, 1)
	end := time.Now().Add(2 * time.Hour)
	old := c.master.addFile("/x", "1", 1000, 1<<20, end)
	cl := c.dial(t)
	f := open(t, cl, "/x")
	defer f.Close()
	over := errs.E(errs.Permission, "", "", errors.New("the ticket expired"))
	c.workers[0].failWith(func(k *block.Ticket, _ block.Extent) error {
		if !k.Expiry.After(old.Expiry) {
			return over
		}
		return nil
	})
	p := make([]byte, 1000)
	// The master gives none that is better: the refusal stands.
	asked, reads := c.master.calls.Load(), c.workers[0].reads.Load()
	if _, err := f.ReadAt(p, 0); !errors.Is(err, errs.Permission) {
		t.Fatal(err)
	}
	if n := c.master.calls.Load() - asked; n != 1 {
		t.Errorf("the master was asked %d times for a better ticket", n)
	}
	if n := c.workers[0].reads.Load() - reads; n != 1 {
		t.Errorf("the worker was asked %d times with one ticket", n)
	}
	// It does: the read goes on with that.
	c.master.addFile("/x", "1", 1000, 1<<20, end.Add(time.Hour))
	asked = c.master.calls.Load()
	check(t, f, bytesOf(old), 0, 1000)
	check(t, f, bytesOf(old), 0, 1000)
	if n := c.master.calls.Load() - asked; n != 1 {
		t.Errorf("the master was asked %d times", n)
	}
	// Another version is another file.
	c.workers[0].failWith(func(*block.Ticket, block.Extent) error { return over })
	c.master.addFile("/x", "2", 1000, 1<<20, end.Add(3*time.Hour))
	if _, err := f.ReadAt(p, 0); !errors.Is(err, errs.Permission) {
		t.Fatal(err)
	}
}

// TestPermissionWithoutExpiry checks that the under-store's refusal is not
// taken for that of a ticket which never ends.
func TestPermissionWithoutExpiry(t *testing.T) {
	c := newCluster(t, 1)
	c.master.addFile("/x", "1", 1000, 1<<20, time.Time{})
	f := open(t, c.dial(t), "/x")
	defer f.Close()
	c.workers[0].failWith(func(*block.Ticket, block.Extent) error { return errs.E(errs.Permission, "", "", nil) })
	asked := c.master.calls.Load()
	if _, err := f.ReadAt(make([]byte, 10), 0); !errors.Is(err, errs.Permission) {
		t.Fatal(err)
	}
	if n := c.master.calls.Load() - asked; n != 0 {
		t.Errorf("the master was asked %d times", n)
	}
}

// TestAttempt checks that an attempt ends with its deadline and its parent,
// and that one which ended so is not used again.
func TestAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool attempts
		quiet := pool.begin(t.Context(), time.Now().Add(time.Second))
		quiet.end()
		if quiet.Err() != nil {
			t.Error(quiet.Err())
		}
		late := pool.begin(t.Context(), time.Now().Add(time.Second))
		<-late.Done()
		if !errors.Is(late.Err(), context.DeadlineExceeded) {
			t.Error(late.Err())
		}
		late.end()
		ctx, cancel := context.WithCancel(t.Context())
		orphan := pool.begin(ctx, time.Now().Add(time.Hour))
		if orphan == late {
			t.Error("an attempt that ended was used again")
		}
		cancel()
		<-orphan.Done()
		if !errors.Is(orphan.Err(), context.Canceled) {
			t.Error(orphan.Err())
		}
		orphan.end()
		// What is derived ends too.
		base := pool.begin(t.Context(), time.Now().Add(time.Second))
		child, stop := context.WithTimeout(base, time.Hour)
		<-child.Done()
		stop()
		base.end()
	})
}

// TestAttemptsAllocateNothing is about the context of each read. The race
// detector makes pools forget some of what they are given.
func TestAttemptsAllocateNothing(t *testing.T) {
	var pool attempts
	endless, until := context.WithoutCancel(t.Context()), time.Now().Add(time.Hour)
	if n := testing.AllocsPerRun(1000, func() { pool.begin(endless, until).end() }); n >= 3 {
		t.Errorf("%v allocations for each attempt", n)
	}
}
