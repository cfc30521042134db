package tier

import (
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"millrace/block"
)

// wholeLimit is the length of a file up to which it is evicted as a whole; of
// a longer one, single blocks are.
const wholeLimit int64 = 64 << 20

// Bits of unit.state.
const (
	unitVisited    uint32 = 1 << iota // hit since the policy last looked
	unitQueued                        // known to the policy; changed under the policy's lock
	unitPresent                       // single-page unit: the page is there; changed under part.mu
	unitVerified                      // single-page unit: the page was checked in this run; changed under part.mu
	unitCharged                       // the unit's overhead is in the ledger; changed under part.mu
	unitSuperseded                    // whole part: it is on the list of older versions
	unitNamed                         // the policy has it on a list of first victims; changed under the policy's lock
	unitMissed                        // the policy's adviser did not know it the last time it was asked
	unitSpoiled                       // single-page unit: the page is absent, its room is taken; changed under part.mu
	unitOld                           // the policy has it among the old ones; changed under the policy's lock
	unitReplica                       // whole part: it is kept as a replica; never changed
)

// Beside the bits, the state of a whole part counts its readings for
// promotion: in bits 16 to 23 how many, in 24 to 31 the window of time in
// which. Changed under part.mu.
const (
	hitsShift   = 16
	windowShift = 24
	hitsMask    = 0xff << hitsShift
	windowMask  = 0xff << windowShift
	maxHits     = 0xff
)

// unit is what is evicted at once: a whole part, or one block of a large one.
// Its size decides what a cached small file costs in memory, so a unit of one
// page keeps all it knows in here.
type unit struct {
	prev, next *unit // the policy's
	part       *part
	set        *pageSet // nil for a whole part of one page, and while there is none
	word       uint32   // whole part of one page: its CRC; block: its index
	pins       atomic.Int32
	state      atomic.Uint32
	refs       int32 // whole part: its handles and reservations; here it fills a gap
}

// pageSet is the pages of a unit of several pages, or the blocks of a large
// part. Guarded by part.mu.
type pageSet struct {
	present, verified []uint64
	spoiled           []uint64 // absent, and their room is taken; nil while there are none
	crcs              []uint32
	count             int              // pages present
	blocks            map[uint32]*unit // of a large part; such a set has no pages itself
}

func newPageSet(pages int64) *pageSet {
	words := (pages + 63) / 64
	all := make([]uint64, 2*words)
	return &pageSet{present: all[:words:words], verified: all[words:], crcs: make([]uint32, pages)}
}

// part is a local part: the pages of one file in one backing file.
//
// Locks, in the order they are taken: dir.gate, part.mu, then any one of the
// leaf locks (shard, path index, policy, ledger, log, descriptor cache).
type part struct {
	unit // of the whole part; of a large one it is never queued

	mu         sync.Mutex
	id         block.FileID
	mountID    uint64
	text       string // path, then tag
	length     int64
	file       *openFile // nil when no descriptor is open
	serial     uint64    // names this part in the index of its directory; rising over all of them
	tagLen     uint16
	blockPages uint16 // pages per block
	fills      uint16 // reservations
	flags      uint8
	dirIndex   uint8 // in Store.byNumber; noDir until the first fill, and the same ever after
}

// noDir is the dirIndex of a part that nothing was ever kept of.
const noDir = maxNumbers

// Bits of part.flags, guarded by part.mu.
const (
	partDead    uint8 = 1 << iota // out of the store; handles that still have it may read
	partCreated                   // the backing file exists
	partLogged                    // the index has the part's record
	partIndexed                   // the path index has it
	partByBlock                   // evicted block by block
	partSeen                      // recovery found the backing file
	partMoving                    // a mover copies it into another directory
	partCopy                      // such a copy, which nobody finds yet
)

func (p *part) path() string { return p.text[:len(p.text)-int(p.tagLen)] }
func (p *part) tag() string  { return p.text[len(p.text)-int(p.tagLen):] }

// has reports whether one of flags is set.
func (p *part) has(flags uint8) bool { return p.flags&flags != 0 }

func (p *part) geometry() block.Geometry {
	return block.Geometry{Length: p.length, BlockSize: int64(p.blockPages) * block.PageSize}
}

// asFile returns the file whose pages p has.
func (p *part) asFile() File {
	g := p.geometry()
	return File{ID: p.id, MountID: p.mountID, Path: p.path(), Tag: p.tag(), Length: g.Length, BlockSize: g.BlockSize, Replica: p.isReplica()}
}

// largestFolio is the longest piece, in bytes, in which a kernel with pages of
// 4 KiB caches a file; all of them lie at multiples of their length.
const largestFolio = 2 << 20

// sendable reports whether p may be sent from its file, so that the kernel
// refers to its cached pages until the peer has them. What is given back
// meanwhile keeps its bytes if the kernel drops whole folios, as it does when
// a file is unlinked; of a folio that is cut it clears what is punched. Blocks
// are punched whole, so they must be made of whole folios. p.mu is held.
func (p *part) sendable() bool {
	return !p.has(partByBlock) || os.Getpagesize() == 4<<10 && p.geometry().BlockSize%largestFolio == 0
}

