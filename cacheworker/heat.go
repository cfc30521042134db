package cacheworker

import (
	"cmp"
	"container/heap"
	"slices"
	"sync"
	"time"

	"millrace/api"
	"millrace/block"
)

const (
	// heatWindow is for how long reads are summed up before the sums are told.
	heatWindow = 5 * time.Second
	// heatCounters bounds what is counted at a time, and hottestTold what of it
	// the masters are told.
	heatCounters = 256
	hottestTold  = 16
	// leastHeat is what a read counts for at least, in bytes: a small one costs
	// as much processor time as sending so many.
	leastHeat = 64 << 10
)

// heat finds what other hosts read most from this worker, of any number of
// blocks in little memory, by the Space-Saving algorithm: a block that is not
// among those that are counted takes the place of the least of them, and
// inherits its count as its possible error. Metwally, Agrawal and El Abbadi,
// "Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005.
//
// It is safe for concurrent use. Counting allocates nothing.
type heat struct {
	mu    sync.Mutex
	began time.Time         // of this window
	at    map[block.Key]int // in least
	least counterHeap
	told  []*api.BlockHeat // of the last window; replaced, never changed
}

type heatCounter struct {
	key       block.Key
	bytes     int64
	inherited int64 // of which so many may be others'
}

// certain is how many bytes were read of the block for sure.
func (c *heatCounter) certain() int64 { return c.bytes - c.inherited }

func newHeat() *heat {
	h := &heat{began: time.Now(), at: make(map[block.Key]int, heatCounters)}
	h.least = counterHeap{all: make([]heatCounter, 0, heatCounters), at: h.at}
	return h
}

// note counts a read of n bytes.
func (h *heat) note(k block.Key, n int64) {
	n = max(n, leastHeat)
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := h.at[k]
	switch {
	case ok:
		h.least.all[i].bytes += n
	case len(h.least.all) < heatCounters:
		i = len(h.least.all)
		h.least.all = append(h.least.all, heatCounter{key: k, bytes: n})
		h.at[k] = i
	default:
		c := &h.least.all[0]
		delete(h.at, c.key)
		*c = heatCounter{key: k, bytes: c.bytes + n, inherited: c.bytes}
		h.at[k], i = 0, 0
	}
	heap.Fix(&h.least, i)
}

// hottest returns what was read most in the last window that is over, with the
// bytes per second that are certain. Nobody may change it.
func (h *heat) hottest() []*api.BlockHeat {
	h.mu.Lock()
	defer h.mu.Unlock()
	if took := time.Since(h.began); took >= heatWindow {
		h.roll(took.Seconds())
	}
	return h.told
}

// roll ends a window that took so many seconds. h.mu is held.
func (h *heat) roll(seconds float64) {
	all := h.least.all
	slices.SortFunc(all, func(a, b heatCounter) int { return cmp.Compare(b.certain(), a.certain()) })
	h.told = nil
	for _, c := range all[:min(len(all), hottestTold)] {
		h.told = append(h.told, &api.BlockHeat{
			FileId: slices.Clone(c.key.File[:]), Index: c.key.Index, Rate: int64(float64(c.certain()) / seconds),
		})
	}
	h.began, h.least.all = time.Now(), all[:0]
	clear(h.at)
}

// counterHeap has the least counter first, and keeps at true.
type counterHeap struct {
	all []heatCounter
	at  map[block.Key]int
}

func (h *counterHeap) Len() int           { return len(h.all) }
func (h *counterHeap) Less(i, j int) bool { return h.all[i].bytes < h.all[j].bytes }

func (h *counterHeap) Swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	h.at[h.all[i].key], h.at[h.all[j].key] = i, j
}

// Push implements heap.Interface; counters are replaced, not pushed.
func (h *counterHeap) Push(any) {}

// Pop implements heap.Interface.
func (h *counterHeap) Pop() any { return nil }
