package tier

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

func TestCapacityIsNeverPassed(t *testing.T) {
	for _, capacity := range []int64{4 * mib, 12 * mib} {
		s := openStore(t, t.TempDir(), capacity, withFS(quick()))
		rnd := newRand(1)
		for i := range 120 {
			length := 1 + rnd.Int64N(3*mib/2)
			if i%2 == 0 {
				length = 1 + rnd.Int64N(20_000)
			}
			f := testFile(fmt.Sprintf("dir/%d", i), "1", length)
			fill(t, s, f)
			if i%10 == 0 {
				checkLedger(t, s)
			}
			mustRead(t, s, f, int(f.Geometry().Pages()))
		}
		checkLedger(t, s)
		st := s.Stats()
		if st.EvictedBytes == 0 || st.EvictedFiles == 0 || st.NoSpace != 0 || st.IOErrors != 0 {
			t.Fatalf("%+v", st)
		}
		if st.CachedBytes < capacity/2 {
			t.Fatalf("%d of %d bytes are used for data", st.CachedBytes, capacity)
		}
	}
}

// TestFileLargerThanDirectory reads a file of four times the capacity from
// end to end, block by block evicted, twice.
func TestFileLargerThanDirectory(t *testing.T) {
	const capacity = 24 * mib
	s := openStore(t, t.TempDir(), capacity, withFS(quick()))
	f := testFileBlocks("huge", "1", 4*capacity+12345, 4*mib)
	g := f.Geometry()
	for range 2 {
		for off := int64(0); off < f.Length; off += 2 * mib {
			e := block.Extent{Offset: off, Length: 2 * mib}.Intersect(g.Whole())
			h, err := s.Acquire(f, e)
			if err != nil {
				t.Fatal(err)
			}
			if err := fillMissing(h, f); err != nil {
				t.Fatal(err)
			}
			got, want := make([]byte, e.Length), make([]byte, e.Length)
			content(f, want, off)
			if _, err := h.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read at %d: %v", off, err)
			}
			h.Release()
		}
		checkLedger(t, s)
	}
	if _, bytes := s.Cached(f.ID); bytes < capacity/2 {
		t.Fatalf("%d bytes are cached", bytes)
	}
	if st := s.Stats(); st.EvictedBytes < 2*4*capacity-2*capacity || st.EvictedFiles != 0 {
		t.Fatalf("%+v", st)
	}
}

// TestPinnedIsNeverEvicted fills a directory through one handle: there is no
// room for more, nothing of it goes, and after the release there is.
func TestPinnedIsNeverEvicted(t *testing.T) {
	for _, length := range []int64{20 * mib, wholeLimit + mib} {
		s := openStore(t, t.TempDir(), 8*mib, withFS(quick()))
		f := testFileBlocks("pinned", "1", length, mib)
		h, err := s.Acquire(f, block.Extent{Length: 20 * mib})
		if err != nil {
			t.Fatal(err)
		}
		g := f.Geometry()
		n := int64(0)
		for ; ; n++ {
			if err = fillOne(h, f, n); err != nil {
				break
			}
		}
		if !errors.Is(err, errs.NoSpace) || n < 20 {
			t.Fatalf("after %d pages: %v", n, err)
		}
		other := testFile("other", "1", 5*mib)
		if err := fillRange(s, other, other.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
			t.Fatal(err)
		}
		for p := range n {
			b := make([]byte, page)
			if _, err := h.ReadAt(b, p*page); err != nil || !bytes.Equal(b, pageBytes(f, p)) {
				t.Fatalf("page %d: %v", p, err)
			}
		}
		checkLedger(t, s)
		h.Release()
		fill(t, s, other)
		mustRead(t, s, other, 20)
		if _, bytes := s.Cached(f.ID); bytes >= n*page {
			t.Fatalf("%d bytes of %d are still there", bytes, g.Length)
		}
		checkLedger(t, s)
	}
}

func fillOne(h *Handle, f File, p int64) error {
	r, err := h.Reserve(f.Geometry().Page(p))
	if err != nil {
		return err
	}
	defer r.Release()
	_, err = r.Fill(p, pageBytes(f, p))
	return err
}

