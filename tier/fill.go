package tier

import (
	"errors"
	"fmt"
	"sync"

	"millrace/block"
	"millrace/internal/errs"
)

// Reservation is room on the disk for pages that are about to be filled. All
// methods are safe for concurrent use.
type Reservation struct {
	s          *Store
	d          *dir // nil if nothing was charged and nothing is kept
	p          *part
	first, end int64 // pages

	// guarded by p.mu
	left     int64 // bytes not yet used
	inodes   int64 // not yet used
	released bool
}

// Reserve makes room for the absent pages of e, which is page-aligned and
// within the handle's range, evicting others where it must. The first one of
// a file chooses its directory. The pages stay pinned until both the handle
// and the reservation are released.
//
// Errors: NoSpace if no room can be made; Invalid for an extent that is not
// the handle's; Unavailable if the directory takes nothing any more.
func (h *Handle) Reserve(e block.Extent) (*Reservation, error) {
	g := h.p.geometry()
	first, end := g.PageRange(e)
	if e.Offset < 0 || e.Length < 0 || e.Offset%block.PageSize != 0 || first < h.first || end > h.end {
		return nil, errs.E(errs.Invalid, "reserve", h.p.path(),
			fmt.Errorf("%v is not within the handle's pages [%d,%d)", e, h.first, h.end))
	}
	if h.s.closed.Load() {
		return nil, errClosed("reserve", h.p.path())
	}
	r := &Reservation{s: h.s, p: h.p, first: first, end: end}
	r.pin()
	if err := r.charge(); err != nil {
		r.Release()
		if errors.Is(err, errs.NoSpace) {
			h.s.stats.noSpace.Add(1)
		}
		return nil, errs.Wrap(err, "reserve", h.p.path())
	}
	return r, nil
}

// pin keeps the pages, and the part where it is, until Release.
func (r *Reservation) pin() {
	r.p.mu.Lock()
	r.p.pin(r.first, r.end)
	r.p.fills++
	r.p.mu.Unlock()
}

// charge reserves what the absent pages will take: in the part's directory,
// or in one that is chosen now.
func (r *Reservation) charge() error {
	p := r.p
	p.mu.Lock()
	dead, d, missing := p.has(partDead), r.s.dirOf(p), p.missing(r.first, r.end)
	p.mu.Unlock()
	switch {
	case dead:
		return fmt.Errorf("%w: the file was dropped meanwhile", errs.NoSpace)
	case missing == 0:
		r.d = d
		return nil
	case d == nil:
		return r.place()
	}
	return r.chargeTo(d, d.makeRoom)
}

// cost is what the absent pages of a reservation take in d. p.mu is held.
func (r *Reservation) cost(d *dir) (bytes, leaf, inodes int64) {
	p := r.p
	g := p.geometry()
	n := p.missing(r.first, r.end)
	if n == 0 {
		return 0, 0, 0
	}
	bytes = n * roundUp(block.PageSize, d.block)
	if last := g.Pages() - 1; last < r.end && !p.unitOf(last).hasPage(last) {
		bytes += d.pageCost(g, last) - roundUp(block.PageSize, d.block)
	}
	p.each(r.first, r.end, func(u *unit) {
		if u.state.Load()&unitCharged == 0 {
			bytes += d.overhead(u)
		}
	})
	if !p.has(partCreated) {
		inodes = 1
		leaf = d.leaves.need(leafOf(p.id))
	}
	return bytes, leaf, inodes
}

// chargeTo reserves the cost in d by one of its functions, and settles that
// the part is there. If it was placed elsewhere meanwhile, it charges that.
func (r *Reservation) chargeTo(d *dir, reserve func(bytes, inodes int64) error) error {
	if err := d.failure(); err != nil {
		return err
	}
	p := r.p
	p.mu.Lock()
	bytes, leaf, inodes := r.cost(d)
	shared := p.isReplica() && p.dirIndex == noDir // it is about to be of the share
	p.mu.Unlock()
	if shared {
		if err := d.takeShare(p); err != nil {
			return err
		}
		defer func() {
			if shared {
				d.leaveShare(p)
			}
		}()
	}
	if err := reserve(bytes+leaf, inodes); err != nil {
		return err
	}
	p.mu.Lock()
	if err := d.failure(); err != nil { // from now on nobody looks for its parts
		p.mu.Unlock()
		d.ledger.cancel(bytes+leaf, inodes)
		return err
	}
	if p.dirIndex == noDir {
		p.dirIndex = d.num
		shared = false // it stays so until the part goes
	}
	elsewhere := p.dirIndex != d.num
	p.mu.Unlock()
	if elsewhere {
		d.ledger.cancel(bytes+leaf, inodes)
		return r.charge()
	}
	d.leaves.charged(leafOf(p.id), leaf)
	d.ledger.written(leaf)
	r.d, r.left, r.inodes = d, bytes, inodes
	return nil
}

