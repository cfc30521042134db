package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/doubt"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// stuck is a worker that takes reads and answers them only when it is told to.
type stuck struct {
	began, ended atomic.Int64
	release      chan struct{} // closed: it answers
	fail         error         // its answer, if it is set
}

type stuckFile struct {
	s *stuck
	t *block.Ticket
}

func (s *stuck) Open(_ context.Context, t *block.Ticket) (blockio.File, error) {
	return &stuckFile{s, t}, nil
}

func (f *stuckFile) Read(ctx context.Context, req blockio.ReadRequest, r blockio.Responder) error {
	f.s.began.Add(1)
	defer f.s.ended.Add(1)
	select {
	case <-f.s.release:
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.s.fail != nil {
		return f.s.fail
	}
	p := make([]byte, req.Extent.Length)
	fill(p, f.t.FileID, req.Extent.Offset)
	return r.Write(p)
}

func (f *stuckFile) Close() error { return nil }

// stuckCluster is a cluster of two whose owner of a file of one block is stuck.
func stuckCluster(t *testing.T) (s *stuck, other *fakeWorker, cl *Client, ticket *block.Ticket) {
	t.Helper()
	c := newCluster(t, 3)
	ticket = c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	s = &stuck{release: make(chan struct{})}
	old := c.workers[c.owner(ticket, 0, 0)]
	owner := &fakeWorker{id: old.id, handler: s}
	owner.serve(t, "", "")
	c.workers[c.owner(ticket, 0, 0)] = owner
	c.announce()
	return s, c.workers[c.owner(ticket, 0, 1)], c.dial(t), ticket
}

// TestSlowReadsAreHedged: the next owner has the bytes, the slow one is told
// to stop, and after a few times is not asked first any more.
func TestSlowReadsAreHedged(t *testing.T) {
	s, other, cl, ticket := stuckCluster(t)
	f := open(t, cl, "/x")
	want := bytesOf(ticket)
	for i := range doubt.LostInARow {
		check(t, f, want, int64(i), 1<<20-int64(i))
		if n := other.reads.Load(); int(n) != i+1 {
			t.Fatalf("%d reads of the other worker, want %d", n, i+1)
		}
	}
	if b, w := cl.hedgesBegun.Load(), cl.hedgesWon.Load(); b != doubt.LostInARow || w != doubt.LostInARow {
		t.Errorf("%d hedges begun, %d won, want %d", b, w, doubt.LostInARow)
	}
	for s.ended.Load() != doubt.LostInARow {
		time.Sleep(time.Millisecond) // for the slow worker to hear that nobody waits
	}
	check(t, f, want, 0, 1<<20)
	if n := s.began.Load(); n != doubt.LostInARow {
		t.Errorf("%d reads of the slow worker, want %d", n, doubt.LostInARow)
	}
}

// TestHedgesNeedABudget: without one a slow read waits for its worker, unless
// that is in doubt.
func TestHedgesNeedABudget(t *testing.T) {
	s, other, cl, ticket := stuckCluster(t)
	f := open(t, cl, "/x")
	cl.hedges.share = 0
	cl.hedges.saved.Store(wholeHedge - 1)
	cl.hedges.helping.Store(mostHedges)
	var g sync.WaitGroup
	read := func() {
		g.Go(func() { check(t, f, bytesOf(ticket), 0, 1<<20) })
	}
	read()
	x := func() *worker {
		cl.workers.mu.Lock()
		defer cl.workers.mu.Unlock()
		for _, x := range cl.workers.byID {
			return x
		}
		return nil
	}
	for s.began.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(2 * slowUnknown) // it has looked and found no budget, or will: neither is a hedge
	if n := other.reads.Load(); n != 0 {
		t.Errorf("%d hedges without a budget", n)
	}
	x().doubt.Failed()
	g.Wait() // its worker is in doubt: the other one is asked all the same
	if n := other.reads.Load(); n != 1 {
		t.Errorf("%d reads of the other worker, want 1", n)
	}
}

// TestStuckReadsNeedNone: who has waited for long is helped, whatever the budget.
func TestStuckReadsNeedNone(t *testing.T) {
	_, other, cl, ticket := stuckCluster(t)
	f := open(t, cl, "/x")
	cl.hedges.share = 0
	cl.hedges.saved.Store(0)
	check(t, f, bytesOf(ticket), 0, 1<<20)
	if n := other.reads.Load(); n != 1 {
		t.Errorf("%d reads of the other worker, want 1", n)
	}
	if n := cl.hedges.helping.Load(); n != 0 {
		t.Errorf("%d are being helped still", n)
	}
}

// TestSlowReadThatAnswers: who was slow and answers first wins, and the other
// read is given up.
func TestSlowReadThatAnswers(t *testing.T) {
	s, other, cl, ticket := stuckCluster(t)
	began := make(chan struct{})
	hold := make(chan struct{})
	other.failWith(func(*block.Ticket, block.Extent) error {
		close(began)
		<-hold
		return errs.E(errs.Internal, "", "", nil)
	})
	go func() {
		<-began
		close(s.release)
	}()
	f := open(t, cl, "/x")
	check(t, f, bytesOf(ticket), 0, 1<<20)
	close(hold)
	if b, w := cl.hedgesBegun.Load(), cl.hedgesWon.Load(); b != 1 || w != 0 {
		t.Errorf("%d hedges begun, %d won", b, w)
	}
}

// TestHedgeThatFails: the other worker fails, and the slow one answers after
// all.
func TestHedgeThatFails(t *testing.T) {
	s, other, cl, ticket := stuckCluster(t)
	release := sync.OnceFunc(func() { close(s.release) })
	other.failWith(func(*block.Ticket, block.Extent) error {
		release()
		return errs.E(errs.Internal, "", "", nil)
	})
	f := open(t, cl, "/x")
	check(t, f, bytesOf(ticket), 0, 1<<20)
}

// TestSecondIsSlowToo: the third worker is asked, and both slow ones are told to
// stop.
func TestSecondIsSlowToo(t *testing.T) {
	c := newCluster(t, 4)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	s := &stuck{release: make(chan struct{})}
	for n := range 2 {
		i := c.owner(ticket, 0, n)
		w := &fakeWorker{id: c.workers[i].id, handler: s}
		w.serve(t, "", "")
		c.workers[i] = w
	}
	third := c.workers[c.owner(ticket, 0, 2)]
	c.announce()
	cl := c.dial(t)
	f := open(t, cl, "/x")
	for range doubt.LostInARow {
		check(t, f, bytesOf(ticket), 0, 1<<20)
	}
	for s.ended.Load() != 2*doubt.LostInARow {
		time.Sleep(time.Millisecond) // for the slow workers to hear that nobody waits
	}
	check(t, f, bytesOf(ticket), 0, 1<<20)
	if n := s.began.Load(); n != 2*doubt.LostInARow {
		t.Errorf("%d reads of the slow workers, want %d", n, 2*doubt.LostInARow)
	}
	if b, w, n := cl.hedgesBegun.Load(), cl.hedgesWon.Load(), third.reads.Load(); b != 2*w || w != doubt.LostInARow || n != w+1 {
		t.Errorf("%d hedges begun, %d won, %d reads of the third worker", b, w, n)
	}
}

// TestSilentWorkersAreLeft: whom nothing is heard of any more does not hold a
// read, whatever the budget and however many workers are tried for a block.
func TestSilentWorkersAreLeft(t *testing.T) {
	c := newCluster(t, 5)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	const silent = 3
	for n := range silent {
		i := c.owner(ticket, 0, n)
		c.workers[i] = &fakeWorker{id: c.workers[i].id, tcp: blackHole(t)}
	}
	c.announce()
	cl := c.dial(t, func(cfg *Config) { cfg.Owners, cfg.HedgeShare = 2, 0 })
	cl.hedges.helping.Store(mostHedges)
	f := open(t, cl, "/x")
	check(t, f, bytesOf(ticket), 0, 1<<20)
	if b, w := cl.hedgesBegun.Load(), cl.hedgesWon.Load(); b != silent || w != 1 {
		t.Errorf("%d hedges begun, %d won, want %d and 1", b, w, silent)
	}
}

// firstOnly takes connections and carries the first one to an address, and none
// of the others anywhere.
func firstOnly(t *testing.T, to string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for n := 0; ; n++ {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			conns := []net.Conn{near}
			if n == 0 {
				far, err := net.Dial("tcp", to)
				if err != nil {
					t.Error(err)
					return
				}
				conns = append(conns, far)
				wg.Go(func() { _, _ = io.Copy(far, near) })
				wg.Go(func() { _, _ = io.Copy(near, far) })
			}
			mu.Lock()
			open = append(open, conns...)
			mu.Unlock()
		}
	})
	return ln.Addr().String()
}

