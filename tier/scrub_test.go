package tier

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/vfs"
)

// origin is the source of all test files.
type origin struct {
	mu    sync.Mutex
	err   error
	other bool // has other bytes
	asked int
}

func (o *origin) set(err error, other bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.other = err, other
}

func (o *origin) refetch(_ context.Context, f File, page int64) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	b := pageBytes(f, page)
	if o.other {
		b[len(b)/2] ^= 1
	}
	return b, o.err
}

// flip changes one byte of a page in its backing file.
func flip(t testing.TB, s *Store, f File, page int64) {
	t.Helper()
	raw, err := os.OpenFile(s.dirOf(s.lookup(f.ID)).partName(f.ID), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	e := f.Geometry().Page(page)
	b := make([]byte, 1)
	if _, err := raw.ReadAt(b, e.Offset+e.Length/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := raw.WriteAt(b, e.Offset+e.Length/2); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
}

// onDisk reads a page as somebody does who has the backing file open.
func onDisk(t testing.TB, raw *os.File, f File, page int64) []byte {
	t.Helper()
	e := f.Geometry().Page(page)
	b := make([]byte, e.Length)
	if _, err := raw.ReadAt(b, e.Offset); err != nil {
		t.Fatal(err)
	}
	return b
}

func verified(s *Store, f File, page int64) bool {
	p := s.lookup(f.ID)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unitOf(page).isVerified(page)
}

// pass scrubs each page once.
func pass(t testing.TB, s *Store) {
	t.Helper()
	for _, d := range s.dirs {
		sc := newScrubber(d)
		sc.last = nil
		for more := true; more; {
			more = sc.step(t.Context()) > 0
		}
	}
}

// TestScrubRepairsInPlace damages pages of every kind of part: whoever has
// the backing file open sees the right bytes again, in the same file.
func TestScrubRepairsInPlace(t *testing.T) {
	var from origin
	s := openStore(t, t.TempDir(), 64*mib, func(o *Options, _ *Config) { o.Refetch = from.refetch })
	files := []File{
		testFile("one page", "1", 1000), testFile("several", "1", 5*page+77),
		testFileBlocks("by block", "1", wholeLimit+3*page+5, 4*page),
	}
	damaged := [][]int64{{0}, {1, 5}, {2, files[2].Geometry().Pages() - 1}}
	fill(t, s, files[0])
	fill(t, s, files[1])
	for _, i := range []int64{0, 2, 3, files[2].Geometry().Pages() - 1} {
		if err := fillRange(s, files[2], files[2].Geometry().Page(i)); err != nil {
			t.Fatal(err)
		}
	}
	var holders []*os.File
	for i, f := range files {
		raw, err := os.Open(s.dirs[0].partName(f.ID))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { raw.Close() })
		holders = append(holders, raw)
		for _, n := range damaged[i] {
			flip(t, s, f, n)
		}
	}
	pass(t, s)
	for i, f := range files {
		for _, n := range damaged[i] {
			if !bytes.Equal(onDisk(t, holders[i], f, n), pageBytes(f, n)) {
				t.Errorf("%s: page %d is not repaired", f.Path, n)
			}
			if !verified(s, f, n) {
				t.Errorf("%s: page %d does not count as checked", f.Path, n)
			}
		}
	}
	st := s.Stats()
	if st.ScrubbedPages != 11 || st.ChecksumErrors != 5 || st.RepairedPages != 5 || st.ScrubDropped != 0 || from.asked != 5 {
		t.Errorf("%+v, asked %d times", st, from.asked)
	}
	checkLedger(t, s)
	pass(t, s)
	if again := s.Stats(); again.ScrubbedPages != 22 || again.RepairedPages != 5 || from.asked != 5 {
		t.Errorf("the next pass: %+v, asked %d times", again, from.asked)
	}
}

// TestScrubDropsWhatCannotBeRepaired: there is nobody to ask, the source has
// changed or gone, or has other bytes under the same tag, or the disk does not
// take the bytes.
func TestScrubDropsWhatCannotBeRepaired(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		other  bool
		rule   string
		nobody bool
	}{
		"nobody to ask":   {nobody: true},
		"changed":         {err: errs.E(errs.Stale, "", "", nil)},
		"gone":            {err: errs.E(errs.NotFound, "", "", nil)},
		"other bytes":     {other: true},
		"disk refuses it": {rule: "write path~data/ err=EIO"},
	} {
		t.Run(name, func(t *testing.T) {
			from := origin{err: tc.err, other: tc.other}
			ffs := vfs.Faulty(quick())
			var events []BlockState
			s := openStore(t, t.TempDir(), 16*mib, withFS(ffs), func(o *Options, _ *Config) {
				if !tc.nobody {
					o.Refetch = from.refetch
				}
				o.OnChange = func(b BlockState) { events = append(events, b) }
			})
			f := testFile("f", "1", 3*page)
			fill(t, s, f)
			flip(t, s, f, 1)
			if tc.rule != "" {
				ffs.Set(rule(t, tc.rule))
			}
			events = nil
			pass(t, s)
			ffs.Set()
			if st := s.Stats(); st.ChecksumErrors != 1 || st.RepairedPages != 0 || st.ScrubDropped != 1 {
				t.Errorf("%+v", st)
			}
			if len(events) == 0 || events[len(events)-1].CachedBytes != 2*page {
				t.Errorf("events %v", events)
			}
			mustRead(t, s, f, 2)
			checkLedger(t, s)
			fill(t, s, f)
			mustRead(t, s, f, 3)
			checkLedger(t, s)
		})
	}
}

