package tier

import (
	"os"

	"millrace/block"
	"millrace/internal/vfs"
)

// ReadNow fills b, which is not empty, with the bytes of f at off if it need
// not wait for that: they lie in one page that is present and was checked, the
// backing file is open, the kernel has the bytes in memory, and nobody changes
// the part just now. It is Acquire, ReadAt and Release in one, and returns the
// page's checksum too. When it is false b is worth nothing, and those are to
// be asked.
func (s *Store) ReadNow(f File, b []byte, off int64) (crc uint32, ok bool) {
	p := s.lookup(f.ID)
	end := off + int64(len(b))
	if p == nil || off < 0 || end > p.length || (end-1)/block.PageSize != off/block.PageSize || !p.mu.TryLock() {
		return 0, false
	}
	defer p.mu.Unlock() // instead of a pin, for what is done meanwhile is short
	page := off / block.PageSize
	u := p.unitOf(page)
	if p.file == nil || p.has(partDead) || !u.hasPage(page) || !u.isVerified(page) {
		return 0, false
	}
	d := s.dirOf(p)
	if d.slow && off == 0 { // counts for promotion
		return 0, false
	}
	file, err := d.openPart(p) // which it is
	if err != nil || !vfs.ReadCached(file.File, b, off) {
		return 0, false
	}
	d.orderOf(p).touch(u)
	return u.crcOf(page), true
}

// SectionNow is Section if it need not wait and nor will who sends what it
// returns, or for a disk that reads already: the pages were checked, the file
// is open, and the kernel has all of it in memory or on its way.
func (h *Handle) SectionNow(off, n int64) (f *os.File, base int64, ok bool) {
	e := block.Extent{Offset: off, Length: n}
	file := h.openNow(e)
	if file == nil || !vfs.Cached(file.File, off, n) {
		return nil, 0, false
	}
	f, ok = vfs.OSFile(file.File)
	return f, off, ok
}

// openNow returns the open file if e may be sent from it at once.
func (h *Handle) openNow(e block.Extent) *openFile {
	p := h.p
	first, end := p.geometry().PageRange(e)
	if e.Offset < 0 || e.IsEmpty() || e.End() > p.length || first < h.first || end > h.end || h.always {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil || p.has(partDead) || !p.sendable() {
		return nil
	}
	for page := first; page < end; page++ {
		if u := p.unitOf(page); !u.hasPage(page) || !u.isVerified(page) {
			return nil
		}
	}
	f, err := h.open() // which it is
	if err != nil {
		return nil
	}
	return f
}