// unitPages returns the pages [first, end) of u.
func (u *unit) unitPages() (first, end int64) {
	p := u.part
	pages := p.geometry().Pages()
	if !p.has(partByBlock) {
		return 0, pages
	}
	first = int64(u.word) * int64(p.blockPages)
	return first, min(first+int64(p.blockPages), pages)
}

// unitOf returns the unit that page belongs to; nil if it is a block that
// nobody made yet.
func (p *part) unitOf(page int64) *unit {
	if !p.has(partByBlock) {
		return &p.unit
	}
	return p.set.blocks[uint32(page/int64(p.blockPages))]
}

// makeUnit is unitOf that makes the block if need be.
func (p *part) makeUnit(page int64) *unit {
	if u := p.unitOf(page); u != nil {
		return u
	}
	u := &unit{part: p, word: uint32(page / int64(p.blockPages))}
	p.set.blocks[u.word] = u
	return u
}

// each calls fn with the units of pages [first, end) that exist, in order.
func (p *part) each(first, end int64, fn func(u *unit)) {
	if !p.has(partByBlock) {
		if first < end {
			fn(&p.unit)
		}
		return
	}
	n := int64(p.blockPages)
	for b := first / n; b*n < end; b++ {
		if u := p.set.blocks[uint32(b)]; u != nil {
			fn(u)
		}
	}
}

// all calls fn with all units of p that may hold pages.
func (p *part) all(fn func(u *unit)) {
	if !p.has(partByBlock) {
		fn(&p.unit)
		return
	}
	for _, u := range p.set.blocks {
		fn(u)
	}
}

// isBlock reports whether u is a block of a large part. No lock is needed.
func (u *unit) isBlock() bool { return u != &u.part.unit }

// size returns the bytes of all pages that the unit may have. No lock is
// needed.
func (u *unit) size() int64 {
	if u.isBlock() {
		return u.part.geometry().Block(int64(u.word)).Length
	}
	return u.part.length
}

// hasPage reports whether page, counted in the file, is present.
func (u *unit) hasPage(page int64) bool {
	if u == nil {
		return false
	}
	if u.set == nil {
		return u.state.Load()&unitPresent != 0
	}
	i := u.slot(page)
	return u.set.present[i/64]&(1<<(i%64)) != 0
}

func (u *unit) isVerified(page int64) bool {
	if u.set == nil {
		return u.state.Load()&unitVerified != 0
	}
	i := u.slot(page)
	return u.set.verified[i/64]&(1<<(i%64)) != 0
}

// crcOf returns the checksum of a page that is present.
func (u *unit) crcOf(page int64) uint32 {
	if u.set == nil {
		return u.word
	}
	return u.set.crcs[u.slot(page)]
}

// setPage makes page present. Its room is the page's again if it was spoiled.
func (u *unit) setPage(page int64, crc uint32, verified bool) {
	first, end := u.unitPages()
	if end-first == 1 && !u.part.has(partByBlock) {
		u.word = crc
		u.state.And(^unitSpoiled)
		u.state.Or(unitPresent)
		u.setVerified(page, verified)
		return
	}
	if u.set == nil {
		u.set = newPageSet(end - first)
	}
	i := page - first
	if u.set.present[i/64]&(1<<(i%64)) == 0 {
		u.set.present[i/64] |= 1 << (i % 64)
		u.set.count++
	}
	if u.set.spoiled != nil {
		u.set.spoiled[i/64] &^= 1 << (i % 64)
	}
	u.set.crcs[i] = crc
	u.setVerified(page, verified)
}

func (u *unit) setVerified(page int64, verified bool) {
	if u.set == nil {
		if verified {
			u.state.Or(unitVerified)
		} else {
			u.state.And(^unitVerified)
		}
		return
	}
	i := u.slot(page)
	if verified {
		u.set.verified[i/64] |= 1 << (i % 64)
	} else {
		u.set.verified[i/64] &^= 1 << (i % 64)
	}
}

// clearPage makes page absent.
func (u *unit) clearPage(page int64) {
	if u.set == nil {
		u.state.And(^(unitPresent | unitVerified))
		return
	}
	i := u.slot(page)
	if u.set.present[i/64]&(1<<(i%64)) != 0 {
		u.set.count--
	}
	u.set.present[i/64] &^= 1 << (i % 64)
	u.set.verified[i/64] &^= 1 << (i % 64)
}

// spoil notes that the room of an absent page is taken all the same: what is
// there may not be punched now.
func (u *unit) spoil(page int64) {
	first, end := u.unitPages()
	if end-first == 1 && !u.part.has(partByBlock) {
		u.state.Or(unitSpoiled)
		return
	}
	if u.set == nil {
		u.set = newPageSet(end - first)
	}
	if u.set.spoiled == nil {
		u.set.spoiled = make([]uint64, len(u.set.present))
	}
	i := page - first
	u.set.spoiled[i/64] |= 1 << (i % 64)
}

