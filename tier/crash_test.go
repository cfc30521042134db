package tier

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
)

// crashStore fills some files, drops one and fills it again, and returns the
// directory and the only log segment as kill -9 leaves them.
func crashStore(t *testing.T) (dir, segment string, files []File) {
	t.Helper()
	dir = t.TempDir()
	s := openStore(t, dir, 32*mib, withFS(quick()))
	files = []File{
		testFile("a", "1", 1000), testFile("a", "2", 1000), testFile("b", "1", 2*page+3),
		testFileBlocks("c", "1", wholeLimit+5*page, 4*page),
	}
	for _, f := range files[:3] {
		fill(t, s, f)
	}
	if err := fillRange(s, files[3], block.Extent{Offset: 3 * page, Length: 3 * page}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Drop(1, "b"); err != nil {
		t.Fatal(err)
	}
	s.upkeep()
	fill(t, s, files[2])
	d := s.dirs[0]
	segment = segmentName(d.index.dir, d.index.position().segment)
	abandon(t, s)
	return dir, segment, files
}

// boundaries returns the offsets between the frames of a segment.
func boundaries(t *testing.T, segment string) []int64 {
	t.Helper()
	b, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	at := []int64{headerSize}
	for off := int64(headerSize); off+frameHeader <= int64(len(b)); {
		n := binary.LittleEndian.Uint32(b[off:])
		if n == 0 {
			break
		}
		off += frameHeader + int64(n)
		at = append(at, off)
	}
	return at
}

// TestCrashAtEveryRecord cuts the log at every boundary, and within every
// frame, and opens what is left: what is present has the right bytes, the
// ledger is right, and everything can be filled again.
func TestCrashAtEveryRecord(t *testing.T) {
	dir, segment, files := crashStore(t)
	rel, err := filepath.Rel(dir, segment)
	if err != nil {
		t.Fatal(err)
	}
	ends := boundaries(t, segment)
	if len(ends) < 10 {
		t.Fatalf("only %d records", len(ends))
	}
	var cuts []int64
	for _, end := range ends {
		cuts = append(cuts, end-1, end, end+3, end+frameHeader+1)
	}
	for _, boot := range []byte{1, 2} {
		for _, cut := range cuts {
			t.Run(fmt.Sprintf("boot=%d/cut=%d", boot, cut), func(t *testing.T) {
				to := t.TempDir()
				copyTree(t, dir, to)
				if err := os.Truncate(filepath.Join(to, rel), cut); err != nil {
					t.Fatal(err)
				}
				// The files take more room after the copy; that is for the
				// recovery to find.
				checkRecovered(t, to, files, boot)
			})
		}
	}
}

func checkRecovered(t *testing.T, dir string, files []File, boot byte) {
	t.Helper()
	s := openStore(t, dir, 32*mib, withFS(quick()), withBoot(boot))
	checkLedger(t, s)
	for _, f := range files {
		if _, err := readPages(s, f); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Stats().ChecksumErrors; n != 0 {
		t.Fatalf("%d checksum errors", n)
	}
	for _, f := range files[:3] {
		fill(t, s, f)
		mustRead(t, s, f, int(f.Geometry().Pages()))
	}
	checkLedger(t, s)
	abandon(t, s)
	s = openStore(t, dir, 32*mib, withFS(quick()), withBoot(boot))
	for _, f := range files[:3] {
		mustRead(t, s, f, int(f.Geometry().Pages()))
	}
	checkLedger(t, s)
}

// TestCrashFlippedBits damages single bytes of the index.
func TestCrashFlippedBits(t *testing.T) {
	dir, segment, files := crashStore(t)
	rel, err := filepath.Rel(dir, segment)
	if err != nil {
		t.Fatal(err)
	}
	ends := boundaries(t, segment)
	last := ends[len(ends)-1]
	for at := int64(0); at < last; at += 37 {
		to := t.TempDir()
		copyTree(t, dir, to)
		name := filepath.Join(to, rel)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 0x10
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := tryOpen(to, 32*mib, withFS(quick()))
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		for _, f := range files {
			if _, err := readPages(s, f); err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
		}
		checkLedger(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReboot checks the promise behind a checkpoint: after a boot, pages
// recorded behind the last one are read and checked before they are served.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 32*mib)
	before, good, lost := testFile("before", "1", 3*page), testFile("good", "1", page), testFile("lost", "1", 2*page+9)
	fill(t, s, before)
	s.upkeep() // a checkpoint
	fill(t, s, good)
	fill(t, s, lost)
	name := s.dirs[0].partName(lost.ID)
	abandon(t, s)
	// The machine went down: the index was on the disk, one page was not.
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, page), page); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 32*mib, withBoot(2))
	checkLedger(t, s)
	mustRead(t, s, before, 3)
	mustRead(t, s, good, 1)
	mustRead(t, s, lost, 2)
	if n := s.Stats().ChecksumErrors; n != 0 {
		t.Fatalf("%d checksum errors: the recovery should have dropped the page", n)
	}
	abandon(t, s)
	s = openStore(t, dir, 32*mib, withBoot(2)) // what the recovery found was recorded
	mustRead(t, s, lost, 2)
	checkLedger(t, s)
}

// TestFilesOfNoIndex checks that after kill -9 files and parts that do not
// belong together go away, and that their room comes back.
func TestFilesOfNoIndex(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 32*mib)
	a, b := testFile("a", "1", page), testFile("b", "1", page)
	fill(t, s, a)
	fill(t, s, b)
	d := s.dirs[0]
	nameA, used := d.partName(a.ID), s.Status()[0].Used
	stray := filepath.Join(filepath.Dir(nameA), testFile("stray", "1", 5).ID.String())
	abandon(t, s)
	for _, name := range []string{stray, filepath.Join(filepath.Dir(nameA), "core"), filepath.Join(dir, heldDir, "x")} {
		if err := os.WriteFile(name, make([]byte, 50_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(nameA); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 32*mib)
	mustRead(t, s, a, 0)
	mustRead(t, s, b, 1)
	checkLedger(t, s)
	if _, err := os.Stat(stray); !os.IsNotExist(err) {
		t.Fatalf("a file that no index knows stayed: %v", err)
	}
	if got := s.Status()[0]; got.Held != 0 || got.Used >= used {
		t.Fatalf("%+v", got)
	}
	// While the store runs, a file that goes away is an error once, and then
	// not cached.
	h, err := s.Acquire(b, b.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	abandonDescriptors(s)
	if err := os.Remove(s.dirs[0].partName(b.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ReadAt(make([]byte, 10), 0); err == nil {
		t.Fatal("a read from a file that is gone succeeded")
	}
	h.Release()
	mustRead(t, s, b, 0)
	checkLedger(t, s)
	fill(t, s, b)
	mustRead(t, s, b, 1)
	checkLedger(t, s)
}

// abandonDescriptors closes the descriptors that nobody uses.
func abandonDescriptors(s *Store) {
	limit := s.dirs[0].files.limit
	s.dirs[0].closeIdle()
	s.dirs[0].files.limit = limit
}

// TestOrderSurvivesRestart checks that the units come back in the order that
// they had, and with their hits.
func TestOrderSurvivesRestart(t *testing.T) {
	order := func(s *Store) (names []string) {
		for _, u := range s.dirs[0].queue.units() {
			names = append(names, u.part.path())
		}
		return names
	}
	for _, compact := range []bool{false, true} {
		dir := t.TempDir()
		s := openStore(t, dir, 16*mib)
		for i := range 20 {
			fill(t, s, testFile(fmt.Sprintf("f%d", i), "1", 1000))
		}
		if compact {
			s.dirs[0].queue.victim()
			s.dirs[0].queue.(*paced).look(3) // turns the order of the old ones
			mustRead(t, s, testFile("f19", "1", 1000), 1)
			if err := s.dirs[0].compact(true); err != nil {
				t.Fatal(err)
			}
		}
		want := order(s)
		abandon(t, s)
		s = openStore(t, dir, 16*mib)
		if diff := cmp.Diff(want, order(s)); diff != "" {
			t.Fatal(diff)
		}
		if hit := s.lookup(testFile("f19", "1", 1000).ID).state.Load()&unitVisited != 0; hit != compact {
			t.Fatalf("the youngest was hit: %v, want %v", hit, compact)
		}
	}
}
