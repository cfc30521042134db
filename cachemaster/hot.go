package cachemaster

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"millrace/api"
	"millrace/block"
)

const (
	// maxHotBlocks bounds the blocks that are hot at a time; the hottest ones
	// come first. A client that follows is told all of them each time.
	maxHotBlocks   = 256
	maxHotReplicas = 100
	// maxHottest bounds what is taken of one worker's word.
	maxHottest = 64
	// hotValid is for how long a client may use what it was told, and hotEvery
	// how often it is told again while a block is hot.
	hotValid = 30 * time.Second
	hotEvery = 10 * time.Second
)

// heatOf is how much other hosts read of a block from one worker, in bytes per
// second.
type heatOf struct {
	key  block.Key
	rate int64
}

// heatsOf converts what a worker said; what makes no sense is left out.
func heatsOf(told []*api.BlockHeat) []heatOf {
	var out []heatOf
	for _, h := range told[:min(len(told), maxHottest)] {
		key := block.Key{Index: h.GetIndex()}
		if copy(key.File[:], h.GetFileId()) == len(key.File) && len(h.GetFileId()) == len(key.File) && h.GetRate() > 0 {
			out = append(out, heatOf{key, h.GetRate()})
		}
	}
	return out
}

// hotBlocks are the blocks that more than their owner are to serve: as many of
// the first workers in the order of placement as it takes to give each no more
// than the configured rate. Every master judges by what the workers tell it,
// and comes to about the same; nothing of it is kept, since nothing hangs on it
// but how reads are spread. It is safe for concurrent use.
type hotBlocks struct {
	rate  float64 // of one worker, in bytes per second; 0: no block is hot
	most  int     // servers of one block
	hold  time.Duration
	now   func() time.Time
	mu    sync.Mutex
	all   map[block.Key]*hotBlock
	again time.Time // when watchers are told again
}

// hotBlock is one of them.
type hotBlock struct {
	servers int // more than one
	demand  int64
	calm    time.Time // since when fewer would do; zero: they would not
}

func newHotBlocks(cfg Config, now func() time.Time) *hotBlocks {
	return &hotBlocks{
		rate: float64(cfg.HotRate), most: 1 + cfg.HotReplicas, hold: cfg.HotHold.Std(),
		now: now, all: make(map[block.Key]*hotBlock),
	}
}

// judge takes in how much of each block is read per second, by what so many
// owners of blocks say, and reports whether watchers are to be told.
func (h *hotBlocks) judge(demand map[block.Key]int64, owners int) (tell bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	most := min(h.most, owners)
	for key, b := range h.all {
		b.demand = demand[key]
		if h.settle(b, most) {
			tell = true
		}
		if b.servers <= 1 {
			delete(h.all, key)
		}
	}
	var rising []heatOf
	for key, rate := range demand {
		if h.all[key] == nil && min(h.wanted(rate), most) > 1 {
			rising = append(rising, heatOf{key, rate})
		}
	}
	slices.SortFunc(rising, func(a, b heatOf) int { return cmp.Compare(b.rate, a.rate) })
	for _, r := range rising[:min(len(rising), maxHotBlocks-len(h.all))] {
		h.all[r.key] = &hotBlock{servers: min(h.wanted(r.rate), most), demand: r.rate}
		tell = true
	}
	if len(h.all) > 0 && !h.now().Before(h.again) {
		tell = true
	}
	if tell {
		h.again = h.now().Add(hotEvery)
	}
	return tell
}

// wanted returns how many servers a block needs that is read at a rate.
func (h *hotBlocks) wanted(rate int64) int {
	if h.rate == 0 {
		return 1
	}
	return 1 + int(min(float64(rate)/h.rate, maxHotReplicas))
}

// settle gives a block as many servers as it needs, at once if these are more.
// There are fewer again only when half the rate of each had been enough for the
// time of hold: so few that it would not rise again at once. It reports whether
// they are others than before.
func (h *hotBlocks) settle(b *hotBlock, most int) (changed bool) {
	before := b.servers
	fewer := h.wanted(2 * b.demand)
	switch {
	case fewer >= b.servers:
		b.calm = time.Time{}
		b.servers = max(b.servers, h.wanted(b.demand))
	case b.calm.IsZero():
		b.calm = h.now()
	case h.now().Sub(b.calm) >= h.hold:
		b.servers, b.calm = fewer, time.Time{}
	}
	b.servers = min(b.servers, most)
	return b.servers != before
}

func (h *hotBlocks) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// proto returns all of them, and for how long that is valid.
func (h *hotBlocks) proto() (all []*api.HotBlock, valid time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, b := range h.all {
		all = append(all, &api.HotBlock{FileId: slices.Clone(key.File[:]), Index: key.Index, Servers: uint32(b.servers)})
	}
	return all, hotValid
}