// TestScrubOfUnreadablePage: a sector that cannot be read is written again.
func TestScrubOfUnreadablePage(t *testing.T) {
	var from origin
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs), func(o *Options, _ *Config) { o.Refetch = from.refetch })
	f := testFile("f", "1", 2*page)
	fill(t, s, f)
	ffs.Set(rule(t, "read path~data/ nth=2 err=EIO"))
	pass(t, s)
	if st := s.Stats(); st.ChecksumErrors != 1 || st.RepairedPages != 1 {
		t.Fatalf("%+v", st)
	}
	mustRead(t, s, f, 2)
}

// TestScrubWaitsForItsSource: while the source does not answer a damaged page
// stays, checked at each read; it is repaired within a minute of its return.
func TestScrubWaitsForItsSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := origin{err: errs.E(errs.Unavailable, "", "", syscall.ECONNREFUSED)}
		s := openStore(t, t.TempDir(), 16*mib, withFS(quick()), func(o *Options, _ *Config) { o.Refetch = from.refetch })
		f := testFile("f", "1", 3*page)
		fill(t, s, f)
		flip(t, s, f, 1)
		run(t, s)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if st := s.Stats(); st.ChecksumErrors != 1 || st.ScrubDropped != 0 || st.CachedBytes != 3*page {
			t.Fatalf("%+v", st)
		}
		if verified(s, f, 1) {
			t.Fatal("a damaged page counts as checked")
		}
		from.set(nil, false)
		time.Sleep(2*scrubIdle + time.Second)
		synctest.Wait()
		if st := s.Stats(); st.RepairedPages != 1 {
			t.Fatalf("%+v", st)
		}
		mustRead(t, s, f, 3)
	})
}

// TestReaderFindsDamageThatWaits: a reader does not wait for the repair.
func TestReaderFindsDamageThatWaits(t *testing.T) {
	from := origin{err: errs.E(errs.Unavailable, "", "", nil)}
	s := openStore(t, t.TempDir(), 16*mib, func(o *Options, _ *Config) { o.Refetch = from.refetch })
	f := testFile("f", "1", 3*page)
	fill(t, s, f)
	flip(t, s, f, 1)
	pass(t, s)
	if _, err := readPages(s, f); !errors.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
	fill(t, s, f)
	mustRead(t, s, f, 3)
}

