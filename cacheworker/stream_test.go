package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/ufs"
)

// sink is a Responder that keeps what it is given.
type sink struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (s *sink) Write(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got.Write(p)
	return nil
}

func (s *sink) SendFile(f blockio.FileSection, off, n int64) error {
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		return err
	}
	return s.Write(p)
}

func (s *sink) PageCRC(int64, uint32) {}

func (s *sink) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.got.Bytes())
}

// hold lets no request of the store that matches go on until the test ends or
// calls release; asked counts those that came.
func (s *fakeStore) hold(t *testing.T, matches func(path string) bool) (asked *atomic.Int64, release func()) {
	t.Helper()
	asked = new(atomic.Int64)
	open := make(chan struct{})
	release = sync.OnceFunc(func() { close(open) })
	t.Cleanup(release)
	s.setBefore(func(ctx context.Context, obj ufs.Object, e block.Extent) error {
		if !matches(obj.Path) {
			return nil
		}
		asked.Add(e.Length)
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return asked, release
}

func everything(string) bool { return true }

// TestAnswersWhileBytesArrive holds an answer of the under-store back after
// some pages: the reader has them already.
func TestAnswersWhileBytesArrive(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 4*mib)
	goOn := make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	const early = 5 * block.PageSize
	r.store.setStall(func(e block.Extent, given int64) {
		if e.Offset+given >= early {
			<-goOn
		}
	})
	f, err := r.w.Open(t.Context(), tk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := &sink{}
	done := make(chan error, 1)
	go func() { done <- f.Read(t.Context(), blockio.ReadRequest{Extent: tk.Geometry().Whole()}, to) }()
	eventually(t, "the first pages", func() bool { return int64(len(to.bytes())) == early })
	select {
	case err := <-done:
		t.Fatalf("the read ended early: %v", err)
	default:
	}
	release()
	if err := <-done; err != nil || !bytes.Equal(to.bytes(), r.store.data("f")) {
		t.Errorf("%d bytes, %v", len(to.bytes()), err)
	}
}

func TestAdjacentMissingPagesAreOneRequest(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.ReadaheadMax = 0 }})
	tk := r.store.put("f", "v1", 4*mib)
	r.mustRead(tk, block.Extent{Offset: mib + 5, Length: 10}) // one page
	r.fetched(1, block.PageSize)
	r.mustRead(tk, block.Extent{Length: 3 * mib}) // before it and behind it
	r.fetched(2, 3*mib-block.PageSize)
}

