package tier

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// Handle pins a range of a file: what is cached of it stays until Release,
// and so does what is filled. All methods are safe for concurrent use;
// Release must come last.
type Handle struct {
	s          *Store
	p          *part
	first, end int64     // pages
	file       *openFile // once it was needed; guarded by p.mu
	released   bool      // guarded by p.mu
}

// Acquire pins the pages that e touches, cut at the file's end, present or
// not. It creates nothing on the disk.
//
// Errors: Invalid if f is no possible file, Unavailable after Close.
func (s *Store) Acquire(f File, e block.Extent) (*Handle, error) {
	if err := f.validate(); err != nil {
		return nil, errs.E(errs.Invalid, "acquire", f.Path, err)
	}
	if s.closed.Load() {
		return nil, errClosed("acquire", f.Path)
	}
	if e.Offset < 0 || e.Length < 0 {
		return nil, errs.E(errs.Invalid, "acquire", f.Path, fmt.Errorf("extent %v", e))
	}
	first, end := f.Geometry().PageRange(e)
	p := s.lockPart(f)
	h := &Handle{s: s, p: p, first: first, end: end}
	hit := p.pin(first, end)
	if d := s.dirOf(p); hit && d != nil {
		p.each(first, end, d.queue.touch)
	}
	p.mu.Unlock()
	return h, nil
}

// pin keeps the units of pages [first, end) and the part. It reports whether
// all pages are present. p.mu is held.
func (p *part) pin(first, end int64) (whole bool) {
	p.refs++
	if p.has(partByBlock) {
		for page := first; page < end; page += int64(p.blockPages) {
			p.makeUnit(page)
		}
		if first < end {
			p.makeUnit(end - 1)
		}
	}
	p.each(first, end, func(u *unit) { u.pins.Add(1) })
	return p.missing(first, end) == 0
}

// missing counts the pages of [first, end) that are absent. p.mu is held.
func (p *part) missing(first, end int64) int64 {
	n := end - first
	p.each(first, end, func(u *unit) {
		uf, ue := u.unitPages()
		uf, ue = max(uf, first), min(ue, end)
		if u.set == nil {
			if u.count() == 1 && uf < ue {
				n--
			}
			return
		}
		n -= countBits(u.set.present, u.slot(uf), u.slot(ue))
	})
	return n
}

// unpin undoes pin; what holds nothing any more goes. No lock is held.
func (s *Store) unpin(p *part, first, end int64) {
	p.mu.Lock()
	d := s.dirOf(p)
	p.each(first, end, func(u *unit) {
		if u.pins.Add(-1) == 0 && p.has(partByBlock) && !p.has(partDead) && u.count() == 0 {
			if d != nil {
				d.ledger.free(d.charge(u), 0)
				d.queue.remove(u)
			}
			delete(p.set.blocks, u.word)
		}
	})
	p.refs--
	idle := p.refs == 0
	switch {
	case d == nil:
		if idle && !p.has(partDead) {
			p.flags |= partDead
			s.forget(p)
		}
		idle = false
	case idle && p.has(partDead):
		d.finishHeld(p)
		idle = false
	case idle && d.files.over():
		d.letGo(p)
	}
	idle = idle && p.empty()
	p.mu.Unlock()
	if idle {
		d.dropEmpty(p)
	}
}

// dropEmpty forgets a part that nobody uses and that has no page, and its
// file if there is one.
func (d *dir) dropEmpty(p *part) {
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs > 0 || p.has(partDead) || !p.empty() {
		return
	}
	if !p.has(partCreated) {
		d.forget(p)
		return
	}
	if _, err := d.detachLocked(p); err != nil {
		d.ioError("drop", err)
	}
}

// Release ends the pins. It is idempotent.
func (h *Handle) Release() {
	h.p.mu.Lock()
	if h.released {
		h.p.mu.Unlock()
		return
	}
	h.released = true
	if h.file != nil {
		h.file.refs--
		h.file = nil
	}
	h.p.mu.Unlock()
	h.s.unpin(h.p, h.first, h.end)
}

// Missing returns the runs of pages that are absent, ascending, cut at the
// file's end.
func (h *Handle) Missing() []block.Extent {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return h.p.missingRuns(h.first, h.end)
}

func (p *part) missingRuns(first, end int64) []block.Extent {
	var runs []block.Extent
	g := p.geometry()
	for page := first; page < end; page++ {
		if p.unitOf(page).hasPage(page) {
			continue
		}
		start := page
		for page < end && !p.unitOf(page).hasPage(page) {
			page++
		}
		runs = append(runs, g.PagesExtent(start, page))
	}
	return runs
}

