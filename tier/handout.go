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
	if err := h.mayHandOut(d); err != nil {
		return nil, 0, 0, errs.Wrap(err, op, p.path())
	}
	if h.first != 0 || h.end != g.Pages() {
		return nil, 0, 0, errs.E(errs.Invalid, op, p.path(), errors.New("the handle has a part of the file"))
	}
	if err := h.checkUnchecked(); err != nil {
		return nil, 0, 0, errs.Wrap(err, op, p.path())
	}
	f, err := h.openAnew(d)
	if fd, err = h.handedOut(d, f, err); err != nil {
		return nil, 0, 0, err
	}
	return fd, 0, g.Length, nil
}

// mayHandOut returns why the file is not handed out whatever is cached of it;
// nil if it may be. d is where the part is kept.
func (h *Handle) mayHandOut(d *dir) error {
	switch {
	case h.always:
		return errs.E(errs.Unsupported, "", "", errors.New("nobody checks what is read by a descriptor"))
	case h.p.length == 0:
		return errs.E(errs.Unsupported, "", "", errors.New("an empty file has no backing file"))
	case d == nil:
		return errs.NotCached
	case !d.canLease.Load():
		return errs.E(errs.Unsupported, "", "", errors.New("the cache directory's file system has no leases"))
	case d.ledger.state().held > int64(d.cfg.Capacity)/heldShare:
		return errs.E(errs.Unsupported, "", "", errors.New("too much is held for who has files open that are out of the cache"))
	default:
		return nil
	}
}

// handedOut returns the descriptor of a file that was opened to be handed out,
// or what its opening failed with.
func (h *Handle) handedOut(d *dir, f vfs.File, err error) (*os.File, error) {
	const op = "hand out"
	p := h.p
	switch {
	case errors.Is(err, errs.NotCached):
		return nil, errs.Wrap(err, op, p.path())
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE): // not the disk's fault
		return nil, errs.E(errs.Unavailable, op, p.path(), err)
	case err != nil:
		return nil, d.wrap(op, p, err)
	}
	fd, ok := vfs.OSFile(f)
	if !ok {
		return nil, errs.E(errs.Unsupported, op, p.path(), errors.Join(errors.New("the file has no descriptor"), f.Close()))
	}
	return fd, nil
}

// dir returns where the part is kept; nil if nothing of it ever was.
func (h *Handle) dir() *dir {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return h.s.dirOf(h.p)
}

// openAnew opens the backing file, all of whose pages are present and checked.
func (h *Handle) openAnew(d *dir) (vfs.File, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	switch page, err := h.unchecked(h.first); {
	case err != nil:
		return nil, err
	case page < h.end:
		return nil, errs.E(errs.NotCached, "", "", fmt.Errorf("page %d is to be checked again", page))
	}
	return h.openName(d)
}

// openName opens the backing file by its name. p.mu is held, as it is by an
// eviction, which takes the lease.
func (h *Handle) openName(d *dir) (vfs.File, error) {
	p := h.p
	if p.has(partDead) {
		return nil, errs.E(errs.NotCached, "", "", errors.New("it was dropped from the cache"))
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