// TestReadAheadInFlight holds the under-store back while one reader reads in
// sequence: what is asked for by then is what it has in flight.
func TestReadAheadInFlight(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 256 * size.MiB})
	const length, step = 128 * mib, 128 << 10
	tk := r.store.putSparse("f", "v1", length)
	h := r.open(r.conn, tk)
	var off int64
	for ; off < 48*mib; off += step {
		if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: step}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "what is under way", func() bool { return r.store.open() == 0 })
	asked, release := r.store.hold(t, everything)
	done := make(chan error, 1)
	go func() {
		for ; off < 80*mib; off += step {
			if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: step}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	eventually(t, "8 MiB in flight for one reader", func() bool { return asked.Load() >= 8*mib })
	if n := asked.Load(); n > int64(DefaultConfig().ReadaheadMax)+2*mib {
		t.Errorf("%d bytes are asked for", n)
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if gets, n := r.store.fetched(); n > 98*mib || gets > 80 {
		t.Errorf("%d bytes in %d requests for 80 MiB", n, gets)
	}
}

// TestBytesInFlightAreBounded has many readers of many files at once.
func TestBytesInFlightAreBounded(t *testing.T) {
	const bound = 2 * mib
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.FetchSize, c.MaxInflightBytes = mib/2, bound }})
	var tickets []*block.Ticket
	for i := range 16 {
		tickets = append(tickets, r.store.put(string(rune('a'+i)), "v1", 2*mib))
	}
	asked, release := r.store.hold(t, everything)
	var g sync.WaitGroup
	for _, tk := range tickets {
		g.Go(func() {
			if err := r.read(r.conn, tk, r.open(r.conn, tk), tk.Geometry().Whole()); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "readers wait", func() bool {
		r.w.fetcher.inflight.mu.Lock()
		defer r.w.fetcher.inflight.mu.Unlock()
		return len(r.w.fetcher.inflight.waiters) > 30
	})
	if n := asked.Load(); n == 0 || n > bound {
		t.Errorf("%d bytes are in flight, the bound is %d", n, bound)
	}
	release()
	g.Wait()
	r.fetched(-1, 32*mib)
}

// TestReadsGoBeforeLoadsBeforeRepairs queues all three behind one request.
func TestReadsGoBeforeLoadsBeforeRepairs(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.FetchConcurrency = 1 }})
	first := r.store.put("first", "v1", 1000)
	names := []string{"repair", "load", "read"}
	var order []string
	var mu sync.Mutex
	started, goOn := make(chan struct{}), make(chan struct{})
	r.store.setBefore(func(_ context.Context, obj ufs.Object, _ block.Extent) error {
		if obj.Path == "first" {
			close(started)
			<-goOn
		}
		mu.Lock()
		defer mu.Unlock()
		order = append(order, obj.Path)
		return nil
	})
	var g sync.WaitGroup
	read := func(tk *block.Ticket, p blockio.Priority) {
		f, err := r.w.Open(t.Context(), tk)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if err := f.Read(t.Context(), blockio.ReadRequest{Extent: tk.Geometry().Whole(), Priority: p}, &sink{}); err != nil {
			t.Error(err)
		}
	}
	g.Go(func() { read(first, blockio.PriorityRead) })
	<-started
	for i, name := range names {
		tk := r.store.put(name, "v1", 1000)
		g.Go(func() {
			switch name {
			case "load":
				if _, _, err := r.w.loader.Load(t.Context(), tk, tk.Geometry().Whole()); err != nil {
					t.Error(err)
				}
			case "repair":
				read(tk, blockio.PriorityRepair)
			default:
				read(tk, blockio.PriorityRead)
			}
		})
		eventually(t, name+" waits", func() bool {
			r.w.fetcher.inflight.mu.Lock()
			defer r.w.fetcher.inflight.mu.Unlock()
			return len(r.w.fetcher.inflight.waiters) == i+1
		})
	}
	close(goOn)
	g.Wait()
	if len(order) != 4 || order[1] != "read" || order[2] != "load" || order[3] != "repair" {
		t.Errorf("they were fetched in the order %v", order)
	}
}

// TestFrozenStoreDelaysNobodyElse lets the server of one mount answer nothing
// any more while many read from it and load it.
func TestFrozenStoreDelaysNobodyElse(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) {
		c.FetchSize, c.MaxInflightBytes, c.FetchConcurrency = mib, 8*mib, 64
	}})
	table := testMounts(2)
	second := testMounts(1).GetMounts()[0]
	second.Id, second.Path = testMount+1, []byte("/other")
	table.Mounts = append(table.Mounts, second)
	if err := r.w.mounts.apply(table); err != nil {
		t.Fatal(err)
	}
	cached := r.store.put("frozen/cached", "v1", 2*mib)
	r.mustRead(cached, cached.Geometry().Whole())
	_, release := r.store.hold(t, func(path string) bool { return path[:6] == "frozen" })
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	for i := range 30 {
		tk := r.store.put("frozen/"+string(rune('a'+i)), "v1", 4*mib)
		h := r.open(r.conn, tk)
		g.Go(func() { _, _ = r.conn.ReadAt(ctx, h, make([]byte, tk.Length), 0, blockio.ReadOptions{}) })
	}
	eventually(t, "readers of the frozen mount wait", func() bool {
		r.w.fetcher.inflight.mu.Lock()
		defer r.w.fetcher.inflight.mu.Unlock()
		return len(r.w.fetcher.inflight.waiters) > 30
	})
	r.mustRead(cached, cached.Geometry().Whole())
	for i := range 3 {
		tk := r.store.put("well/"+string(rune('a'+i)), "v1", 5*mib)
		tk.MountID = testMount + 1
		tk.FileID = tk.Derive()
		r.mustRead(tk, tk.Geometry().Whole())
	}
	cancel()
	g.Wait() // its readers can give up
	release()
}

