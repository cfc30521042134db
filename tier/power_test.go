package tier

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// TestEndOfAnEarlierRun: a run that ended well says nothing of the next one,
// which may have kept pages and recorded none of them.
func TestEndOfAnEarlierRun(t *testing.T) {
	f := testFile("f", "1", 3*page)
	t.Run("kill", func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir, 16*mib, withFS(quick()))
		fill1(t, s, f, 0)
		name := s.dirs[0].partName(f.ID)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		abandon(t, openStore(t, dir, 16*mib, withFS(quick())))
		raw, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.WriteAt(make([]byte, page), page); err != nil {
			t.Fatal(err)
		}
		if err := raw.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, 16*mib, withFS(quick()))
		checkLedger(t, s)
		mustRead(t, s, f, 1)
	})
	t.Run("power cut", func(t *testing.T) {
		for seed := range uint64(40) {
			m := vfs.NewMem(32*mib, 1000)
			s := openStore(t, "/cache", 16*mib, withFS(m))
			fill1(t, s, f, 0)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, "/cache", 16*mib, withFS(m))
			fill1(t, s, f, 1)
			after := openStore(t, "/cache", 16*mib, withFS(m.Crash(seed)), withBoot(2))
			checkLedger(t, after)
			if _, err := readPages(after, f); err != nil {
				t.Fatal(fmt.Errorf("seed %d: %w", seed, err))
			}
		}
	})
}

// TestCleanEndWithSpoiledPages: room that is taken by no page is found by the
// next start, although the store was closed.
func TestCleanEndWithSpoiledPages(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 16*mib, withFS(quick()))
	f := testFile("f", "1", 3*page)
	fill(t, s, f)
	harm(t, s, f, 1)
	h := acquire(t, s, f, f.Geometry().Whole())
	readCorrupt(t, h, 1)
	h.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 16*mib, withFS(quick()))
	checkLedger(t, s)
	mustRead(t, s, f, 2)
}

// TestIndexGrowsOnFullDisk: a disk that has no room for the next piece of the
// index gives none of it; what it gave before it said so is given back.
func TestIndexGrowsOnFullDisk(t *testing.T) {
	m := vfs.NewMem(32*mib, 1000)
	s := openStore(t, "/cache", 16*mib, withFS(m))
	d := s.dirs[0]
	for i := 0; d.index.left() >= d.index.chunk/2; i++ {
		fill(t, s, testFile(fmt.Sprint(i), "1", 1))
	}
	room, err := m.Statfs("/")
	if err != nil {
		t.Fatal(err)
	}
	others, err := m.View().OpenFile("/others", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := others.Fallocate(0, room.Free-15*room.BlockSize); err != nil {
		t.Fatal(err)
	}
	f := testFile("f", "1", 1)
	if err := fillRange(s, f, f.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
	name := segmentName(d.index.dir, d.index.position().segment)
	if fi, err := m.Stat(name); err != nil || vfs.Allocated(fi) > d.indexFiles[name] {
		t.Fatalf("the index takes %d bytes, %d are charged: %v", vfs.Allocated(fi), d.indexFiles[name], err)
	}
	if err := others.Truncate(0); err != nil {
		t.Fatal(err)
	}
	fill(t, s, f)
	checkLedger(t, s)
}
