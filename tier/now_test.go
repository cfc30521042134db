package tier

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/vfs"
)

// TestReadNow: what is at hand is read, and everything else left to those who
// may wait.
func TestReadNow(t *testing.T) {
	f, large := testFile("f", "1", 3*page+5), largeFile("large")
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, s *Store, p *part)
		f     File
		off   int64
		n     int
		want  bool
	}{
		"a part of a page": {f: f, off: page + 7, n: 4096, want: true},
		"a page":           {f: f, off: 3 * page, n: 5, want: true},
		"a large file":     {f: large, off: 5, n: 100, want: true},
		"two pages":        {f: f, off: page - 1, n: 2},
		"behind the end":   {f: f, off: 3 * page, n: 6},
		"before the start": {f: f, off: -1, n: 1},
		"absent":           {f: large, off: page, n: 100},
		"another block":    {f: large, off: block.DefaultBlockSize, n: 100},
		"another file":     {f: testFile("g", "1", page), off: 0, n: 100},
		"not checked": {f: f, off: 5, n: 100, spoil: func(_ *testing.T, s *Store, _ *part) {
			s.dirs[0].unverifyAll()
		}},
		"not open": {f: f, off: 5, n: 100, spoil: func(_ *testing.T, s *Store, p *part) {
			p.mu.Lock()
			defer p.mu.Unlock()
			s.dirs[0].letGo(p)
		}},
		"being changed": {f: f, off: 5, n: 100, spoil: func(t *testing.T, _ *Store, p *part) {
			t.Helper()
			p.mu.Lock()
			t.Cleanup(p.mu.Unlock)
		}},
		"counted for promotion": {f: f, off: 0, n: 100, spoil: func(_ *testing.T, s *Store, _ *part) {
			s.dirs[0].slow = true
		}},
		"not in memory": {f: f, off: 5, n: 100, spoil: forgetBytes},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), 16*mib)
			fill(t, s, f)
			if err := fillRange(s, large, block.Extent{Length: page}); err != nil {
				t.Fatal(err)
			}
			p := s.lookup(tc.f.ID)
			if tc.spoil != nil {
				tc.spoil(t, s, p)
			}
			if p != nil {
				p.unitOf(0).state.And(^unitVisited)
			}
			got := make([]byte, tc.n)
			crc, ok := s.ReadNow(tc.f, got, tc.off)
			if ok != tc.want {
				t.Fatalf("%v, want %v", ok, tc.want)
			}
			if !ok {
				return
			}
			want := pageBytes(tc.f, tc.off/page)
			if !bytes.Equal(got, want[tc.off%page:][:tc.n]) || crc != block.Checksum(want) {
				t.Fatal("wrong bytes, or their checksum")
			}
			if p.unitOf(0).state.Load()&unitVisited == 0 {
				t.Error("it does not count as a hit")
			}
		})
	}
}

// forgetBytes takes a file out of the kernel's memory.
func forgetBytes(t *testing.T, s *Store, p *part) {
	t.Helper()
	if err := s.dirs[0].checkpoint(0); err != nil {
		t.Fatal(err)
	}
	file, ok := vfs.OSFile(p.file.File)
	if !ok {
		t.Fatal("no file of the machine's")
	}
	// vfs.Cached would not do to look: the kernel reads what a read that does not
	// wait has missed.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.Fadvise(int(file.Fd()), 0, p.length, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		var in unix.Cachestat_t
		switch err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{Len: uint64(p.length)}, &in, 0); {
		case err == nil && in.Cache == 0:
			return
		case err != nil, time.Now().After(end):
			t.Skip("SKIPPED, NOT TESTED: the file system of temporary files keeps what it has in memory: ", err)
		}
	}
}

// TestSectionNow is TestReadNow for what is sent.
func TestSectionNow(t *testing.T) {
	f := testFile("f", "1", 3*page+5)
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, s *Store, p *part)
		e     block.Extent
		want  bool
	}{
		"all":            {e: f.Geometry().Whole(), want: true},
		"a part":         {e: block.Extent{Offset: 7, Length: 2 * page}, want: true},
		"behind the end": {e: block.Extent{Offset: 3 * page, Length: 6}},
		"nothing":        {},
		"not checked": {e: f.Geometry().Whole(), spoil: func(_ *testing.T, s *Store, _ *part) {
			s.dirs[0].unverifyAll()
		}},
		"absent": {e: f.Geometry().Whole(), spoil: func(_ *testing.T, s *Store, _ *part) {
			dropPages(s, f, 0, 3)
		}},
		"not open": {e: f.Geometry().Whole(), spoil: func(_ *testing.T, s *Store, p *part) {
			p.mu.Lock()
			defer p.mu.Unlock()
			s.dirs[0].letGo(p)
		}},
		"not in memory": {e: f.Geometry().Whole(), spoil: forgetBytes},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), 16*mib)
			fill(t, s, f)
			if !vfs.Cached(s.lookup(f.ID).file.File, 0, 1) {
				t.Skip("SKIPPED, NOT TESTED: the kernel does not tell what is in memory")
			}
			if tc.spoil != nil {
				tc.spoil(t, s, s.lookup(f.ID))
			}
			h := acquire(t, s, f, f.Geometry().Whole())
			file, base, ok := h.SectionNow(tc.e.Offset, tc.e.Length)
			if ok != tc.want {
				t.Fatalf("%v, want %v", ok, tc.want)
			}
			if !ok {
				return
			}
			got, want := make([]byte, tc.e.Length), make([]byte, tc.e.Length)
			content(f, want, tc.e.Offset)
			if _, err := file.ReadAt(got, base); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("wrong bytes, or %v", err)
			}
		})
	}
	s := openStore(t, t.TempDir(), 16*mib)
	fill(t, s, f)
	h := acquire(t, s, f, f.Geometry().Whole())
	h.VerifyAlways()
	if _, _, ok := h.SectionNow(0, page); ok {
		t.Error("it is sent, though all reads are to be checked")
	}
}

// TestSectionNowOfCutFolios: what Section does not give, it does not either.
func TestSectionNowOfCutFolios(t *testing.T) {
	sh := shape{testFileBlocks("cut", "1", wholeLimit+page, largestFolio/2), block.Extent{Length: page}}
	s := storeOf(t, t.TempDir(), sh)
	h := acquire(t, s, sh.f, sh.e)
	if _, _, ok := h.SectionNow(0, page); ok {
		t.Error("a part of which folios may be cut is sent from its file")
	}
}
