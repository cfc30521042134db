package tier

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// largeFile is evicted block by block; its blocks have four pages.
func largeFile(path string) File { return testFileBlocks(path, "1", wholeLimit+8*page, 4*page) }

// harm overwrites the start of a page behind the store's back, and has the
// store check it again.
func harm(t *testing.T, s *Store, f File, page int64) {
	t.Helper()
	raw, err := os.OpenFile(s.dirOf(s.lookup(f.ID)).partName(f.ID), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.WriteAt([]byte("harm"), f.Geometry().Page(page).Offset); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	s.dirs[0].unverifyAll()
}

func acquire(t *testing.T, s *Store, f File, e block.Extent) *Handle {
	t.Helper()
	h, err := s.Acquire(f, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Release)
	return h
}

// startsWith reports whether the page of the backing file starts with text.
func startsWith(t *testing.T, f *os.File, page int64, text string) bool {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := f.ReadAt(got, page*block.PageSize); err != nil {
		t.Fatal(err)
	}
	return string(got) == text
}

func readCorrupt(t *testing.T, h *Handle, page int64) {
	t.Helper()
	if _, err := h.ReadAt(make([]byte, 10), page*block.PageSize); !errors.Is(err, errs.Corrupt) {
		t.Fatalf("read of a damaged page: %v", err)
	}
}

// TestSpoiledPageUnderDescriptor: a damaged page is not punched while somebody
// has the file open, stays charged meanwhile, and is given back after.
func TestSpoiledPageUnderDescriptor(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, withFS(quick()))
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: 4 * page}); err != nil {
		t.Fatal(err)
	}
	harm(t, s, f, 0)
	outside, err := os.Open(s.dirs[0].partName(f.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	full := s.Status()[0].Used
	h := acquire(t, s, f, block.Extent{Length: page})
	readCorrupt(t, h, 0)
	h.Release()
	s.upkeep()
	if !startsWith(t, outside, 0, "harm") || s.Status()[0].Used != full {
		t.Fatalf("the page was punched; %d bytes are used, %d were", s.Status()[0].Used, full)
	}
	checkLedger(t, s)
	if err := outside.Close(); err != nil {
		t.Fatal(err)
	}
	s.upkeep()
	if got := s.Status()[0].Used; got != full-page {
		t.Fatalf("%d bytes are used, %d were", got, full)
	}
	checkLedger(t, s)
	mustRead(t, s, f, 3)
}

// TestPinnedSpoiledPage has nobody but handles: they alone keep it.
func TestPinnedSpoiledPage(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: 4 * page}); err != nil {
		t.Fatal(err)
	}
	a, b := acquire(t, s, f, block.Extent{Length: page}), acquire(t, s, f, block.Extent{Length: page})
	harm(t, s, f, 0)
	readCorrupt(t, a, 0)
	a.Release()
	ffs.Set(rule(t, "punch from=1 err=EIO"))
	s.upkeep()
	if ffs.Fired() != 0 {
		t.Fatal("a pinned page was punched")
	}
	ffs.Set()
	if err := fillMissing(b, f); err != nil { // in the room that it has
		t.Fatal(err)
	}
	checkLedger(t, s)
	b.Release()
	s.upkeep()
	mustRead(t, s, f, 4)
	checkLedger(t, s)
}

// TestSpoiledPageOfWholePart: such a part may be sent from its file, so no
// page of it is ever punched; a new fill takes no more room.
func TestSpoiledPageOfWholePart(t *testing.T) {
	for _, length := range []int64{1000, 3*page - 7} {
		s := openStore(t, t.TempDir(), 16*mib)
		f := testFile("f", "1", length)
		fill(t, s, f)
		full := s.Status()[0].Used
		h := acquire(t, s, f, f.Geometry().Whole())
		file, _, ok := h.Section(0, length)
		if !ok {
			t.Fatal("no section")
		}
		harm(t, s, f, 0)
		readCorrupt(t, h, 0)
		s.upkeep()
		if !startsWith(t, file, 0, "harm") {
			t.Fatal("a page was punched in a file that may be in a socket's queue")
		}
		checkLedger(t, s)
		if err := fillMissing(h, f); err != nil {
			t.Fatal(err)
		}
		if got := s.Status()[0].Used; got != full {
			t.Fatalf("%d bytes are used, %d were", got, full)
		}
		checkLedger(t, s)
		h.Release()
		mustRead(t, s, f, int(f.Geometry().Pages()))
	}
}

