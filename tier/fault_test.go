package tier

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

func rule(t testing.TB, text string) vfs.Rule {
	t.Helper()
	r, err := vfs.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFillFaults lets each operation of a fill fail: the fill says so, what
// was cached is still served, nothing is lost from the ledger, and when the
// disk is well again the fill succeeds.
func TestFillFaults(t *testing.T) {
	for _, text := range []string{
		"write path~data/ err=ENOSPC",
		"write path~data/ short=5000 err=EIO",
		"write path~data/ nth=2 err=EIO",
		"write path~index/ err=ENOSPC",
		"write path~index/ short=20 err=EIO",
		"open path~data/ err=EMFILE",
		"open,mkdir path~data/ err=EROFS",
		"mkdir path~data/ err=ENOSPC",
		"truncate path~data/ err=EIO",
		"write,punch path~data/ from=1 err=EIO",
	} {
		t.Run(text, func(t *testing.T) {
			dir := t.TempDir()
			ffs := vfs.Faulty(quick())
			s := openStore(t, dir, 16*mib, withFS(ffs))
			kept, f := testFile("kept", "1", 2*page), testFile("f", "1", 3*page+77)
			fill(t, s, kept)
			ffs.Set(rule(t, text))
			err := fillRange(s, f, f.Geometry().Whole())
			if k := errs.KindOf(err); k != errs.NoSpace && k != errs.Unavailable {
				t.Fatalf("kind %v: %v", k, err)
			}
			if ffs.Fired() == 0 {
				t.Fatal("the fault did not fire")
			}
			mustRead(t, s, kept, 2)
			if _, err := readPages(s, f); err != nil {
				t.Fatal(err)
			}
			ffs.Set()
			if d := s.dirs[0]; diskUse(t, dir) > d.ledger.state().used {
				t.Fatal("the ledger lost something")
			}
			fill(t, s, f)
			mustRead(t, s, f, 4)
			if s.Stats().IOErrors == 0 {
				t.Fatal("the error was not counted")
			}
			abandon(t, s)
			s = openStore(t, dir, 16*mib, withFS(quick()))
			mustRead(t, s, kept, 2)
			mustRead(t, s, f, 4)
			checkLedger(t, s)
		})
	}
}

// TestFailedLog lets the index fail for good: nothing is kept any more, reads
// go on.
func TestFailedLog(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := testFile("f", "1", 2*page)
	fill(t, s, f)
	ffs.Set(rule(t, "write,truncate path~index/ err=EIO"))
	g := testFile("g", "1", page)
	for range 3 {
		if err := fillRange(s, g, g.Geometry().Whole()); !errors.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
	}
	if st := s.Status()[0]; st.State != StateFailed {
		t.Fatalf("%+v", st)
	}
	mustRead(t, s, f, 2)
	s.upkeep()
	mustRead(t, s, f, 2)
}

// TestEvictionFaults lets evictions fail while room is needed.
func TestEvictionFaults(t *testing.T) {
	for _, text := range []string{
		"open path~data/ from=1 err=EIO", "lease from=1 err=shared", "remove path~data/ err=EIO",
		"remove,rename path~data/ err=EIO", "write path~index/ err=EIO", "punch err=EIO", "unlease err=EIO",
		"lease from=1 err=EINVAL",
	} {
		t.Run(text, func(t *testing.T) {
			dir := t.TempDir()
			ffs := vfs.Faulty(quick())
			s := openStore(t, dir, 6*mib, withFS(ffs), func(_ *Options, c *Config) { c.OpenFiles = 1 })
			large := testFileBlocks("large", "1", wholeLimit+mib, mib)
			if err := fillRange(s, large, block.Extent{Length: 2 * mib}); err != nil {
				t.Fatal(err)
			}
			for i := range 6 {
				fill(t, s, testFile(fmt.Sprint(i), "1", mib/2))
			}
			ffs.Set(rule(t, text))
			for i := range 8 {
				f := testFile(fmt.Sprint("more", i), "1", mib/2)
				err := fillRange(s, f, f.Geometry().Whole())
				if k := errs.KindOf(err); err != nil && k != errs.NoSpace && k != errs.Unavailable {
					t.Fatal(err)
				}
			}
			ffs.Set()
			if du, used := diskUse(t, dir), s.dirs[0].ledger.state().used; du > used || used > 6*mib {
				t.Fatalf("disk has %d bytes, ledger %d", du, used)
			}
			abandon(t, s)
			s = openStore(t, dir, 6*mib, withFS(quick()))
			checkLedger(t, s)
			for i := range 6 {
				if _, err := readPages(s, testFile(fmt.Sprint(i), "1", mib/2)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := readPages(s, large); err != nil {
				t.Fatal(err)
			}
			fill(t, s, testFile("last", "1", mib))
			checkLedger(t, s)
		})
	}
}

// TestRandomFaults fails operations at random; whatever is read is right, and
// after a restart the ledger is.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(6) {
		rnd := newRand(seed)
		dir := t.TempDir()
		ffs := vfs.Faulty(quick())
		s := openStore(t, dir, 5*mib, withFS(ffs), func(_ *Options, c *Config) { c.OpenFiles = 2 })
		var files []File
		for i := range 12 {
			files = append(files, testFileBlocks(fmt.Sprint(i), "1", int64(i+1)*150_000, 2*page))
		}
		files = append(files, testFileBlocks("large", "1", wholeLimit+9, 2*page))
		ops := []string{"open", "mkdir", "rename", "remove", "read", "write", "truncate", "syncfs", "fallocate", "punch", "lease"}
		for i := range 120 {
			ffs.Set(vfs.Rule{Ops: []string{ops[rnd.IntN(len(ops))]}, Nth: 1 + rnd.IntN(4), Err: "EIO"})
			f := files[rnd.IntN(len(files))]
			first := rnd.Int64N(f.Geometry().Pages())
			e := f.Geometry().PagesExtent(first, first+1+rnd.Int64N(6))
			if err := readThrough(s, f, e); err != nil && errs.KindOf(err) == errs.Unknown {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if i%30 == 11 {
				s.upkeep()
			}
			if i%40 == 17 {
				_ = s.dirs[0].compact(true)
			}
		}
		ffs.Set()
		abandon(t, s)
		s = openStore(t, dir, 5*mib, withFS(quick()))
		checkLedger(t, s)
		for _, f := range files {
			if _, err := readPages(s, f); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		checkLedger(t, s)
	}
}

// TestFlippedBit checks the first read of a page in a run, and what follows.
func TestFlippedBit(t *testing.T) {
	dir := t.TempDir()
	f := testFile("f", "1", 3*page+9)
	s := openStore(t, dir, 16*mib)
	fill(t, s, f)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var events []BlockState
	s = openStore(t, dir, 16*mib, func(o *Options, _ *Config) {
		o.OnChange = func(b BlockState) { events = append(events, b) }
	})
	raw, err := os.OpenFile(s.dirs[0].partName(f.ID), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.WriteAt([]byte{0xff}, page+100_000); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if _, _, ok := h.Section(page, page); ok {
		t.Fatal("a section with a flipped bit was given out")
	}
	b := make([]byte, 10)
	if _, err := h.ReadAt(b, page); !errors.Is(err, errs.NotCached) {
		t.Fatal(err)
	}
	if _, _, ok := h.Section(0, page); !ok {
		t.Fatal("no section of a good page")
	}
	if n := s.Stats().ChecksumErrors; n != 1 {
		t.Fatalf("%d errors are counted", n)
	}
	want := []BlockState{{File: f.ID, CachedBytes: 2*page + 9}}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Fatal(diff)
	}
	checkLedger(t, s)
	if err := fillMissing(h, f); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, f.Length)
	if _, err := h.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	checkLedger(t, s)
}

// TestFailedSyncForgetsChecks: pages that the kernel could not write may be
// gone from its memory.
func TestFailedSyncForgetsChecks(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := testFile("f", "1", page)
	fill(t, s, f)
	if !s.lookup(f.ID).isVerified(0) {
		t.Fatal("a page that was just filled counts as not checked")
	}
	ffs.Set(rule(t, "syncfs err=EIO"))
	s.upkeep()
	if s.lookup(f.ID).isVerified(0) {
		t.Fatal("the page still counts as checked")
	}
	ffs.Set()
	mustRead(t, s, f, 1)
	if !s.lookup(f.ID).isVerified(0) {
		t.Fatal("the page was read and does not count as checked")
	}
}

// TestFullDiskStillEvicts: with no room for anything new, not even in the
// log, the directory can be opened and gives up victims.
func TestFullDiskStillEvicts(t *testing.T) {
	dir := t.TempDir()
	ffs := vfs.Faulty(quick())
	s := openStore(t, dir, 8*mib, withFS(ffs))
	for i := range 8 {
		fill(t, s, testFile(fmt.Sprint(i), "1", mib/2))
	}
	ffs.Set(rule(t, "fallocate from=1 err=ENOSPC"), rule(t, "write path~data/ from=1 err=ENOSPC"))
	if files, _, err := s.Drop(1, "3"); err != nil || files != 1 {
		t.Fatal(files, err)
	}
	abandon(t, s)
	ffs.Set(rule(t, "fallocate nth=1 err=ENOSPC"))
	s = openStore(t, dir, 8*mib, withFS(ffs))
	if st := s.Stats(); st.EvictedFiles != 1 || st.CachedFiles != 6 {
		t.Fatalf("%+v", st)
	}
	abandon(t, s)
	s = openStore(t, dir, 8*mib, withFS(quick()))
	if st := s.Stats(); st.CachedFiles != 6 {
		t.Fatalf("%+v", st)
	}
	checkLedger(t, s)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	s, err := Open([]Config{testConfig(t.TempDir(), 16*mib)}, testOptions(), nil, reg)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, testFile("f", "1", 1000))
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	if got["millrace_tier_filled_bytes_total"] != 1000 || got["millrace_tier_cached_files"] != 1 ||
		got["millrace_tier_capacity_bytes"] != float64(16*mib) || got["millrace_tier_used_bytes"] == 0 {
		t.Fatal(got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if families, err = reg.Gather(); err != nil || len(families) != 0 {
		t.Fatal(families, err)
	}
}