// Has reports whether a page of the handle's range is present.
func (h *Handle) Has(page int64) bool {
	_, ok := h.PageCRC(page)
	return ok
}

// PageCRC returns the CRC32C of a page of the handle's range, if it is
// present.
func (h *Handle) PageCRC(page int64) (uint32, bool) {
	if page < h.first || page >= h.end {
		return 0, false
	}
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	u := h.p.unitOf(page)
	if !u.hasPage(page) {
		return 0, false
	}
	return u.crcOf(page), true
}

// ReadAt reads from off as io.ReaderAt does, within the handle's range. The
// first read of a page in a run of the store checks the whole page.
//
// Errors: io.EOF behind the file's end, NotCached if a page is absent,
// Corrupt if a page does not match its checksum or cannot be read: it is
// absent from then on. Invalid outside of the handle's range.
func (h *Handle) ReadAt(b []byte, off int64) (int, error) {
	g := h.p.geometry()
	e := block.Extent{Offset: off, Length: int64(len(b))}.Intersect(g.Whole())
	if off < 0 {
		return 0, errs.E(errs.Invalid, "read", h.p.path(), fmt.Errorf("offset %d", off))
	}
	if e.IsEmpty() {
		if len(b) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	f, checked, err := h.ready(e)
	if err != nil {
		return 0, err
	}
	var n int
	if checked {
		n, err = h.readChecked(f, b[:e.Length], off)
	} else {
		n, err = h.readAndCheck(f, b[:e.Length], off)
	}
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// ready returns the open file if all pages of e are present, and whether all
// have been checked.
func (h *Handle) ready(e block.Extent) (f *openFile, checked bool, err error) {
	p := h.p
	first, end := p.geometry().PageRange(e)
	if first < h.first || end > h.end {
		return nil, false, errs.E(errs.Invalid, "read", p.path(),
			fmt.Errorf("%v is outside of the handle's pages [%d,%d)", e, h.first, h.end))
	}
	p.mu.Lock()
	checked = true
	for page := first; page < end; page++ {
		u := p.unitOf(page)
		if !u.hasPage(page) {
			p.mu.Unlock()
			return nil, false, errs.E(errs.NotCached, "read", p.path(), fmt.Errorf("page %d is not cached", page))
		}
		checked = checked && u.isVerified(page)
	}
	f, err = h.open()
	p.mu.Unlock()
	if err == nil {
		return f, checked, nil
	}
	d := h.s.dirOf(p)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the backing file
		if d.detach(p, false) > 0 {
			h.s.stats.checksumErrors.Add(1)
		}
		return nil, false, errs.E(errs.Corrupt, "read", p.path(), err)
	}
	return nil, false, d.wrap("read", p, err)
}

// open returns the open file, which stays open until Release. p.mu is held.
func (h *Handle) open() (*openFile, error) {
	if h.file == nil {
		if h.p.has(partDead) && h.p.file == nil {
			return nil, fs.ErrNotExist
		}
		f, err := h.s.dirOf(h.p).openPart(h.p)
		if err != nil {
			return nil, err
		}
		f.refs++
		h.file = f
	}
	return h.file, nil
}

func (h *Handle) readChecked(f *openFile, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return n, nil
	}
	// The disk does not give what it took: which page, the checks will tell.
	g := h.p.geometry()
	return n, h.corrupt(g.PageOf(off+int64(n)), readError(err))
}

