package tier

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// TestCleanStartLooksAtNoFile: what the index says after a clean end is
// enough; the ledger is right all the same.
func TestCleanStartLooksAtNoFile(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 32*mib)
	for _, name := range []string{"a", "b", "c"} {
		fill(t, s, testFile(name, "1", 3*page))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ffs := vfs.Faulty(vfs.OS())
	ffs.Set(rule(t, "readdir path~data from=1 err=EIO"))
	s = openStore(t, dir, 32*mib, withFS(ffs))
	if ffs.Fired() != 0 || s.Stats().CachedFiles != 3 {
		t.Fatalf("%d directories were listed, %d files are cached", ffs.Fired(), s.Stats().CachedFiles)
	}
	checkLedger(t, s)
	abandon(t, s)
	if _, err := tryOpen(dir, 32*mib, withFS(ffs)); err == nil {
		t.Fatal("a start after kill -9 does not list the files")
	}
}

// TestKillLooksAtIncompleteFiles: within one boot, a file with all its pages
// can have no room that no page has.
func TestKillLooksAtIncompleteFiles(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes int64 // that are filled
		boot  byte
		looks bool
	}{
		{"whole", 3 * page, 1, false},
		{"whole, another boot", 3 * page, 2, true},
		{"incomplete", 2 * page, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, f := t.TempDir(), testFile("f", "1", 3*page)
			s := openStore(t, dir, 32*mib, withBoot(1))
			if err := fillRange(s, f, block.Extent{Length: tc.bytes}); err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(s.dirs[0].partName(f.ID))
			abandon(t, s)
			ffs := vfs.Faulty(vfs.OS())
			ffs.Set(rule(t, "stat path~"+name+" from=1 err=EIO"))
			s, err := tryOpen(dir, 32*mib, withFS(ffs), withBoot(tc.boot))
			if err == nil {
				defer abandon(t, s)
			}
			if looked := ffs.Fired() > 0; looked != tc.looks {
				t.Fatalf("the file was looked at: %v (%v)", looked, err)
			}
		})
	}
}

// TestRemovedWhileClosed: a file that somebody removed is found missing when
// it is read, and can be filled again.
func TestRemovedWhileClosed(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 32*mib)
	f := testFile("f", "1", 3*page)
	fill(t, s, f)
	name := s.dirs[0].partName(f.ID)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 32*mib)
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ReadAt(make([]byte, 100), 0); !errors.Is(err, errs.Corrupt) {
		t.Fatalf("read of a file that is gone: %v", err)
	}
	h.Release()
	fill(t, s, f)
	mustRead(t, s, f, 3)
	checkLedger(t, s)
}

// TestUnrecordedFileIsFound: a file of which nothing could be recorded makes
// the end one that is not clean.
func TestUnrecordedFileIsFound(t *testing.T) {
	dir := t.TempDir()
	ffs := vfs.Faulty(vfs.OS())
	s := openStore(t, dir, 32*mib, withFS(ffs))
	f := testFile("f", "1", 3*page)
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Release) // at the end it is still in use
	r, err := h.Reserve(f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	ffs.Set(rule(t, "write path~data/ err=ENOSPC"))
	if _, err := r.Fill(0, pageBytes(f, 0)); err == nil {
		t.Fatal("the fill did not fail")
	}
	ffs.Set()
	name := s.dirs[0].partName(f.ID)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("the test's own assumption: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 32*mib)
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file that no index knows is still there: %v", err)
	}
	checkLedger(t, s)
}