// run runs the store until the test ends.
func run(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestScrubPace: one pass takes the time that was asked for, within the rate,
// and a page is due each minute.
func TestScrubPace(t *testing.T) {
	for name, tc := range map[string]struct {
		interval time.Duration
		rate     int64
		sleep    time.Duration
		low, up  int64 // pages
	}{
		"by interval": {10 * time.Minute, 32 * mib, time.Hour, 5 * 16, 7 * 16},
		"by rate":     {time.Minute, page / 10, 10 * time.Minute, 38, 60},
		"once a minute": {
			365 * 24 * time.Hour, 32 * mib, 10 * time.Minute, 9, 10,
		},
		"off": {0, 32 * mib, 24 * time.Hour, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir(), 16*mib, withFS(quick()), func(_ *Options, c *Config) {
					c.ScrubInterval, c.ScrubRate = size.Duration(tc.interval), size.Bytes(tc.rate)
				})
				fill(t, s, testFile("f", "1", 16*page))
				run(t, s)
				time.Sleep(scrubIdle/2 + tc.sleep)
				synctest.Wait()
				if n := s.Stats().ScrubbedPages; n < tc.low || n > tc.up {
					t.Errorf("%d pages were compared, want %d to %d", n, tc.low, tc.up)
				}
			})
		})
	}
}

// TestScrubIsNoHit: what the scrubber looks at is evicted as if it had not.
func TestScrubIsNoHit(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib)
	f := testFile("f", "1", 2*page)
	fill(t, s, f)
	s.lookup(f.ID).state.And(^unitVisited)
	pass(t, s)
	if s.lookup(f.ID).state.Load()&unitVisited != 0 {
		t.Fatal("the scrubber's look counts as a hit")
	}
	if s.Stats().ScrubbedPages != 2 {
		t.Fatal("nothing was compared")
	}
}

// TestScrubBesideAll scrubs while files come, go and are read.
func TestScrubBesideAll(t *testing.T) {
	var from origin
	s := openStore(t, t.TempDir(), 6*mib, withFS(quick()), func(o *Options, _ *Config) { o.Refetch = from.refetch })
	var files []File
	for i := range 24 {
		files = append(files, testFileBlocks(string(rune('a'+i)), "1", int64(i+1)*100_000, block.PageSize))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var g sync.WaitGroup
	g.Go(func() {
		sc := newScrubber(s.dirs[0])
		for ctx.Err() == nil {
			sc.step(ctx)
		}
	})
	for w := range 3 {
		g.Go(func() {
			rnd := newRand(uint64(w))
			for range 60 {
				f := files[rnd.IntN(len(files))]
				if err := readThrough(s, f, f.Geometry().Whole()); err != nil {
					t.Error(err)
				}
				if rnd.IntN(10) == 0 {
					if _, _, err := s.Drop(1, f.Path); err != nil {
						t.Error(err)
					}
				}
			}
			cancel()
		})
	}
	g.Wait()
	if st := s.Stats(); st.ScrubbedPages == 0 || st.ChecksumErrors != 0 {
		t.Errorf("%+v", st)
	}
	checkLedger(t, s)
}

// TestVerifyAlways: a page that was checked before is checked again.
func TestVerifyAlways(t *testing.T) {
	for _, length := range []int64{3 * page, 1000, wholeLimit + page} {
		s := openStore(t, t.TempDir(), 64*mib)
		f := testFileBlocks("f", "1", length, 4*page)
		last := f.Geometry().Pages() - 1
		e := f.Geometry().Page(last)
		if err := fillRange(s, f, e); err != nil {
			t.Fatal(err)
		}
		flip(t, s, f, last)
		b := make([]byte, e.Length/4)
		trusting, err := s.Acquire(f, e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trusting.ReadAt(b, e.Offset); err != nil {
			t.Fatalf("checked within a run: %v", err)
		}
		trusting.Release()
		h, err := s.Acquire(f, e)
		if err != nil {
			t.Fatal(err)
		}
		h.VerifyAlways()
		if _, _, ok := h.Section(e.Offset, e.Length); ok {
			t.Error("the file itself was given out")
		}
		if _, err := h.ReadAt(b, e.Offset); !errors.Is(err, errs.Corrupt) {
			t.Errorf("a damaged page was read: %v", err)
		}
		if n := s.Stats().ChecksumErrors; n != 1 {
			t.Errorf("%d errors were counted", n)
		}
		if err := fillMissing(h, f); err != nil {
			t.Fatal(err)
		}
		if n, err := h.ReadAt(b, e.Offset); err != nil || !bytes.Equal(b[:n], pageBytes(f, last)[:n]) {
			t.Errorf("after it was filled again: %v", err)
		}
		h.Release()
		checkLedger(t, s)
	}
}