// isSpoiled reports whether page is absent and its room is taken.
func (u *unit) isSpoiled(page int64) bool {
	if u.set == nil {
		return u.state.Load()&unitSpoiled != 0
	}
	if u.set.spoiled == nil {
		return false
	}
	i := u.slot(page)
	return u.set.spoiled[i/64]&(1<<(i%64)) != 0
}

// spoiledPages returns the pages of u that are absent and whose room is taken.
func (u *unit) spoiledPages() []int64 {
	if u.state.Load()&unitSpoiled == 0 && (u.set == nil || u.set.spoiled == nil) {
		return nil
	}
	var pages []int64
	first, end := u.unitPages()
	for page := first; page < end; page++ {
		if u.isSpoiled(page) {
			pages = append(pages, page)
		}
	}
	return pages
}

// clearAll makes all pages absent and gives their memory back.
func (u *unit) clearAll() {
	u.state.And(^(unitPresent | unitVerified | unitCharged | unitVisited | unitSpoiled))
	if u.set != nil && u.set.blocks == nil {
		u.set = nil
	}
}

// unverify forgets that pages were checked.
func (u *unit) unverify() {
	u.state.And(^unitVerified)
	if u.set != nil {
		clear(u.set.verified)
	}
}

func (u *unit) slot(page int64) int64 {
	if u.part.has(partByBlock) {
		return page - int64(u.word)*int64(u.part.blockPages)
	}
	return page
}

// count returns the number of pages present.
func (u *unit) count() int64 {
	if u.set != nil {
		return int64(u.set.count)
	}
	if u.state.Load()&unitPresent != 0 {
		return 1
	}
	return 0
}

// bytes returns the file bytes of the pages present in [first, end), which
// are pages of u.
func (u *unit) bytes(first, end int64) int64 {
	var n int64
	if u.set != nil {
		n = countBits(u.set.present, u.slot(first), u.slot(end))
	} else if first < end && u.state.Load()&unitPresent != 0 {
		n = 1
	}
	n *= block.PageSize
	if n > 0 {
		g := u.part.geometry()
		if last := g.Pages() - 1; last >= first && last < end && u.hasPage(last) {
			n -= block.PageSize - g.Page(last).Length
		}
	}
	return n
}

// cachedBytes returns the file bytes of all pages present in u.
func (u *unit) cachedBytes() int64 {
	first, end := u.unitPages()
	return u.bytes(first, end)
}

// countBits counts the bits set in [from, to) of words.
func countBits(words []uint64, from, to int64) int64 {
	n := 0
	for i := from; i < to; {
		w := words[i/64] >> (i % 64)
		step := min(64-i%64, to-i)
		if step < 64 {
			w &= 1<<step - 1
		}
		n += bits.OnesCount64(w)
		i += step
	}
	return int64(n)
}

// empty reports whether the part holds no page.
func (p *part) empty() bool {
	if !p.has(partByBlock) {
		return p.count() == 0
	}
	for _, u := range p.set.blocks {
		if u.count() > 0 {
			return false
		}
	}
	return true
}

// cachedBytes returns the file bytes of all pages present. The caller holds
// p.mu.
func (p *part) cachedBytes() int64 {
	var n int64
	p.all(func(u *unit) { n += u.cachedBytes() })
	return n
}

// blockState returns what the part has of block i. The caller holds p.mu.
func (p *part) blockState(i uint32) BlockState {
	s := BlockState{File: p.id, Index: i}
	g := p.geometry()
	e := g.Block(int64(i))
	first, end := g.PageRange(e)
	if u := p.unitOf(first); u != nil && first < end {
		s.CachedBytes = u.bytes(first, end)
	}
	s.Whole = s.CachedBytes == e.Length && e.Length > 0
	return s
}

// blockStates appends the states of all blocks that have pages, in order.
func (p *part) blockStates(all []BlockState) []BlockState {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partDead) {
		return all
	}
	g := p.geometry()
	for i := range uint32(g.Blocks()) {
		if p.has(partByBlock) && p.set.blocks[i] == nil {
			continue
		}
		if s := p.blockState(i); s.CachedBytes > 0 {
			all = append(all, s)
		}
	}
	return all
}

// pages counts the pages present. The caller holds p.mu.
func (p *part) pages() int64 {
	var n int64
	p.all(func(u *unit) { n += u.count() })
	return n
}

// hit counts n readings of the part in a window of time, and returns how many
// there were before and are now. p.mu is held.
func (p *part) hit(n uint32, window uint8) (before, now uint32) {
	for { // other bits change without the lock
		old := p.state.Load()
		before = old & hitsMask >> hitsShift
		if old&windowMask != uint32(window)<<windowShift {
			before = 0
		}
		now = before + min(n, maxHits-before)
		if p.state.CompareAndSwap(old, old&^(hitsMask|windowMask)|now<<hitsShift|uint32(window)<<windowShift) {
			return before, now
		}
	}
}

// covers reports whether p has every page that q has. Both locks are held.
func (p *part) covers(q *part) bool {
	covered := true
	q.all(func(u *unit) {
		first, end := u.unitPages()
		for page := first; page < end && covered; page++ {
			covered = !u.hasPage(page) || p.unitOf(page).hasPage(page)
		}
	})
	return covered
}
