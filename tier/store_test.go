package tier

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

const (
	page = block.PageSize
	mib  = int64(1 << 20)
)

func TestFillAndRead(t *testing.T) {
	for _, length := range []int64{1, 100_000, page, page + 1, 3*page - 7, 5 * mib, wholeLimit + 3*page + 5} {
		s := openStore(t, t.TempDir(), 128*mib)
		f := testFile("a/b", "v1", length)
		g := f.Geometry()
		h, err := s.Acquire(f, g.Whole())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]block.Extent{g.Whole()}, h.Missing()); diff != "" {
			t.Fatal(diff)
		}
		if _, err := h.ReadAt(make([]byte, 1), 0); !errors.Is(err, errs.NotCached) {
			t.Fatalf("read of an absent page: %v", err)
		}
		if err := fillMissing(h, f); err != nil {
			t.Fatal(err)
		}
		if m := h.Missing(); m != nil {
			t.Fatalf("missing %v", m)
		}
		got := make([]byte, length+1)
		n, err := h.ReadAt(got, 0)
		if int64(n) != length || !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes of %d: %v", n, length, err)
		}
		want := make([]byte, length)
		content(f, want, 0)
		if !bytes.Equal(got[:n], want) {
			t.Fatal("wrong bytes")
		}
		crc, ok := h.PageCRC(g.Pages() - 1)
		if want := block.Checksum(pageBytes(f, g.Pages()-1)); !ok || crc != want {
			t.Fatalf("CRC %08x, %v; want %08x", crc, ok, want)
		}
		file, base, ok := h.Section(0, length)
		if ok != (length <= wholeLimit || s.dirs[0].tellsSent) {
			t.Fatalf("section of %d bytes: %v", length, ok)
		}
		if ok {
			b := make([]byte, length)
			if _, err := file.ReadAt(b, base); err != nil || !bytes.Equal(b, want) {
				t.Fatalf("wrong bytes in the section: %v", err)
			}
		}
		h.Release()
		h.Release()
		blocks, bytes := s.Cached(f.ID)
		if bytes != length || int64(len(blocks)) != g.Blocks() || !blocks[0].Whole {
			t.Fatalf("cached %d bytes, %+v", bytes, blocks)
		}
		checkLedger(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestZeroLengthFile(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib)
	h, err := s.Acquire(testFile("empty", "v", 0), block.Extent{Length: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if n, err := h.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v", n, err)
	}
	if m := h.Missing(); m != nil {
		t.Fatalf("missing %v", m)
	}
}

func TestAcquireCreatesNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 16*mib)
	h, err := s.Acquire(testFile("x", "v", 10*mib), block.Extent{Length: 10 * mib})
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.Reserve(block.Extent{Length: mib})
	if err != nil {
		t.Fatal(err)
	}
	r.Release()
	r.Release()
	h.Release()
	entries, err := os.ReadDir(filepath.Join(dir, dataDir))
	if err != nil || len(entries) != 0 {
		t.Fatalf("%v, %v", entries, err)
	}
	for i := range s.shards {
		if len(s.shards[i].parts) != 0 {
			t.Fatal("a part without pages stayed in memory")
		}
	}
	checkLedger(t, s)
}

func TestReopenKeepsPages(t *testing.T) {
	dir := t.TempDir()
	files := []File{testFile("a", "1", 1000), testFile("b/c", "2", 3*page+1), testFile("big", "3", 70*mib)}
	for _, kill := range []bool{false, true} {
		s := openStore(t, dir, 256*mib)
		for _, f := range files {
			fill(t, s, f)
		}
		if kill {
			abandon(t, s)
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, 256*mib)
		for _, f := range files {
			mustRead(t, s, f, int(f.Geometry().Pages()))
		}
		if st := s.Stats(); st.CachedFiles != 3 || st.FilledPages != 0 {
			t.Fatalf("%+v", st)
		}
		checkLedger(t, s)
		if err := s.dirs[0].compact(true); err != nil {
			t.Fatal(err)
		}
		checkLedger(t, s)
		abandon(t, s)
		s = openStore(t, dir, 256*mib)
		for _, f := range files {
			mustRead(t, s, f, int(f.Geometry().Pages()))
		}
		checkLedger(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryRefusals(t *testing.T) {
	t.Run("locked", func(t *testing.T) {
		dir := t.TempDir()
		openStore(t, dir, 16*mib)
		_, err := tryOpen(dir, 16*mib)
		if !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), "process ") {
			t.Fatal(err)
		}
	})
	t.Run("other cluster", func(t *testing.T) {
		dir := t.TempDir()
		cluster := func(id string) opener { return func(o *Options, _ *Config) { o.ClusterID = id } }
		s := openStore(t, dir, 16*mib) // bound to none
		if err := s.BindCluster("one"); err != nil {
			t.Fatal(err)
		}
		if err := s.BindCluster("two"); !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := tryOpen(dir, 16*mib, cluster("two"))
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "two") {
			t.Fatal(err)
		}
		openStore(t, dir, 16*mib, cluster("one"))
	})
	t.Run("newer format", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, formatFile), []byte(`{"format":7}`), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := tryOpen(dir, 16*mib)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "format 7") || !strings.Contains(err.Error(), "format 1") {
			t.Fatal(err)
		}
	})
	t.Run("not ours", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := tryOpen(dir, 16*mib)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "thesis.tex") {
			t.Fatal(err)
		}
	})
	t.Run("configuration", func(t *testing.T) {
		_, err := Open([]Config{{Dir: "relative", Medium: "tape", FreeShare: 2}}, Options{}, nil, nil)
		for _, want := range []string{"dir:", "medium:", "capacity:", "free_share:", "open_files:"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("%v does not name %s", err, want)
			}
		}
	})
}

func TestInvalidCalls(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib)
	f := testFile("a", "v", 4*page)
	bad := f
	bad.BlockSize = 12
	if _, err := s.Acquire(bad, block.Extent{Length: 1}); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	h, err := s.Acquire(f, block.Extent{Offset: page, Length: page})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if _, err := h.ReadAt(make([]byte, 10), 0); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	for _, e := range []block.Extent{{Length: page}, {Offset: page + 1, Length: 5}, {Offset: page, Length: 2 * page}} {
		if _, err := h.Reserve(e); !errors.Is(err, errs.Invalid) {
			t.Fatal(e, err)
		}
	}
	r, err := h.Reserve(block.Extent{Offset: page, Length: page})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Fill(0, make([]byte, page)); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if _, err := r.Fill(1, make([]byte, page-1)); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if _, err := r.Fill(1, pageBytes(f, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Fill(1, pageBytes(f, 1)); err != nil {
		t.Fatalf("second fill of the same bytes: %v", err)
	}
	if _, err := r.Fill(1, make([]byte, page)); !errors.Is(err, errs.Corrupt) {
		t.Fatalf("second fill of other bytes: %v", err)
	}
	r.Release()
	if _, err := r.Fill(1, pageBytes(f, 1)); err != nil {
		t.Fatalf("fill of a present page after release: %v", err)
	}
}