// Release gives back what was not filled. It is idempotent.
func (r *Reservation) Release() {
	r.p.mu.Lock()
	if r.released {
		r.p.mu.Unlock()
		return
	}
	r.released = true
	r.p.fills--
	if r.d != nil {
		r.d.ledger.cancel(r.left, r.inodes)
	}
	r.left, r.inodes = 0, 0
	r.p.mu.Unlock()
	r.s.unpin(r.p, r.first, r.end)
}

// Fill keeps one whole page: data is all of it, and the last page of a file
// is as short as the file's end makes it. When Fill returns, the page and its
// index record are in the kernel, and every handle sees the page. Filling a
// page that is present again changes nothing.
//
// Errors: NoSpace or Unavailable if the disk refuses; the room is back in the
// reservation and the store is as before. Corrupt if the page is present with
// other bytes. Invalid for a page outside of the reservation or data of a
// wrong length.
func (r *Reservation) Fill(page int64, data []byte) (crc uint32, err error) {
	p := r.p
	g := p.geometry()
	if page < r.first || page >= r.end || int64(len(data)) != g.Page(page).Length {
		return 0, errs.E(errs.Invalid, "fill", p.path(),
			fmt.Errorf("%d bytes for page %d of pages [%d,%d)", len(data), page, r.first, r.end))
	}
	crc = block.Checksum(data)
	present, err := r.write(page, data, crc)
	if err != nil {
		return 0, err
	}
	if present {
		r.s.stats.filledPages.Add(1)
		r.s.stats.filledBytes.Add(int64(len(data)))
		r.s.notifyOne(p.id, uint32(g.BlockOf(g.Page(page).Offset)))
	}
	return crc, nil
}

// write puts a page and its record down. present says that it is in the cache
// by this call.
func (r *Reservation) write(page int64, data []byte, crc uint32) (present bool, err error) {
	key := fillKey{r.p, page}
	r.d.fills.lock(key)
	defer r.d.fills.unlock(key)
	doubts := r.d.doubts.Load()
	f, cost, err := r.begin(page, crc)
	if err != nil || f == nil {
		return false, err
	}
	if _, err := f.WriteAt(data, r.p.geometry().Page(page).Offset); err != nil {
		r.fail(f, page, cost)
		return false, r.d.wrap("fill", r.p, err)
	}
	r.d.unsynced.Add(int64(len(data)))
	if present, err = r.commit(f, page, crc, cost, doubts); err != nil {
		r.fail(f, page, cost)
		return false, r.d.wrap("fill", r.p, err)
	}
	if r.d.unsynced.Load() >= checkBytes {
		select {
		case r.s.kick <- struct{}{}:
		default:
		}
	}
	return present, nil
}

// begin takes the page's cost out of the reservation and returns the open
// file, with a reference; nil if the page is present already.
func (r *Reservation) begin(page int64, crc uint32) (f *openFile, cost int64, err error) {
	d, p := r.d, r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.unitOf(page); u.hasPage(page) {
		if have := u.crcOf(page); have != crc {
			return nil, 0, errs.E(errs.Corrupt, "fill", p.path(),
				fmt.Errorf("page %d is cached with checksum %08x, not %08x", page, have, crc))
		}
		return nil, 0, nil
	}
	if r.s.closed.Load() {
		return nil, 0, errClosed("fill", p.path())
	}
	if err := d.failure(); err != nil {
		return nil, 0, err
	}
	u := p.unitOf(page)
	cost = d.fillCost(u, page)
	if r.released {
		return nil, 0, errs.E(errs.Invalid, "fill", p.path(), errors.New("the reservation is released"))
	}
	if cost > r.left { // the page was present when the room was reserved
		return nil, 0, errs.E(errs.NoSpace, "fill", p.path(), fmt.Errorf("page %d has no room reserved", page))
	}
	switch {
	case p.has(partDead) && p.file == nil:
		return nil, 0, errs.E(errs.NoSpace, "fill", p.path(), errors.New("the file was dropped meanwhile"))
	case p.has(partCreated):
		f, err = d.openPart(p)
	case !p.has(partCopy) && d.isCopied(p.id):
		return nil, 0, errs.E(errs.NoSpace, "fill", p.path(), errors.New("a mover still has its name"))
	case r.inodes == 0:
		return nil, 0, errs.E(errs.NoSpace, "fill", p.path(), errors.New("no file was reserved"))
	default:
		if f, err = d.createPart(p); err == nil {
			r.inodes--
		}
	}
	if err != nil {
		return nil, 0, d.wrap("fill", p, err)
	}
	f.refs++
	r.left -= cost
	return f, cost, nil
}

