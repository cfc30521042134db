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
	always     bool      // every read is checked
	replica    bool      // it was acquired as one
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
	h := &Handle{s: s, p: p, first: first, end: end, replica: f.Replica}
	hit := p.pin(first, end)
	if d := s.dirOf(p); hit && d != nil {
		p.each(first, end, d.orderOf(p).touch)
		// One byte stands for all: whoever reads the whole file reads it once.
		if d.slow && e.Offset == 0 && first < end {
			s.moves.hit(p, 1)
		}
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
				d.dropUnit(u)
			} else {
				delete(p.set.blocks, u.word)
			}
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
		d.tidyLater(p)
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

// VerifyAlways makes every read of h compare its pages with their checksums,
// not only the first in a run of the store, and withholds the file itself. It
// must come before any other use of h.
func (h *Handle) VerifyAlways() { h.always = true }

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
		checked = checked && h.trusts(u, page)
	}
	f, err = h.open()
	p.mu.Unlock()
	if err == nil {
		return f, checked, nil
	}
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the backing file
		h.fileGone()
		return nil, false, errs.E(errs.Corrupt, "read", p.path(), err)
	}
	return nil, false, h.s.dirOf(p).wrap("read", p, err)
}

// trusts reports whether a page that is present needs no check now. p.mu is
// held.
func (h *Handle) trusts(u *unit, page int64) bool { return u.isVerified(page) && !h.always }

// fileGone drops a part whose backing file somebody removed.
func (h *Handle) fileGone() {
	if h.s.dirOf(h.p).detach(h.p, false) > 0 {
		h.s.stats.checksumErrors.Add(1)
	}
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
	return n, h.corrupt(g.PageOf(off+int64(n)), h.readError(err))
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
	var doubts int64
	if present {
		checked, want = h.trusts(u, page), u.crcOf(page)
		doubts = h.s.dirOf(h.p).doubts.Load()
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
	if err := h.readWhole(f, whole, page, want); err != nil {
		return h.corrupt(page, err)
	}
	if len(whole) != len(b) {
		copy(b, whole[off-pe.Offset:])
	}
	h.p.mu.Lock()
	if u := h.p.unitOf(page); u.hasPage(page) && u.crcOf(page) == want && h.s.dirOf(h.p).doubts.Load() == doubts {
		u.setVerified(page, true)
	}
	h.p.mu.Unlock()
	return nil
}

// readWhole reads all of a page into b. The error says why b is not what the
// page's checksum says.
func (h *Handle) readWhole(f *openFile, b []byte, page int64, want uint32) error {
	if n, err := f.ReadAt(b, h.p.geometry().Page(page).Offset); n < len(b) {
		return h.readError(err)
	}
	if got := block.Checksum(b); got != want {
		return fmt.Errorf("page %d has checksum %08x, expected %08x", page, got, want)
	}
	return nil
}

// readError is the cause of a short read: the file ended, or the disk's error.
func (h *Handle) readError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return errors.New("the backing file is too short")
	}
	h.s.dirOf(h.p).countError(err)
	return err
}

// corrupt drops a page whose bytes cannot be had and returns the error.
func (h *Handle) corrupt(page int64, cause error) error {
	if h.giveUp(page) {
		h.s.stats.checksumErrors.Add(1)
	}
	return errs.E(errs.Corrupt, "read", h.p.path(), cause)
}

// giveUp drops a page that is damaged. It is false if it was gone already.
func (h *Handle) giveUp(page int64) bool {
	d, p := h.s.dirOf(h.p), h.p
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	u := p.unitOf(page)
	if !u.hasPage(page) {
		p.mu.Unlock()
		return false
	}
	d.dropPage(p, u, page)
	dead := p.has(partDead)
	p.mu.Unlock()
	h.s.recalls.file(p.id)
	if !dead {
		h.s.notifyOne(p.id, uint32(page/int64(p.blockPages)))
	}
	return true
}

// dropPage makes a page absent. Its room stays taken until the page is filled
// again or its unit goes: somebody may be reading or sending it, or have the
// file open, and must not see zeros. gate and p.mu are held.
func (d *dir) dropPage(p *part, u *unit, page int64) {
	dead := p.has(partDead)
	if p.has(partLogged) && !dead {
		if err := d.logDropPages(u, page, page+1); err != nil {
			d.ioError("drop page", err)
		}
	}
	u.clearPage(page)
	d.spoil(u, page)
	if dead {
		return
	}
	d.store.cachedBytes.Add(-p.geometry().Page(page).Length)
	d.tidyLater(p)
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
// position in it of the byte at off. ok is false if the range is not whole or
// not checked, if the part's blocks are not made of whole folios, or if all
// reads are checked; ReadAt serves then. The file must not be used after
// Release.
func (h *Handle) Section(off, n int64) (f *os.File, base int64, ok bool) {
	e, ok := h.within(off, n)
	if !ok {
		return nil, 0, false
	}
	h.p.mu.Lock()
	sendable := h.p.sendable()
	h.p.mu.Unlock()
	if !sendable {
		return nil, 0, false
	}
	file, checked, err := h.ready(e)
	if err != nil || !checked && !h.check(file, e) {
		return nil, 0, false
	}
	f, ok = vfs.OSFile(file.File)
	return f, off, ok
}

// within returns the extent [off, off+n), if it is one of the file, not empty,
// and others than ReadAt may read it.
func (h *Handle) within(off, n int64) (e block.Extent, ok bool) {
	e = block.Extent{Offset: off, Length: n}
	return e, off >= 0 && n > 0 && e.End() <= h.p.length && !h.always
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
