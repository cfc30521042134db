package tier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// checkAtOnce bounds the bytes that one hand-out reads to compare pages with
// their checksums that nobody has read since the store was opened. Of a larger
// file each attempt checks so many more.
const checkAtOnce = 16 << 20

// heldShare is the part of a directory whose files may be out of the cache and
// still open elsewhere before no more are handed out.
const heldShare = 2

// HandOut opens the backing file for somebody else, for reading alone: the
// file's bytes are the length bytes at base, each page compared with its
// checksum once in this run. The handle must have the whole file. The
// descriptor is the caller's; it stays good, and its bytes the same, whatever
// becomes of the part, for the kernel tells of it whenever room is wanted.
//
// Errors: NotCached if a page is absent, or not checked yet where that would
// take long; Unsupported if files of this directory are not handed out, or not
// now, since too much of it is held; Corrupt as in ReadAt; Unavailable if it
// cannot be opened.
func (h *Handle) HandOut() (fd *os.File, base, length int64, err error) {
	const op = "hand out"
	p, d := h.p, h.dir()
	g := p.geometry()
	switch {
	case h.always:
		return nil, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.New("nobody checks what is read by a descriptor"))
	case g.Length == 0:
		return nil, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.New("an empty file has no backing file"))
	case d == nil:
		return nil, 0, 0, errs.E(errs.NotCached, op, p.path(), nil)
	case h.first != 0 || h.end != g.Pages():
		return nil, 0, 0, errs.E(errs.Invalid, op, p.path(), errors.New("the handle has a part of the file"))
	case !d.canLease.Load():
		return nil, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.New("the cache directory's file system has no leases"))
	case d.ledger.state().held > int64(d.cfg.Capacity)/heldShare:
		return nil, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.New("too much is held for who has files open that are out of the cache"))
	}
	if err := h.checkUnchecked(); err != nil {
		return nil, 0, 0, errs.Wrap(err, op, p.path())
	}
	f, err := h.openAnew(d)
	switch {
	case errors.Is(err, errs.NotCached):
		return nil, 0, 0, errs.Wrap(err, op, p.path())
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE): // not the disk's fault
		return nil, 0, 0, errs.E(errs.Unavailable, op, p.path(), err)
	case err != nil:
		return nil, 0, 0, d.wrap(op, p, err)
	}
	fd, ok := vfs.OSFile(f)
	if !ok {
		return nil, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.Join(errors.New("the file has no descriptor"), f.Close()))
	}
	return fd, 0, g.Length, nil
}

// dir returns where the part is kept; nil if nothing of it ever was.
func (h *Handle) dir() *dir {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return h.s.dirOf(h.p)
}

// openAnew opens the backing file, all of whose pages are present and checked,
// by its name. An eviction, which takes the lease, holds the part's lock as
// this does.
func (h *Handle) openAnew(d *dir) (vfs.File, error) {
	p := h.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partDead) {
		return nil, errs.E(errs.NotCached, "", "", errors.New("it was dropped from the cache"))
	}
	switch page, err := h.unchecked(h.first); {
	case err != nil:
		return nil, err
	case page < h.end:
		return nil, errs.E(errs.NotCached, "", "", fmt.Errorf("page %d is to be checked again", page))
	}
	f, err := d.fs.OpenFile(d.partName(p.id), os.O_RDONLY|syscall.O_NOATIME|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E(errs.NotCached, "", "", err) // a read finds out, and repairs it
	}
	return f, err
}

// checkUnchecked compares the pages that were not yet with their checksums.
func (h *Handle) checkUnchecked() error {
	g := h.p.geometry()
	var none [0]byte
	var f *openFile
	left := int64(checkAtOnce)
	for page := h.first; ; page++ {
		var err error
		if page, err = h.nextUnchecked(page); err != nil || page == h.end {
			return err
		}
		pe := g.Page(page)
		if left -= pe.Length; left < 0 {
			return errs.E(errs.NotCached, "", "", errors.New("pages are to be checked first"))
		}
		if f == nil {
			if f, _, err = h.ready(pe); err != nil {
				return err
			}
		}
		if err := h.readPage(f, none[:], pe.Offset, page, pe); err != nil {
			return err
		}
	}
}

// nextUnchecked returns the first page from page on that was not checked, or
// the end. It is NotCached if one before that is absent.
func (h *Handle) nextUnchecked(page int64) (int64, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return h.unchecked(page)
}

// unchecked is nextUnchecked with p.mu held.
func (h *Handle) unchecked(page int64) (int64, error) {
	for page < h.end {
		u := h.p.unitOf(page)
		switch {
		case !u.hasPage(page):
			return page, errs.E(errs.NotCached, "", "", fmt.Errorf("page %d is not cached", page))
		case !u.isVerified(page):
			return page, nil
		}
		page++
		if first, end := u.unitPages(); page == first+1 && u.allVerified(end-first) {
			page = end
		}
	}
	return page, nil
}

// allVerified reports whether all of the unit's pages are present and were
// checked: a large file has too many to be asked for one by one.
func (u *unit) allVerified(pages int64) bool {
	return u.set != nil && countBits(u.set.verified, 0, pages) == pages
}