// TestProof checks that a victim that somebody else has open stays, and that
// a dropped one keeps its bytes and its charge until it is closed.
func TestProof(t *testing.T) {
	s := openStore(t, t.TempDir(), 8*mib)
	d := s.dirs[0]
	if !d.canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	a, b := testFile("a", "1", 3*mib), testFile("b", "1", 3*mib)
	fill(t, s, a)
	fill(t, s, b)
	reader, err := os.Open(d.partName(a.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fill(t, s, testFile("c", "1", 3*mib))
	mustRead(t, s, a, 12)
	mustRead(t, s, b, 0)

	if _, _, err := s.Drop(1, "a"); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, a, 0)
	if st := s.Status()[0]; st.Held < 3*mib {
		t.Fatalf("%+v", st)
	}
	checkLedger(t, s)
	got := make([]byte, 3*mib)
	want := make([]byte, 3*mib)
	content(a, want, 0)
	if _, err := reader.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the bytes under a descriptor changed: %v", err)
	}
	fill(t, s, a) // the same file again, beside the held one
	mustRead(t, s, a, 12)
	checkLedger(t, s)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	s.upkeep()
	if st := s.Status()[0]; st.Held != 0 {
		t.Fatalf("%+v", st)
	}
	held, err := os.ReadDir(filepath.Join(d.root, heldDir))
	if err != nil || len(held) != 0 {
		t.Fatal(held, err)
	}
	checkLedger(t, s)
}

// TestDropUnderHandle drops a file that a handle reads and fills.
func TestDropUnderHandle(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib)
	f := testFile("x/y", "1", 6*page)
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	if err := fillOne(h, f, 0); err != nil {
		t.Fatal(err)
	}
	r, err := h.Reserve(block.Extent{Offset: page, Length: page})
	if err != nil {
		t.Fatal(err)
	}
	files, size, err := s.Drop(1, "x")
	if err != nil || files != 1 || size != page {
		t.Fatal(files, size, err)
	}
	if _, err := r.Fill(1, pageBytes(f, 1)); err != nil {
		t.Fatalf("fill that was under way: %v", err)
	}
	r.Release()
	if _, err := h.Reserve(block.Extent{Offset: 2 * page, Length: page}); !errors.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
	b := make([]byte, 2*page)
	if _, err := h.ReadAt(b, 0); err != nil || !bytes.Equal(b[page:], pageBytes(f, 1)) {
		t.Fatal(err)
	}
	fill(t, s, f) // a new part beside it
	mustRead(t, s, f, 6)
	h.Release()
	if st := s.Status()[0]; st.Held != 0 {
		t.Fatalf("%+v", st)
	}
	mustRead(t, s, f, 6)
	checkLedger(t, s)
}

// TestRefusedVictim: a file that somebody has open stays, and stays charged,
// though it is the next victim; another one goes, and it goes when it is free.
func TestRefusedVictim(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"mem", Memory, 6 * mib}})
	d := s.dirs[0]
	if !d.canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	var files []File
	for i := range 7 {
		files = append(files, testFile(fmt.Sprint(i), "1", 3*page))
		fill(t, s, files[i])
	}
	open := files[6] // the young one
	reader, err := os.Open(d.partName(open.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fill(t, s, testFile("more", "1", 3*page))
	wantAt(t, s, open, "mem")
	wantAt(t, s, files[0], "")
	checkLedger(t, s)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		fill(t, s, testFile(fmt.Sprint("more still", i), "1", 3*page))
	}
	wantAt(t, s, open, "")
	checkLedger(t, s)
}

// TestSupersededGoFirst fills a new version of the file that was hit last.
func TestSupersededGoFirst(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		dir := t.TempDir()
		s := openStore(t, dir, 8*mib)
		old, other, fresh := testFile("a", "1", 2*mib), testFile("b", "1", 2*mib), testFile("a", "2", 2*mib)
		fill(t, s, other)
		fill(t, s, old)
		fill(t, s, fresh)
		mustRead(t, s, old, 8)
		if reopen {
			abandon(t, s)
			s = openStore(t, dir, 8*mib)
		}
		fill(t, s, testFile("c", "1", 2*mib))
		mustRead(t, s, old, 0)
		mustRead(t, s, other, 8)
		mustRead(t, s, fresh, 8)
		checkLedger(t, s)
	}
}

