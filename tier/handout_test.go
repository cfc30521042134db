package tier

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// handOut asks for the descriptor of f.
func handOut(t testing.TB, s *Store, f File) (*os.File, error) {
	t.Helper()
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	fd, base, length, err := h.HandOut()
	if err == nil && (base != 0 || length != f.Length) {
		t.Fatalf("%d bytes at %d of a file of %d", length, base, f.Length)
	}
	return fd, err
}

func mustHandOut(t testing.TB, s *Store, f File) *os.File {
	t.Helper()
	fd, err := handOut(t, s, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	return fd
}

// sameBytes checks that fd still has all bytes of f.
func sameBytes(t testing.TB, fd *os.File, f File) {
	t.Helper()
	want, got := make([]byte, f.Length), make([]byte, f.Length)
	content(f, want, 0)
	if _, err := fd.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the bytes under a descriptor are wrong: %v", err)
	}
}

func openStoreWithLeases(t *testing.T, capacity int64, opts ...opener) *Store {
	t.Helper()
	s := openStore(t, t.TempDir(), capacity, opts...)
	if !s.dirs[0].canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	return s
}

// TestHandOut checks what is handed out: a descriptor of its own, for reading
// alone, that sees the file's bytes.
func TestHandOut(t *testing.T) {
	s := openStoreWithLeases(t, 16*mib)
	f := testFile("a", "1", 3*mib+5)
	fill(t, s, f)
	fd := mustHandOut(t, s, f)
	sameBytes(t, fd, f)
	flags, err := unix.FcntlInt(fd.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_NOATIME == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	// A dup would share the description that the worker takes its lease on.
	f2 := mustHandOut(t, s, f)
	if _, err := fd.Seek(77, 0); err != nil {
		t.Fatal(err)
	}
	if at, err := f2.Seek(0, 1); err != nil || at != 0 {
		t.Errorf("two descriptors share their position %d, %v", at, err)
	}
}

// TestHandOutRefused lists what is not handed out.
func TestHandOutRefused(t *testing.T) {
	f := testFile("a", "1", 2*mib)
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, s *Store)
		file    File
		want    errs.Kind
	}{
		"nothing cached": {func(*testing.T, *Store) {}, f, errs.NotCached},
		"a page missing": {func(t *testing.T, s *Store) {
			t.Helper()
			h, err := s.Acquire(f, f.Geometry().Whole())
			if err != nil {
				t.Fatal(err)
			}
			defer h.Release()
			for p := range f.Geometry().Pages() - 1 {
				if err := fillOne(h, f, p); err != nil {
					t.Fatal(err)
				}
			}
		}, f, errs.NotCached},
		"empty file": {func(*testing.T, *Store) {}, testFile("empty", "1", 0), errs.Unsupported},
		"no leases": {func(t *testing.T, s *Store) {
			t.Helper()
			fill(t, s, f)
			s.dirs[0].canLease.Store(false)
		}, f, errs.Unsupported},
		"too much held": {func(t *testing.T, s *Store) {
			t.Helper()
			fill(t, s, f)
			s.dirs[0].ledger.hold(9 * mib)
			t.Cleanup(func() { s.dirs[0].ledger.hold(-9 * mib) })
		}, f, errs.Unsupported},
		"name gone": {func(t *testing.T, s *Store) {
			t.Helper()
			fill(t, s, f)
			if err := os.Remove(s.dirs[0].partName(f.ID)); err != nil {
				t.Fatal(err)
			}
		}, f, errs.NotCached},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStoreWithLeases(t, 16*mib)
			tt.prepare(t, s)
			if fd, err := handOut(t, s, tt.file); !errors.Is(err, tt.want) || fd != nil {
				t.Fatalf("%v, want %v", err, tt.want)
			}
		})
	}
	t.Run("a part of the file", func(t *testing.T) {
		s := openStoreWithLeases(t, 16*mib)
		fill(t, s, f)
		h, err := s.Acquire(f, block.Extent{Length: page})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		if _, _, _, err := h.HandOut(); !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
	t.Run("disk fails", func(t *testing.T) {
		ffs := vfs.Faulty(vfs.OS())
		s := openStoreWithLeases(t, 16*mib, withFS(ffs))
		fill(t, s, f)
		for i, fault := range []syscall.Errno{syscall.EMFILE, syscall.EIO} {
			ffs.Set(rule(t, "open path~data/ err="+unix.ErrnoName(fault)))
			if _, err := handOut(t, s, f); !errors.Is(err, errs.Unavailable) || !errors.Is(err, fault) {
				t.Fatal(err)
			}
			if n := s.Stats().IOErrors; n != int64(i) {
				t.Errorf("%v: %d errors of the disk are counted", fault, n)
			}
		}
	})
}

// TestHandOutChecks checks that every page was compared with its checksum
// once in this run before the file is handed out, a bounded part at a time.
func TestHandOutChecks(t *testing.T) {
	dir := t.TempDir()
	small, large := testFile("small", "1", 2*mib), testFile("large", "1", checkAtOnce+mib)
	bad := testFile("bad", "1", 2*mib)
	s := openStore(t, dir, 64*mib)
	if !s.dirs[0].canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	for _, f := range []File{small, large, bad} {
		fill(t, s, f)
	}
	name := s.dirs[0].partName(bad.ID)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte{0xff, 0, 0xff, 0}, 5*page+9); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, 64*mib)
	sameBytes(t, mustHandOut(t, s, small), small)
	if _, err := handOut(t, s, bad); !errors.Is(err, errs.Corrupt) {
		t.Fatalf("a damaged file was handed out: %v", err)
	}
	if n := s.Stats().ChecksumErrors; n != 1 {
		t.Errorf("%d checksum errors", n)
	}
	if _, err := handOut(t, s, large); !errors.Is(err, errs.NotCached) {
		t.Fatalf("%d bytes were checked at once: %v", large.Length, err)
	}
	sameBytes(t, mustHandOut(t, s, large), large)
}