// TestFailedPunchIsRetried lets the punch of a victim and of a failed fill
// fail: upkeep gives their room back.
func TestFailedPunchIsRetried(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: 8 * page}); err != nil {
		t.Fatal(err)
	}
	ffs.Set(rule(t, "punch from=1 err=EIO"))
	d := s.dirs[0]
	if !d.evict(d.queue.victim()) {
		t.Fatal("no eviction")
	}
	if ffs.Fired() != 1 {
		t.Fatal("no punch")
	}
	checkLedger(t, s)
	ffs.Set(rule(t, "punch from=1 err=EIO"), rule(t, "write path~data/ short=5000 err=EIO"))
	if err := fillRange(s, f, block.Extent{Offset: 8 * page, Length: page}); err == nil {
		t.Fatal("the fill succeeded")
	}
	checkLedger(t, s)
	full := s.Status()[0].Used
	ffs.Set()
	s.upkeep()
	// A block, a page, and the overhead of neither, for they have four pages.
	if got := s.Status()[0].Used; got != full-5*page {
		t.Fatalf("%d bytes are used, %d were", got, full)
	}
	checkLedger(t, s)
	mustRead(t, s, f, 4)
}

// TestFailedFillOfSentBlock lets a fill fail in a block of which something may
// be under way to a peer: it is not punched now.
func TestFailedFillOfSentBlock(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: page}); err != nil {
		t.Fatal(err)
	}
	s.lookup(f.ID).unitOf(0).state.Or(unitSent)
	full := s.Status()[0].Used
	ffs.Set(rule(t, "punch from=1 err=EIO"), rule(t, "write path~data/ short=5000 err=EIO"))
	if err := fillRange(s, f, block.Extent{Offset: page, Length: page}); err == nil {
		t.Fatal("the fill succeeded")
	}
	if ffs.Fired() != 1 {
		t.Fatal("it was punched")
	}
	checkLedger(t, s)
	ffs.Set(rule(t, "dropcache from=1 err=shared"))
	s.upkeep()
	if got := s.Status()[0].Used; got != full+page {
		t.Fatalf("%d bytes are used, %d were: it was punched without the proof", got, full)
	}
	ffs.Set()
	if err := s.dirs[0].lock.SyncFS(); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, f, 1)
	checkLedger(t, s)
}

// TestEmptiedPartIsRetried lets the index refuse that a part is gone whose
// last block was evicted.
func TestEmptiedPartIsRetried(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs))
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: 4 * page}); err != nil {
		t.Fatal(err)
	}
	ffs.Set(rule(t, "write path~index/ nth=2 err=EIO"))
	d := s.dirs[0]
	if !d.evict(d.queue.victim()) || ffs.Fired() != 1 {
		t.Fatal("no eviction")
	}
	if s.lookup(f.ID) == nil {
		t.Fatal("the part went although the index refused")
	}
	s.upkeep()
	if s.lookup(f.ID) != nil {
		t.Fatal("the part stayed")
	}
	if _, err := os.Stat(d.partName(f.ID)); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	checkLedger(t, s)
}