func TestFreeShare(t *testing.T) {
	dir := t.TempDir()
	s, err := tryOpen(dir, 64*mib, func(_ *Options, c *Config) { c.FreeShare = 0.9 })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	room, err := s.opts.FS.Statfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if room.Free > room.Total*9/10 {
		t.Skip("SKIPPED: the file system is nearly empty")
	}
	f := testFile("a", "1", mib)
	if err := fillRange(s, f, f.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
	if n := s.Stats().NoSpace; n != 1 {
		t.Fatalf("%d refusals are counted", n)
	}
}

// TestLimit: what the file system leaves of the capacity is told.
func TestLimit(t *testing.T) {
	fs := vfs.NewMem(64*mib, 1000)
	s := openStore(t, "/cache", 256*mib, withFS(fs), func(_ *Options, c *Config) { c.FreeShare = 0.5 })
	if st := s.Status()[0]; st.Limit > 33*mib || st.Limit < 31*mib || st.Capacity != 256*mib {
		t.Errorf("%+v", st)
	}
}

// TestSmallDirectoryShrinks opens a directory with less than it holds.
func TestSmallDirectoryShrinks(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 32*mib)
	for i := range 40 {
		fill(t, s, testFile(fmt.Sprint(i), "1", 600_000))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 8*mib)
	checkLedger(t, s)
	if st := s.Stats(); st.CachedFiles == 0 || st.CachedFiles > 14 {
		t.Fatalf("%+v", st)
	}
}

// TestConcurrent lets readers fill, read and drop at once in a directory that
// holds a fifth of what they want.
func TestConcurrent(t *testing.T) {
	s := openStore(t, t.TempDir(), 8*mib, withFS(quick()), func(_ *Options, c *Config) { c.OpenFiles = 4 })
	var files []File
	for i := range 24 {
		files = append(files, testFileBlocks(fmt.Sprintf("d%d/%d", i%3, i), "1", int64(i+1)*130_000, 2*page))
	}
	files = append(files, testFileBlocks("large", "1", wholeLimit+5, 4*page))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := newRand(uint64(g))
			for i := range 80 {
				f := files[rnd.IntN(len(files))]
				pages := f.Geometry().Pages()
				first := rnd.Int64N(pages)
				e := f.Geometry().PagesExtent(first, first+1+rnd.Int64N(4))
				if err := readThrough(s, f, e); err != nil {
					t.Errorf("%s %v: %v", f.Path, e, err)
					return
				}
				switch {
				case i%40 == 7:
					if _, _, err := s.Drop(1, fmt.Sprintf("d%d", g%3)); err != nil {
						t.Error(err)
					}
				case g == 0 && i%25 == 3:
					s.upkeep()
				case g == 1 && i%50 == 9:
					if err := s.dirs[0].compact(true); err != nil && !errors.Is(err, errs.NoSpace) {
						t.Error(err)
					}
				case g == 2 && i%20 == 5:
					for range s.Blocks() {
					}
					s.Usage(1, "d1")
				}
			}
		})
	}
	wg.Wait()
	checkLedger(t, s)
	if st := s.Stats(); st.EvictedBytes == 0 || st.ChecksumErrors != 0 || st.IOErrors != 0 {
		t.Fatalf("%+v", st)
	}
}

// readThrough reads e as a worker does: it fills what is absent if there is
// room, and checks every byte that is present.
func readThrough(s *Store, f File, e block.Extent) error {
	h, err := s.Acquire(f, e)
	if err != nil {
		return err
	}
	defer h.Release()
	if err := fillMissing(h, f); err != nil {
		if errors.Is(err, errs.NoSpace) {
			return nil
		}
		return err
	}
	got, want := make([]byte, e.Length), make([]byte, e.Length)
	content(f, want, e.Offset)
	if _, err := h.ReadAt(got, e.Offset); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("wrong bytes")
	}
	return nil
}