// TestHandedOutIsNoVictim checks that files whose descriptors are out keep
// their bytes: those that may be evicted as a whole, and those whose blocks
// are punched.
func TestHandedOutIsNoVictim(t *testing.T) {
	const blockSize = 8 * mib
	for name, f := range map[string]File{
		"whole":    testFile("a", "1", 4*mib),
		"by block": testFileBlocks("a", "1", wholeLimit+page, blockSize),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStoreWithLeases(t, 100*mib)
			fill(t, s, f)
			fd := mustHandOut(t, s, f)
			if asked, won := evictAll(s); asked == 0 || won != 0 {
				t.Errorf("%d of %d victims were evicted", won, asked)
			}
			sameBytes(t, fd, f)
			if _, n := s.Cached(f.ID); n != f.Length {
				t.Errorf("%d of %d bytes are cached", n, f.Length)
			}
			checkLedger(t, s)
			// It is a victim once it is closed.
			if err := fd.Close(); err != nil {
				t.Fatal(err)
			}
			if _, won := evictAll(s); won == 0 {
				t.Error("it stays though nobody has it")
			}
			if _, n := s.Cached(f.ID); n != 0 {
				t.Errorf("%d bytes are cached", n)
			}
			checkLedger(t, s)
		})
	}
}

// TestNoProofWithoutLease lets the kernel refuse leases as if there were none
// while a descriptor is out: that is no proof.
func TestNoProofWithoutLease(t *testing.T) {
	ffs := vfs.Faulty(vfs.OS())
	s := openStoreWithLeases(t, 100*mib, withFS(ffs))
	f := testFileBlocks("a", "1", wholeLimit+page, 8*mib)
	fill(t, s, f)
	fd, err := os.Open(s.dirs[0].partName(f.ID)) // as of an earlier run
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	for _, fault := range []string{"lease err=EOPNOTSUPP", "lease err=EINVAL", "lease err=EIO"} {
		ffs.Set(rule(t, fault))
		if _, won := evictAll(s); won != 0 {
			t.Errorf("%s: %d victims were evicted", fault, won)
		}
		sameBytes(t, fd, f)
	}
}

// evictAll asks for every victim a few times, and returns how many were asked
// for and how many were given.
func evictAll(s *Store) (asked, won int) {
	d := s.dirs[0]
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	for range 64 {
		done, found := d.evictNext(0)
		if !found {
			break
		}
		asked++
		if done {
			won++
		}
	}
	return asked, won
}

// TestTouch checks that a touched file outlives one that was not.
func TestTouch(t *testing.T) {
	s := openStore(t, t.TempDir(), 10*mib)
	a, b, c := testFile("a", "1", 3*mib), testFile("b", "1", 3*mib), testFile("c", "1", 3*mib)
	fill(t, s, a)
	fill(t, s, b)
	fill(t, s, c) // the young one, and the victim
	s.Touch(c.ID, 1)
	s.Touch(block.FileID{1}, 1) // unknown
	fill(t, s, testFile("d", "1", 2*mib))
	mustRead(t, s, c, 12)
	mustRead(t, s, a, 0)
}
