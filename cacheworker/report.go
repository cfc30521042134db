package cacheworker

import (
	"iter"
	"slices"
	"sync"

	"millrace/api"
	"millrace/block"
	"millrace/tier"
)

// The sizes of block reports, in blocks, eight bytes each.
const (
	reportBatch = 1000   // of a delta
	fullPart    = 50_000 // of a part of a full report
)

// location is what is reported of a block that is cached: its hash, and in the
// lowest bit, which hashes have clear, that all of it is.
type location uint64

func locationOf(s tier.BlockState) location {
	l := location(block.Key{File: s.File, Index: s.Index}.LocationHash())
	if s.Whole {
		l |= 1
	}
	return l
}

func (l location) hash() uint64 { return uint64(l &^ 1) }

// locations returns what a full report tells, in its order.
func locations(blocks iter.Seq[tier.BlockState]) []uint64 {
	var all []uint64
	for s := range blocks {
		all = append(all, uint64(locationOf(s)))
	}
	slices.Sort(all)
	return all
}

// changes gathers what one master has not been told of the cached blocks:
// the last state of each block that changed, or that a full report is due.
type changes struct {
	bound int

	mu      sync.Mutex
	pending map[uint64]change // by location hash
	full    bool
	begun   uint64        // full reports
	ended   uint64        // of them
	wake    chan struct{} // one element when there is something to tell
}

// change is the last state of a block.
type change struct {
	at     location
	cached bool
}

// newChanges begins with nothing to tell: a master that does not know the
// worker asks for a full report, when it can take one.
func newChanges(bound int) *changes {
	return &changes{bound: bound, wake: make(chan struct{}, 1)}
}

func (c *changes) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// note enters a change. More blocks than the bound make a full report due.
func (c *changes) note(s tier.BlockState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := locationOf(s)
	if _, known := c.pending[at.hash()]; !known && len(c.pending) >= c.bound {
		c.full, c.pending = true, nil
	}
	if c.pending == nil {
		c.pending = make(map[uint64]change)
	}
	c.pending[at.hash()] = change{at: at, cached: s.CachedBytes > 0}
	c.poke()
}

// needFull makes a full report due.
func (c *changes) needFull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.full = true
	c.poke()
}

// fulls returns how many full reports have ended, for needFullSince.
func (c *changes) fulls() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// needFullSince is needFull by a master that was asked when so many full
// reports had ended. If one was under way then, or began since, the master may
// have spoken before it came.
func (c *changes) needFullSince(ended uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun > ended {
		return
	}
	c.full = true
	c.poke()
}

// due reports whether a full report is due, and how many changes there are.
func (c *changes) due() (full bool, deltas int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.full, len(c.pending)
}

// takeFull begins a full report: what changed so far will be in it, and what
// changes from now on is told after it. endFull must follow.
func (c *changes) takeFull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.full, c.pending = false, nil
	c.begun++
}

// endFull says that the full report was sent, or has failed.
func (c *changes) endFull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = c.begun
}

// take removes up to n changes and returns them as a report.
func (c *changes) take(n int) *api.ReportBlocksRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &api.ReportBlocksRequest{}
	for hash, last := range c.pending {
		if len(out.GetCached())+len(out.GetGone()) == n {
			break
		}
		delete(c.pending, hash)
		if last.cached {
			out.Cached = append(out.Cached, uint64(last.at))
		} else {
			out.Gone = append(out.Gone, hash)
		}
	}
	if len(c.pending) > 0 {
		c.poke()
	}
	return out
}
