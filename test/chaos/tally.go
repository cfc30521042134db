package main

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// worstMedian bounds the median of the times from a kill of the leader to the
// next change of the mount table.
const worstMedian = 3 * time.Second

// tally is what was done and checked.
type tally struct {
	reads, bytes, excused atomic.Int64 // by readers
	worstRead             atomic.Int64 // ns
	jobs, partial         atomic.Int64 // that ended; and did not load all
	flips, found          atomic.Int64 // bits

	mu        sync.Mutex
	failOvers []time.Duration
	switches  []time.Duration // slowest reads with a frozen DataNode
}

// read counts a read that took so long.
func (t *tally) read(n int64, took time.Duration) {
	t.reads.Add(1)
	t.bytes.Add(n)
	for {
		worst := t.worstRead.Load()
		if int64(took) <= worst || t.worstRead.CompareAndSwap(worst, int64(took)) {
			return
		}
	}
}

func (t *tally) failOver(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failOvers = append(t.failOvers, took.Round(time.Millisecond))
}

// kills returns how often the leader was killed.
func (t *tally) kills() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.failOvers)
}

// checkFailOvers prints how long changes were held up, and refuses too much.
func (t *tally) checkFailOvers() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failOvers) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(t.failOvers))
	median := sorted[len(sorted)/2]
	fmt.Printf("%d kills of the leader: changes went on after %v in the median, %v at worst\n", len(sorted), median, sorted[len(sorted)-1])
	if median > worstMedian {
		return fmt.Errorf("changes went on after %v in the median, want at most %v: %v", median, worstMedian, sorted)
	}
	return nil
}

func (t *tally) switched(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.switches = append(t.switches, took.Round(time.Millisecond))
}

// checkSwitches prints how long a frozen DataNode held up reads, and refuses
// too much.
func (t *tally) checkSwitches() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.switches) == 0 {
		return nil
	}
	worst := slices.Max(t.switches)
	fmt.Printf("%d DataNodes were frozen: a whole file took %v at worst\n", len(t.switches), worst)
	if worst > slowestSwitch {
		return fmt.Errorf("with a frozen DataNode the read of a file took %v, want at most %v: %v", worst, slowestSwitch, t.switches)
	}
	return nil
}

func (t *tally) print() {
	fmt.Printf("checked: %d reads, %d MiB compared, the slowest took %v; %d failed while the under-store was in trouble;\n",
		t.reads.Load(), t.bytes.Load()>>20, time.Duration(t.worstRead.Load()).Round(time.Millisecond), t.excused.Load())
	fmt.Printf("  %d of %d flipped bits were found at once;\n", t.found.Load(), t.flips.Load())
	fmt.Printf("  %d load jobs ended with sums that add up, %d of them without some of their files\n", t.jobs.Load(), t.partial.Load())
}
