package cacheworker

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/blockio"
)

func heatKey(i int) block.Key {
	return block.Key{File: block.FileID{byte(i >> 8), byte(i)}, Index: uint32(i)}
}

// TestHeatFindsTheHottest reads many more blocks than are counted, and a few of
// them more often: these are told, with no more than was read of them and not
// much less.
func TestHeatFindsTheHottest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, hot, all = 1 << 20, 4, 5000
		h := newHeat()
		for i := range all {
			h.note(heatKey(hot+i), size)
			if i%4 == 0 {
				for j := range hot {
					h.note(heatKey(j), size)
				}
			}
		}
		if n := len(h.at); n != heatCounters || len(h.least.all) != n {
			t.Errorf("%d blocks are counted in %d counters, want %d", n, len(h.least.all), heatCounters)
		}
		if told := h.hottest(); told != nil {
			t.Errorf("%d blocks are told within the window", len(told))
		}
		time.Sleep(heatWindow)
		told := h.hottest()
		if len(told) != hottestTold {
			t.Fatalf("%d blocks are told, want %d", len(told), hottestTold)
		}
		most := int64(all / 4 * size / heatWindow.Seconds())
		var found []uint32
		for _, b := range told[:hot] {
			if id := heatKey(int(b.GetIndex())).File; !slices.Equal(b.GetFileId(), id[:]) {
				t.Errorf("block %d is told of file %x", b.GetIndex(), b.GetFileId())
			}
			if b.GetRate() > most || b.GetRate() < most*9/10 {
				t.Errorf("block %d is read at %d bytes/s, want nearly %d", b.GetIndex(), b.GetRate(), most)
			}
			found = append(found, b.GetIndex())
		}
		for _, b := range told[hot:] {
			if once := int64(size / heatWindow.Seconds()); b.GetRate() > once {
				t.Errorf("block %d, which was read once, is told to be read at %d bytes/s, more than %d", b.GetIndex(), b.GetRate(), once)
			}
		}
		slices.Sort(found)
		if !slices.Equal(found, []uint32{0, 1, 2, 3}) {
			t.Errorf("the hottest are %v", found)
		}
		time.Sleep(heatWindow)
		if told := h.hottest(); told != nil {
			t.Errorf("%d blocks are told that nobody reads any more", len(told))
		}
	})
}

// TestSmallReadsCountForMore: what they cost is not their bytes.
func TestSmallReadsCountForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeat()
		h.note(heatKey(1), 1)
		h.note(heatKey(2), leastHeat+1)
		time.Sleep(2 * heatWindow) // however long the window was
		told := h.hottest()
		if len(told) != 2 || told[0].GetIndex() != 2 || told[1].GetRate() != leastHeat/10 {
			t.Errorf("told %v", told)
		}
	})
}

func TestHeatAllocatesNothing(t *testing.T) {
	h := newHeat()
	i := 0
	if n := testing.AllocsPerRun(10_000, func() { i++; h.note(heatKey(i), 1) }); n != 0 {
		t.Errorf("%v allocations for a read", n)
	}
}

// TestWhoseReadsCount: those of other hosts, each for all of a file that one
// worker owns, or for its block; not those of this host or of other workers.
func TestWhoseReadsCount(t *testing.T) {
	for name, tc := range map[string]struct {
		limit int64
		index uint32
		o     blockio.ReadOptions
		local bool
		want  int64
	}{
		"another host":          {1 << 40, block.WholeFile, blockio.ReadOptions{}, false, 2 * mib},
		"of a file by blocks":   {0, 0, blockio.ReadOptions{}, false, 2 * mib},
		"this host":             {1 << 40, block.WholeFile, blockio.ReadOptions{}, true, 0},
		"a worker":              {1 << 40, block.WholeFile, blockio.ReadOptions{CachedOnly: true}, false, 0},
		"a worker, for replica": {1 << 40, block.WholeFile, blockio.ReadOptions{ReadThrough: true}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.placeAbove(p.rig, tc.limit)
			tk := p.put("f", mib)
			p.mustRead(tk, tk.Geometry().Whole()) // so that it is cached
			key := block.Key{File: tk.FileID, Index: tc.index}
			p.w.heat.endless()
			before := p.w.heat.bytesOf(key)
			conn := p.conn
			if tc.local {
				conn = p.unix
			}
			h, err := conn.Open(t.Context(), tk)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, mib)
			for range 2 {
				if _, err := conn.ReadAt(t.Context(), h, got, 0, tc.o); err != nil {
					t.Fatal(err)
				}
			}
			if n := p.w.heat.bytesOf(key) - before; n != tc.want {
				t.Errorf("%d bytes count, want %d", n, tc.want)
			}
		})
	}
}

// endless makes the window last for as long as a test takes.
func (h *heat) endless() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.began = time.Now().Add(time.Hour)
}

// bytesOf returns what was counted of a block in this window.
func (h *heat) bytesOf(k block.Key) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, ok := h.at[k]; ok {
		return h.least.all[i].bytes
	}
	return 0
}
