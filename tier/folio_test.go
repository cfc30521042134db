package tier

import (
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"millrace/block"
	"millrace/internal/vfs"
)

// TestNoFolioIsCut gives up blocks of files that may be sent from their file:
// evicted, and damaged, in their middle and at their end. The kernel clears
// what it cuts off a folio, also where that waits in a socket's queue, so each
// hole begins and ends between the largest ones that there can be.
func TestNoFolioIsCut(t *testing.T) {
	for name, tc := range map[string]struct {
		f    File
		page int64 // of the unit that is given up
	}{
		"block":        {testFileBlocks("f", "1", wholeLimit+largestFolio+5, largestFolio), 0},
		"end":          {testFileBlocks("f", "1", wholeLimit+3*page+5, largestFolio), wholeLimit / page},
		"larger block": {testFileBlocks("f", "1", wholeLimit+5, 2*largestFolio), 16},
		"small blocks": {largeFile("f"), 4},
	} {
		t.Run(name, func(t *testing.T) {
			holes := &holeFS{FS: quick()}
			s := openStore(t, t.TempDir(), 32*mib, withFS(holes))
			d, g := s.dirs[0], tc.f.Geometry()
			b := g.Block(g.BlockOf(tc.page * page))
			e := block.Extent{Offset: b.Offset, Length: min(b.Length, 8*page)}
			if err := fillRange(s, tc.f, e); err != nil {
				t.Fatal(err)
			}
			sendable := s.lookup(tc.f.ID).sendable()
			if want := g.BlockSize >= largestFolio; sendable != want {
				t.Fatalf("sent from its file: %t, want %t", sendable, want)
			}
			first, end := g.PageRange(e)
			dropPages(s, tc.f, first, end-1)
			s.upkeep()
			if holes.take() != nil {
				t.Fatal("a hole beside a page that is there")
			}
			dropPages(s, tc.f, end-1, end)
			s.upkeep()
			all := holes.take()
			if err := fillRange(s, tc.f, e); err != nil {
				t.Fatal(err)
			}
			evictAt(t, s, tc.f, first)
			evicted := holes.take()
			if d.ledger.state().reserved != 0 || len(all) != 1 || len(evicted) != 1 {
				t.Fatalf("holes %v of what was damaged, %v of what was evicted", all, evicted)
			}
			for _, h := range slices.Concat(all, evicted) {
				if h.Offset > e.Offset || h.End() < e.End() || sendable && (h.Offset%largestFolio != 0 || h.Length%largestFolio != 0) {
					t.Errorf("hole %v of block %v", h, b)
				}
				if next := g.Block(g.BlockOf(b.Offset) + 1); !next.IsEmpty() && h.End() > next.Offset {
					t.Errorf("hole %v goes into the next block", h)
				}
			}
			checkLedger(t, s)
		})
	}
}

// holeFS notes the holes that are punched into data files.
type holeFS struct {
	vfs.FS

	mu    sync.Mutex
	holes []block.Extent
}

func (h *holeFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := h.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.Contains(name, "/"+dataDir+"/") {
		return f, err
	}
	return holeFile{f, h}, nil
}

func (h *holeFS) take() []block.Extent {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.holes
	h.holes = nil
	return all
}

type holeFile struct {
	vfs.File

	fs *holeFS
}

func (f holeFile) PunchHole(off, n int64) error {
	f.fs.mu.Lock()
	f.fs.holes = append(f.fs.holes, block.Extent{Offset: off, Length: n})
	f.fs.mu.Unlock()
	return f.File.PunchHole(off, n)
}