// commit records the page and makes it present, unless another fill of it
// came first. doubts is what the directory had before the page was written.
func (r *Reservation) commit(f *openFile, page int64, crc uint32, cost, doubts int64) (present bool, err error) {
	d, p := r.d, r.p
	d.gate.RLock()
	defer d.gate.RUnlock()
	if err := r.record(page, crc); err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.refs--
	p.flags |= partLogged
	u := p.unitOf(page)
	if u.hasPage(page) {
		r.refund(cost)
		return false, nil
	}
	g := p.geometry()
	used := d.fillCost(u, page)
	r.refund(cost - used)
	d.ledger.written(used)
	u.state.Or(unitCharged)
	u.setPage(page, crc, d.doubts.Load() == doubts)
	if p.has(partDead) { // dropped meanwhile: for the handles alone
		d.ledger.hold(used)
		return false, nil
	}
	d.orderOf(p).add(u)
	if p.has(partCopy) {
		return false, nil
	}
	r.s.cachedBytes.Add(g.Page(page).Length)
	if !p.has(partIndexed) {
		p.flags |= partIndexed
		r.s.cachedFiles.Add(1)
		r.s.supersede(r.s.paths.add(p))
	}
	return true, nil
}

// record appends the page's index record, after the part's if the index has
// none of it yet.
func (r *Reservation) record(page int64, crc uint32) error {
	p := r.p
	p.mu.Lock()
	logged := p.has(partLogged)
	p.mu.Unlock()
	scratch, ok := r.s.frames.Get().(*[]byte)
	if !ok {
		return errs.E(errs.Internal, "", "", errors.New("frame buffer"))
	}
	defer r.s.frames.Put(scratch)
	frames := (*scratch)[:0]
	if !logged {
		frames = appendPart(frames, p)
	}
	crcs := [1]uint32{crc}
	frames = appendPages(frames, p, page, crcs[:], 0)
	*scratch = frames
	if err := r.d.index.append(frames); err != nil {
		return err
	}
	r.d.unsynced.Add(int64(len(frames)))
	return nil
}

// refund gives bytes back to the reservation, or to the ledger if it is over.
// p.mu is held.
func (r *Reservation) refund(bytes int64) {
	if r.released {
		r.d.ledger.cancel(bytes, 0)
		return
	}
	r.left += bytes
}

// fail undoes a fill whose write or record failed: what was written of the
// page is given back to the disk.
func (r *Reservation) fail(f *openFile, page, cost int64) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	f.refs--
	d, u := r.d, p.unitOf(page)
	lost := d.failure() != nil && !p.has(partCreated) // the file may be the next directory's
	// Nobody reads a page that never was present: it may be punched at once.
	if u.hasPage(page) || lost || !u.isSpoiled(page) && d.punchPage(f, p.geometry(), page) {
		r.refund(cost)
		return
	}
	used := d.fillCost(u, page)
	r.refund(cost - used)
	d.ledger.written(used)
	u.state.Or(unitCharged)
	d.spoil(u, page)
	if p.has(partDead) {
		d.ledger.hold(used)
		return
	}
	d.tidyLater(p)
}

// fillCost is what u will take more when page is filled.
func (d *dir) fillCost(u *unit, page int64) int64 {
	var n int64
	if !u.isSpoiled(page) {
		n = d.pageCost(u.part.geometry(), page)
	}
	if u.state.Load()&unitCharged == 0 {
		n += d.overhead(u)
	}
	return n
}

// appendPart appends the part's record.
func appendPart(b []byte, p *part) []byte {
	g := p.geometry()
	return appendFrame(b, &record{
		Type: recordPart, Kind: p.kind(), Serial: p.serial, File: p.id, MountID: p.mountID,
		Length: g.Length, BlockSize: g.BlockSize, Path: []byte(p.path()), Tag: []byte(p.tag()),
	})
}

// appendPages appends the record of pages from page on, all of one block.
func appendPages(b []byte, p *part, page int64, crcs []uint32, flags uint8) []byte {
	g := p.geometry()
	perBlock := int64(p.blockPages)
	i := page / perBlock
	return appendFrame(b, &record{
		Type: recordPages, Kind: p.kind(), Flags: flags, Serial: p.serial,
		Block: uint32(i), BlockLength: uint32(g.Block(i).Length),
		First: uint32(page - i*perBlock), CRCs: crcs,
	})
}

// fillLocks lets one fill of a page run at a time, so that a failed one does
// not take back what another one wrote.
type fillLocks struct {
	mu   sync.Mutex
	busy map[fillKey]chan struct{} // nil until somebody waits
}

type fillKey struct {
	part *part
	page int64
}

func (l *fillLocks) lock(k fillKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		done, busy := l.busy[k]
		if !busy {
			l.busy[k] = nil
			return
		}
		if done == nil {
			done = make(chan struct{})
			l.busy[k] = done
		}
		l.mu.Unlock()
		<-done
		l.mu.Lock()
	}
}

func (l *fillLocks) unlock(k fillKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if done := l.busy[k]; done != nil {
		close(done)
	}
	delete(l.busy, k)
}