// TestOthersAreAskedAnew: when all but a silent worker have failed, the read
// does not stay with that one.
func TestOthersAreAskedAnew(t *testing.T) {
	c := newCluster(t, 3)
	ticket := c.master.addFile("/x", "1", 1<<20, 1<<20, time.Time{})
	i := c.owner(ticket, 0, 0)
	frozen := &fakeWorker{id: c.workers[i].id, handler: &stuck{release: make(chan struct{})}}
	frozen.serve(t, "", "")
	frozen.tcp = firstOnly(t, frozen.tcp)
	c.workers[i] = frozen
	for n := 1; n < 3; n++ {
		var failed atomic.Bool
		c.workers[c.owner(ticket, 0, n)].failWith(func(*block.Ticket, block.Extent) error {
			if failed.CompareAndSwap(false, true) {
				return errs.E(errs.Unavailable, "", "", nil)
			}
			return nil
		})
	}
	c.announce()
	cl := c.dial(t, func(cfg *Config) { cfg.TCPConnections, cfg.ReadTimeout = 1, size.Duration(time.Hour) })
	check(t, open(t, cl, "/x"), bytesOf(ticket), 0, 1<<20)
}

// TestFirstFailsWhileOthersAreAsked: the read goes on at them.
func TestFirstFailsWhileOthersAreAsked(t *testing.T) {
	s, other, cl, ticket := stuckCluster(t)
	began, hold := make(chan struct{}), make(chan struct{})
	other.failWith(func(*block.Ticket, block.Extent) error {
		close(began)
		<-hold
		return nil
	})
	s.fail = errs.E(errs.Unavailable, "", "", nil)
	go func() {
		<-began
		close(s.release)
		for s.ended.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		close(hold)
	}()
	f := open(t, cl, "/x")
	check(t, f, bytesOf(ticket), 0, 1<<20)
	if b, w := cl.hedgesBegun.Load(), cl.hedgesWon.Load(); b != 1 || w != 1 {
		t.Errorf("%d hedges begun, %d won", b, w)
	}
}

