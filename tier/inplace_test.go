package tier

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
)

// handOutFilling asks for the descriptor of f as it is now.
func handOutFilling(t testing.TB, s *Store, f File) (*os.File, uint64, error) {
	t.Helper()
	h, err := s.Acquire(f, block.Extent{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	fd, base, length, mark, err := h.HandOutFilling()
	if err == nil && (base != 0 || length != f.Length || mark == 0) {
		t.Fatalf("%d bytes at %d of a file of %d, mark %d", length, base, f.Length, mark)
	}
	return fd, mark, err
}

func mustHandOutFilling(t testing.TB, s *Store, f File) (*os.File, uint64) {
	t.Helper()
	fd, mark, err := handOutFilling(t, s, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	return fd, mark
}

// liesIn asks for e of f in both ways.
func liesIn(t testing.TB, s *Store, f File, mark uint64, e block.Extent) (now, ever bool) {
	t.Helper()
	h, err := s.Acquire(f, e)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	return h.LiesInNow(mark, e.Offset, e.Length), h.LiesIn(mark, e.Offset, e.Length)
}

// sameRange checks that fd has the bytes e of f.
func sameRange(t testing.TB, fd *os.File, f File, e block.Extent) {
	t.Helper()
	want, got := make([]byte, e.Length), make([]byte, e.Length)
	content(f, want, e.Offset)
	if _, err := fd.ReadAt(got, e.Offset); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the bytes of %v under a descriptor are wrong: %v", e, err)
	}
}

// TestFillingIsHandedOut fills a file under a descriptor: what is there is told,
// and nothing else.
func TestFillingIsHandedOut(t *testing.T) {
	s := openStoreWithLeases(t, 64*mib)
	f := testFile("a", "1", 4*mib+5)
	if _, _, err := handOutFilling(t, s, f); !errors.Is(err, errs.NotCached) {
		t.Fatalf("nothing is cached: %v", err)
	}
	first, rest := block.Extent{Length: mib}, block.Extent{Offset: mib, Length: 3*mib + 5}
	if err := fillRange(s, f, first); err != nil {
		t.Fatal(err)
	}
	fd, mark := mustHandOutFilling(t, s, f)
	sameRange(t, fd, f, first)
	for _, tt := range []struct {
		name string
		mark uint64
		e    block.Extent
		want bool
	}{
		{"there", mark, first, true},
		{"some bytes of it", mark, block.Extent{Offset: 5, Length: 7}, true},
		{"not there", mark, rest, false},
		{"not all there", mark, block.Extent{Offset: mib - 1, Length: 2}, false},
		{"another mark", mark + 1, first, false},
		{"nothing", mark, block.Extent{}, false},
	} {
		if now, ever := liesIn(t, s, f, tt.mark, tt.e); now != tt.want || ever != tt.want {
			t.Errorf("%s: %t, %t", tt.name, now, ever)
		}
	}
	if err := fillRange(s, f, rest); err != nil {
		t.Fatal(err)
	}
	if now, ever := liesIn(t, s, f, mark, f.Geometry().Whole()); !now || !ever {
		t.Errorf("the whole file: %t, %t", now, ever)
	}
	sameBytes(t, fd, f)
	h, err := s.Acquire(f, first)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if h.LiesIn(mark, f.Length-1, 1) {
		t.Error("bytes that the handle does not pin are told of")
	}
	h.VerifyAlways()
	if h.LiesIn(mark, 0, 1) || h.LiesInNow(mark, 0, 1) {
		t.Error("nobody checks what is read by a descriptor")
	}
	if _, again := mustHandOutFilling(t, s, f); again != mark {
		t.Errorf("mark %d, then %d", mark, again)
	}
	other := testFile("b", "1", 2*mib)
	fill(t, s, other)
	if _, m := mustHandOutFilling(t, s, other); m == mark {
		t.Error("two files have one mark")
	}
}

// TestFillingRefused lists what is not handed out before it is whole.
func TestFillingRefused(t *testing.T) {
	f := testFile("a", "1", 2*mib)
	for name, tt := range map[string]struct {
		prepare func(s *Store)
		file    File
		want    errs.Kind
	}{
		"empty":         {func(*Store) {}, testFile("empty", "1", 0), errs.Unsupported},
		"no leases":     {func(s *Store) { s.dirs[0].canLease.Store(false) }, f, errs.Unsupported},
		"too much held": {func(s *Store) { s.dirs[0].ledger.hold(33 * mib) }, f, errs.Unsupported},
		"long":          {func(*Store) {}, testFile("b", "1", 64*mib/fillingShare+1), errs.Unsupported},
		"name gone":     {func(s *Store) { _ = os.Remove(s.dirs[0].partName(f.ID)) }, f, errs.NotCached},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStoreWithLeases(t, 64*mib)
			if tt.file.Length > 0 {
				if err := fillRange(s, tt.file, block.Extent{Length: page}); err != nil {
					t.Fatal(err)
				}
			}
			tt.prepare(s)
			if fd, _, err := handOutFilling(t, s, tt.file); !errors.Is(err, tt.want) || fd != nil {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

// TestFillingIsNoVictim evicts all there is while descriptors of files that are
// not whole are out: what was told of stays.
func TestFillingIsNoVictim(t *testing.T) {
	for name, f := range map[string]File{
		"whole":    testFile("a", "1", 4*mib),
		"by block": testFileBlocks("a", "1", wholeLimit+page, 8*mib),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStoreWithLeases(t, fillingShare*(wholeLimit+mib))
			half := block.Extent{Length: f.Length / 2 / page * page}
			if err := fillRange(s, f, half); err != nil {
				t.Fatal(err)
			}
			fd, mark := mustHandOutFilling(t, s, f)
			if asked, won := evictAll(s); asked == 0 || won != 0 {
				t.Errorf("%d of %d victims were evicted", won, asked)
			}
			if _, ever := liesIn(t, s, f, mark, half); !ever {
				t.Error("what was there is not any more")
			}
			sameRange(t, fd, f, half)
			checkLedger(t, s)
			if err := fd.Close(); err != nil {
				t.Fatal(err)
			}
			if _, won := evictAll(s); won == 0 {
				t.Error("it stays though nobody has it")
			}
			if now, ever := liesIn(t, s, f, mark, half); now || ever {
				t.Error("what was evicted is told of")
			}
		})
	}
}

// TestFillingMeetsAnother gives a file another backing file while a descriptor
// of the first is out: its bytes stay, and those of the other are not told of.
func TestFillingMeetsAnother(t *testing.T) {
	s := openStoreWithLeases(t, 64*mib)
	f := testFile("a", "1", 2*mib)
	half := block.Extent{Length: mib}
	if err := fillRange(s, f, half); err != nil {
		t.Fatal(err)
	}
	fd, mark := mustHandOutFilling(t, s, f)
	before, err := s.Acquire(f, half)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Release()
	if n, _, err := s.Drop(f.MountID, f.Path); err != nil || n != 1 {
		t.Fatalf("%d files were dropped, %v", n, err)
	}
	fill(t, s, f)
	if now, ever := liesIn(t, s, f, mark, half); now || ever {
		t.Errorf("bytes of another file are told of (%t, %t)", now, ever)
	}
	if !before.LiesIn(mark, 0, mib) {
		t.Error("a handle from before the drop does not see its file")
	}
	sameRange(t, fd, f, half)
	if _, other := mustHandOutFilling(t, s, f); other == mark {
		t.Error("another file has the same mark")
	}
	checkLedger(t, s)
}

// TestMarkOutlivesRestart reads on by a descriptor of the run before.
func TestMarkOutlivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	s := openStore(t, dir, 64*mib)
	if !s.dirs[0].canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	f := testFile("a", "1", 2*mib)
	if err := fillRange(s, f, block.Extent{Length: mib}); err != nil {
		t.Fatal(err)
	}
	fd, mark := mustHandOutFilling(t, s, f)
	abandon(t, s)
	s = openStore(t, dir, 64*mib)
	if now, ever := liesIn(t, s, f, mark, block.Extent{Length: mib}); now || !ever {
		t.Errorf("%t before the pages were checked, %t then", now, ever)
	}
	fill(t, s, f)
	if _, ever := liesIn(t, s, f, mark, f.Geometry().Whole()); !ever {
		t.Error("what was filled since is not told of")
	}
	sameBytes(t, fd, f)
}