// TestCompactKeepsEmptyParts compacts the index while a part has no page, and
// fills it again: its page must be there after a restart.
func TestCompactKeepsEmptyParts(t *testing.T) {
	damage := func(t *testing.T, s *Store, h *Handle, f File) {
		t.Helper()
		fill1(t, s, f, 0)
		harm(t, s, f, 0)
		readCorrupt(t, h, 0)
	}
	evict := func(t *testing.T, s *Store, _ *Handle, f File) {
		t.Helper()
		fill1(t, s, f, 4)
		if d := s.dirs[0]; !d.evict(d.queue.victim()) {
			t.Fatal("no eviction")
		}
	}
	for _, tc := range []struct {
		name  string
		f     File
		empty func(t *testing.T, s *Store, h *Handle, f File)
	}{
		{"whole, damaged", testFile("small", "1", 1000), damage},
		{"by block, damaged", largeFile("large"), damage},
		{"by block, evicted", largeFile("large"), evict},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, 16*mib, withFS(quick()))
			h := acquire(t, s, tc.f, block.Extent{Length: page})
			tc.empty(t, s, h, tc.f)
			if p := s.lookup(tc.f.ID); p == nil || !p.empty() {
				t.Fatal("the part is not there, or not empty")
			}
			if err := s.dirs[0].compact(true); err != nil {
				t.Fatal(err)
			}
			if err := fillMissing(h, tc.f); err != nil {
				t.Fatal(err)
			}
			h.Release()
			abandon(t, s)
			s = openStore(t, dir, 16*mib, withFS(quick()))
			mustRead(t, s, tc.f, 1)
			checkLedger(t, s)
		})
	}
}

// fill1 fills one page.
func fill1(t *testing.T, s *Store, f File, page int64) {
	t.Helper()
	if err := fillRange(s, f, f.Geometry().Page(page)); err != nil {
		t.Fatal(err)
	}
}

// TestSmallDiskSmallIndex: what the index takes follows the disk, too.
func TestSmallDiskSmallIndex(t *testing.T) {
	s := openStore(t, t.TempDir(), 1<<40, withFS(smallDisk{quick(), 64 * mib}))
	if got := s.dirs[0].index.chunk; got != 64*mib/256 {
		t.Fatalf("the index grows by %d bytes on a disk of 64 MiB", got)
	}
	if got := s.Status()[0].Used; got > mib {
		t.Fatalf("an empty directory takes %d bytes", got)
	}
}

// smallDisk says that the file system has size bytes, all of them free.
type smallDisk struct {
	vfs.FS

	size int64
}

func (d smallDisk) Statfs(name string) (vfs.Room, error) {
	room, err := d.FS.Statfs(name)
	room.Total, room.Free = d.size, d.size
	return room, err
}

// TestRebootLosesAll: a file of which no page was on the disk is given back
// at once, although the recovery had it open.
func TestRebootLosesAll(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 16*mib, withFS(quick()))
	f := testFile("f", "1", 2*page)
	fill(t, s, f)
	name := s.dirs[0].partName(f.ID)
	abandon(t, s)
	if err := os.WriteFile(name, bytes.Repeat([]byte{1}, int(2*page)), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 16*mib, withFS(quick()), withBoot(2))
	if held, err := os.ReadDir(filepath.Join(dir, heldDir)); err != nil || len(held) != 0 {
		t.Fatal(held, err)
	}
	mustRead(t, s, f, 0)
	checkLedger(t, s)
}

// TestUnknownRoomUnderDescriptor: a file that somebody has open keeps what no
// record knows, over a restart.
func TestUnknownRoomUnderDescriptor(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 16*mib, withFS(quick()))
	f := testFile("f", "1", 3*page)
	if err := fillRange(s, f, block.Extent{Length: page}); err != nil {
		t.Fatal(err)
	}
	outside, err := os.OpenFile(s.dirs[0].partName(f.ID), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if _, err := outside.WriteAt([]byte("harm"), 2*page); err != nil {
		t.Fatal(err)
	}
	abandon(t, s)
	s = openStore(t, dir, 16*mib, withFS(quick()))
	if !startsWith(t, outside, 2, "harm") {
		t.Fatal("the recovery punched a file that somebody has open")
	}
	if du, used := diskUse(t, dir), s.Status()[0].Used; du > used {
		t.Fatalf("disk has %d bytes, ledger %d", du, used)
	}
	mustRead(t, s, f, 1)
}