// readAndCheck reads page by page and checks those that were not yet.
func (h *Handle) readAndCheck(f *openFile, b []byte, off int64) (int, error) {
	g := h.p.geometry()
	done := 0
	for done < len(b) {
		at := off + int64(done)
		page := g.PageOf(at)
		pe := g.Page(page)
		part := b[done:min(int64(len(b)), int64(done)+pe.End()-at)]
		if err := h.readPage(f, part, at, page, pe); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// readPage reads b at off, which lies within a page, and checks the page.
func (h *Handle) readPage(f *openFile, b []byte, off, page int64, pe block.Extent) error {
	h.p.mu.Lock()
	u := h.p.unitOf(page)
	present, checked := u.hasPage(page), false
	var want uint32
	if present {
		checked, want = u.isVerified(page), u.crcOf(page)
	}
	h.p.mu.Unlock()
	if !present { // another reader found it corrupt just now
		return errs.E(errs.Corrupt, "read", h.p.path(), fmt.Errorf("page %d did not match its checksum", page))
	}
	whole := b
	if int64(len(b)) != pe.Length && !checked {
		scratch, ok := h.s.scratch.Get().(*[]byte)
		if !ok {
			return errs.E(errs.Internal, "read", h.p.path(), errors.New("scratch buffer"))
		}
		defer h.s.scratch.Put(scratch)
		whole = (*scratch)[:pe.Length]
	}
	if checked {
		_, err := h.readChecked(f, b, off)
		return err
	}
	if n, err := f.ReadAt(whole, pe.Offset); n < len(whole) {
		return h.corrupt(page, readError(err))
	}
	if got := block.Checksum(whole); got != want {
		return h.corrupt(page, fmt.Errorf("page %d has checksum %08x, expected %08x", page, got, want))
	}
	if len(whole) != len(b) {
		copy(b, whole[off-pe.Offset:])
	}
	h.p.mu.Lock()
	if u := h.p.unitOf(page); u.hasPage(page) && u.crcOf(page) == want {
		u.setVerified(page, true)
	}
	h.p.mu.Unlock()
	return nil
}

// readError is the cause of a short read: the file ended, or the disk's error.
func readError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return errors.New("the backing file is too short")
	}
	return err
}

// corrupt drops a page whose bytes cannot be had and returns the error.
func (h *Handle) corrupt(page int64, cause error) error {
	d, p := h.s.dirOf(h.p), h.p
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	u := p.unitOf(page)
	if !u.hasPage(page) {
		p.mu.Unlock()
		return errs.E(errs.Corrupt, "read", p.path(), cause)
	}
	h.s.stats.checksumErrors.Add(1)
	d.dropPage(p, u, page)
	dead := p.has(partDead)
	p.mu.Unlock()
	if !dead {
		h.s.notifyOne(p.id, uint32(page/int64(p.blockPages)))
	}
	return errs.E(errs.Corrupt, "read", p.path(), cause)
}

// dropPage makes a page absent and gives its room back. gate and p.mu are
// held.
func (d *dir) dropPage(p *part, u *unit, page int64) {
	dead := p.has(partDead)
	if p.has(partLogged) && !dead {
		if err := d.logDropPages(u, page, page+1); err != nil {
			d.ioError("drop page", err)
		}
	}
	g := p.geometry()
	u.clearPage(page)
	if !dead {
		d.store.cachedBytes.Add(-g.Page(page).Length)
	}
	// Whoever else has it pinned may be reading or sending it, and must not
	// see zeros.
	if p.file == nil || u.pins.Load() > 1 || !d.punchPage(p.file, g, page) {
		return // the room stays charged until the next start
	}
	cost := d.pageCost(g, page)
	d.ledger.free(cost, 0)
	if dead {
		d.ledger.hold(-cost)
	}
}

// punchPage gives the room of one page back, and says if it did.
func (d *dir) punchPage(f vfs.File, g block.Geometry, page int64) bool {
	e := g.Page(page)
	if err := f.PunchHole(e.Offset, roundUp(e.Length, d.block)); err != nil {
		d.ioError("punch page", err)
		return false
	}
	return true
}

// Section returns the open backing file for sendfile of [off, off+n), and the
// position in it of the byte at off. ok is false if the range is not whole,
// not checked, or of a part that may be punched; ReadAt serves then. The file
// must not be used after Release.
func (h *Handle) Section(off, n int64) (f *os.File, base int64, ok bool) {
	e := block.Extent{Offset: off, Length: n}
	if off < 0 || n <= 0 || e.End() > h.p.length {
		return nil, 0, false
	}
	h.p.mu.Lock()
	punched := h.p.has(partByBlock)
	h.p.mu.Unlock()
	if punched {
		return nil, 0, false
	}
	file, checked, err := h.ready(e)
	if err != nil || !checked && !h.check(file, e) {
		return nil, 0, false
	}
	f, ok = vfs.OSFile(file.File)
	return f, off, ok
}

// check verifies the pages of e that were not yet.
func (h *Handle) check(f *openFile, e block.Extent) bool {
	g := h.p.geometry()
	first, end := g.PageRange(e)
	var none [0]byte
	for page := first; page < end; page++ {
		pe := g.Page(page)
		if err := h.readPage(f, none[:], pe.Offset, page, pe); err != nil {
			return false
		}
	}
	return true
}
