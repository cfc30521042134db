package cacheworker

import (
	"sync"

	"millrace/api"
	"millrace/block"
	"millrace/tier"
)

// The sizes of block reports, in blocks.
const (
	reportBatch = 1000 // of a delta
	fullPart    = 5000 // of a part of a full report
)

// changes gathers what one master has not been told of the cached blocks:
// the last state of each block that changed, or that a full report is due.
type changes struct {
	bound int

	mu      sync.Mutex
	pending map[block.Key]tier.BlockState
	full    bool
	begun   uint64        // full reports
	ended   uint64        // of them
	wake    chan struct{} // one element when there is something to tell
}

// newChanges begins with a full report.
func newChanges(bound int) *changes {
	c := &changes{bound: bound, wake: make(chan struct{}, 1), full: true}
	c.poke()
	return c
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
	key := block.Key{File: s.File, Index: s.Index}
	if _, known := c.pending[key]; !known && len(c.pending) >= c.bound {
		c.full, c.pending = true, nil
	}
	if c.pending == nil {
		c.pending = make(map[block.Key]tier.BlockState)
	}
	c.pending[key] = s
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

// take removes and returns up to n changes.
func (c *changes) take(n int) []*api.BlockDelta {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*api.BlockDelta, 0, min(n, len(c.pending)))
	for key, s := range c.pending {
		if len(out) == n {
			break
		}
		delete(c.pending, key)
		out = append(out, deltaOf(s))
	}
	if len(c.pending) > 0 {
		c.poke()
	}
	return out
}

func deltaOf(s tier.BlockState) *api.BlockDelta {
	return &api.BlockDelta{FileId: s.File[:], Index: s.Index, CachedBytes: s.CachedBytes, Whole: s.Whole}
}