// TestFrozenStoreDoesNotHoldTheStop has a request that cannot be canceled.
func TestFrozenStoreDoesNotHoldTheStop(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.DrainTimeout = size.Duration(10 * time.Millisecond) }})
	tk := r.store.put("f", "v1", mib)
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error {
		once.Do(func() { close(asked) })
		<-goOn
		return errs.Unavailable
	})
	h := r.open(r.conn, tk)
	read := make(chan error, 1)
	go func() { read <- r.read(r.conn, tk, h, tk.Geometry().Whole()) }()
	<-asked
	r.stop() // the deadline of the test says if not
	if err := <-read; err == nil {
		t.Error("a read succeeded without its bytes")
	}
	close(goOn)
	r.w.fetcher.crew.working.Wait()
	r.w.mounts.retiring.Wait()
}

func TestFullColdReadFetchesEachByteOnce(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 512 * size.MiB})
	const length, step = 100*mib + 4321, 128 << 10
	tk := r.store.putSparse("f", "v1", length)
	h := r.open(r.conn, tk)
	for off := int64(0); off < length; off += step {
		if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: min(step, length-off)}); err != nil {
			t.Fatal(err)
		}
	}
	gets, n := r.store.fetched()
	if n > length*102/100 {
		t.Errorf("%d bytes were fetched of %d", n, int64(length))
	}
	if gets > 50 {
		t.Errorf("%d requests", gets)
	}
}

// TestRandomSmallReadsOfABigFile is 1,000 aligned reads of 4 KiB of a file of
// 1 GiB that is not cached: each fetches its page and nothing else.
func TestRandomSmallReadsOfABigFile(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 256 * size.MiB})
	const length, reads = 1 << 30, 1000
	tk := r.store.putSparse("f", "v1", length)
	h := r.open(r.conn, tk)
	rng := rand.New(rand.NewPCG(11, 12))
	for range reads {
		if err := r.read(r.conn, tk, h, block.Extent{Offset: rng.Int64N(length/4096) * 4096, Length: 4096}); err != nil {
			t.Fatal(err)
		}
	}
	if gets, n := r.store.fetched(); gets > reads || n > reads*block.PageSize {
		t.Errorf("%d bytes in %d requests, which are %d pages, for %d reads", n, gets, n/block.PageSize, reads)
	}
}

// TestUnkeptReadersShare reads what cannot be kept with many readers at once,
// one of which gives up.
func TestUnkeptReadersShare(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 200<<10)
	tk.Unsettled = true
	asked, release := r.store.hold(t, everything)
	const readers = 8
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	read := make(chan error, readers)
	h := r.open(r.conn, tk)
	go func() {
		_, err := r.conn.ReadAt(ctx, h, make([]byte, tk.Length), 0, blockio.ReadOptions{})
		gone <- err
	}()
	eventually(t, "the first asks", func() bool { return asked.Load() > 0 })
	for range readers {
		go func() { read <- r.read(r.conn, tk, h, block.Extent{Offset: 1000, Length: 100_000}) }()
	}
	eventually(t, "all share", func() bool {
		r.w.fetcher.mu.Lock()
		defer r.w.fetcher.mu.Unlock()
		all := r.w.fetcher.loose[tk.FileID]
		return len(all) == 1 && all[0].refs == readers+2
	})
	cancel()
	if err := <-gone; !errors.Is(err, errs.Canceled) {
		t.Errorf("the one that gave up got %v", err)
	}
	release()
	for range readers {
		if err := <-read; err != nil {
			t.Error(err)
		}
	}
	r.fetched(1, tk.Length)
	// When all give up, so does the request.
	canceled := make(chan struct{})
	began := make(chan struct{})
	r.store.setBefore(func(ctx context.Context, _ ufs.Object, _ block.Extent) error {
		close(began)
		<-ctx.Done()
		close(canceled)
		return ctx.Err()
	})
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		_, err := r.conn.ReadAt(ctx, h, make([]byte, 10), 0, blockio.ReadOptions{})
		gone <- err
	}()
	<-began
	cancel()
	if err := <-gone; !errors.Is(err, errs.Canceled) {
		t.Errorf("the last one that gave up got %v", err)
	}
	<-canceled
	eventually(t, "nothing is left", func() bool {
		r.w.fetcher.mu.Lock()
		defer r.w.fetcher.mu.Unlock()
		return len(r.w.fetcher.loose) == 0
	})
}
