package client

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
)

const (
	// slowShare is which part of the answers counts as slow.
	slowShare = 0.05
	// An answer is never slow before slowLeast, which the first byte of an
	// under-store may need after many answers from the cache: whoever is asked
	// beside would have it fetched again. It always is after slowMost, and whoever
	// has not answered by then is not waited for alone any more.
	// slowUnknown holds until slowAfter answers came.
	slowLeast   = 100 * time.Millisecond
	slowMost    = 2 * time.Second
	slowUnknown = 500 * time.Millisecond
	slowAfter   = 32
	// The history halves when it has historyLength answers.
	historyLength = 1024
	// historyRanges are ranges of time: four to a doubling, from 16 us on.
	historyRanges = 4 * 24
)

// history is how long a worker took for its answers, of late. Reads of up to a
// page and longer ones are told apart. It is safe for concurrent use.
type history struct {
	slow [2]atomic.Int64 // ns; 0: too few answers

	mu     sync.Mutex
	counts [2][historyRanges]uint16
	total  [2]int
}

func sizeClass(n int) int {
	if int64(n) <= block.PageSize {
		return 0
	}
	return 1
}

// slowAt returns after what time an answer of n bytes is slow for this worker.
func (h *history) slowAt(n int) time.Duration {
	if at := h.slow[sizeClass(n)].Load(); at != 0 {
		return time.Duration(at)
	}
	return slowUnknown
}

// note enters an answer.
func (h *history) note(n int, took time.Duration) {
	class := sizeClass(n)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[class][rangeOf(took)]++
	h.total[class]++
	if h.total[class] == historyLength {
		h.total[class] = 0
		for i := range h.counts[class] {
			h.counts[class][i] /= 2
			h.total[class] += int(h.counts[class][i])
		}
	}
	if h.total[class]%slowAfter == 0 {
		h.slow[class].Store(int64(min(max(h.quantile(class), slowLeast), slowMost)))
	}
}

// quantile returns what all but slowShare of the answers took at most. The lock
// is held.
func (h *history) quantile(class int) time.Duration {
	left := int(slowShare * float64(h.total[class]))
	for i := historyRanges - 1; i > 0; i-- {
		if left -= int(h.counts[class][i]); left < 0 {
			return endOf(i)
		}
	}
	return endOf(0)
}

// historyUnit is the width of the first ranges.
const historyUnit = 4 * time.Microsecond

// rangeOf returns the range that d belongs to.
func rangeOf(d time.Duration) int {
	units := uint64(max(d, 0) / historyUnit)
	octave := bits.Len64(units) - 1 // of 4 to 7 units: 2
	if octave < 2 {
		return 0
	}
	quarter := int(units>>(octave-2)) & 3
	return min(4*(octave-2)+quarter, historyRanges-1)
}

// endOf returns the first time behind a range.
func endOf(i int) time.Duration {
	return time.Duration(uint64(4+i%4+1)<<(i/4)) * historyUnit
}