func TestBudget(t *testing.T) {
	b := newBudget(0.05)
	spent := func() (n int) {
		for b.spend() {
			n++
		}
		return n
	}
	if n := spent(); n != mostHedges {
		t.Errorf("%d at the start, want %d", n, mostHedges)
	}
	for range 100 {
		b.earn()
	}
	if n := spent(); n != 5 {
		t.Errorf("%d after 100 reads, want 5", n)
	}
	for range 100_000 {
		b.earn()
	}
	if n := spent(); n != mostHedges {
		t.Errorf("%d after very many reads, want %d", n, mostHedges)
	}
	if newBudget(0).spend() {
		t.Error("a hedge where there are none")
	}
	for range mostHedges {
		if !b.help() {
			t.Error("too few are helped")
		}
	}
	if b.help() {
		t.Error("too many are helped")
	}
	b.helped()
	if !b.help() {
		t.Error("nobody is helped any more")
	}
}

func TestHistory(t *testing.T) {
	var h history
	small, large := 1000, 1<<20
	if d := h.slowAt(small); d != slowUnknown {
		t.Errorf("slow at %v before anything is known", d)
	}
	for range historyLength {
		h.note(small, time.Duration(rand.Int64N(int64(time.Second))))
	}
	if d := h.slowAt(small); d < 900*time.Millisecond || d > 1250*time.Millisecond {
		t.Errorf("slow at %v, where 5 %% take 0.95 s and more", d)
	}
	if d := h.slowAt(large); d != slowUnknown {
		t.Errorf("large reads are slow at %v", d)
	}
	for range 10 * historyLength { // what was long ago counts no more
		h.note(small, time.Millisecond)
	}
	if d := h.slowAt(small); d != slowLeast {
		t.Errorf("slow at %v, where all take 1 ms", d)
	}
	for range slowAfter {
		h.note(large, time.Hour)
	}
	if d := h.slowAt(large); d != slowMost {
		t.Errorf("slow at %v, where all take an hour", d)
	}
}

func TestHistoryRanges(t *testing.T) {
	var ends []time.Duration
	for i := range historyRanges {
		ends = append(ends, endOf(i))
	}
	if !slices.IsSorted(ends) {
		t.Errorf("ranges are not in order: %v", ends)
	}
	for range 10_000 {
		d := time.Duration(rand.Int64N(int64(30 * time.Second)))
		i := rangeOf(d)
		if d >= endOf(i) || i > 0 && d < endOf(i-1) {
			t.Errorf("%v is in range %d, which ends at %v", d, i, endOf(i))
		}
	}
	for _, d := range []time.Duration{-1, 0, 1<<63 - 1} {
		if i := rangeOf(d); i < 0 || i >= historyRanges {
			t.Errorf("%v is in range %d", d, i)
		}
	}
}

// TestWatchedReadAllocatesNothing: a read that is not slow costs a timer that
// is used again.
func TestWatchedReadAllocatesNothing(t *testing.T) {
	var pool attempts
	endless := context.WithoutCancel(t.Context())
	r := hedgedRead{from: &worker{}, p: make([]byte, 1)}
	until := time.Now().Add(time.Hour)
	failed := errors.New("failed")
	if n := testing.AllocsPerRun(1000, func() {
		a := pool.begin(endless, until)
		a.watch(r, until)
		if err := a.settle(failed); !errors.Is(err, failed) {
			t.Error(err)
		}
		a.end()
	}); n >= 3 {
		t.Errorf("%v allocations", n)
	}
}
