package tier

import (
	"errors"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// fillingShare is the part of a directory up to which a file is handed out
// before it is whole: nothing of it can be evicted then, so that a longer one
// would drive out all others and in the end find no room itself.
const fillingShare = 4

// HandOutFilling is HandOut for a file of which pages may be absent: those are
// not to be read until LiesIn says with the mark that they are there. The
// handle may have any part of the file.
//
// Errors: as of HandOut. NotCached if there is no backing file yet;
// Unsupported if the file is long against its directory.
func (h *Handle) HandOutFilling() (fd *os.File, base, length int64, mark uint64, err error) {
	const op = "hand out"
	p, d := h.p, h.dir()
	if err := h.mayHandOut(d); err != nil {
		return nil, 0, 0, 0, errs.Wrap(err, op, p.path())
	}
	if p.length > int64(d.cfg.Capacity)/fillingShare {
		return nil, 0, 0, 0, errs.E(errs.Unsupported, op, p.path(), errors.New("it is not whole, and long against its cache directory"))
	}
	p.mu.Lock()
	f, err := h.openName(d)
	p.mu.Unlock()
	if fd, err = h.handedOut(d, f, err); err != nil {
		return nil, 0, 0, 0, err
	}
	if mark = markOf(fd); mark == 0 {
		return nil, 0, 0, 0, errs.E(errs.Unavailable, op, p.path(), errors.Join(errors.New("the file does not tell its number"), fd.Close()))
	}
	return fd, 0, p.length, mark, nil
}

// LiesIn reports whether the bytes [off, off+n) are in the backing file that
// the mark names, each page of them compared with its checksum once in this
// run. Whoever has a descriptor of that file open, since before he asked, may
// read them by it for as long as it is: nothing is evicted meanwhile, for want
// of the kernel's proof, and a file that is dropped keeps what it has.
func (h *Handle) LiesIn(mark uint64, off, n int64) bool {
	e, ok := h.within(off, n)
	if !ok {
		return false
	}
	f, checked, err := h.ready(e)
	return err == nil && f.isMarked(mark) && (checked || h.check(f, e))
}

// LiesInNow is LiesIn if it need not wait for a disk.
func (h *Handle) LiesInNow(mark uint64, off, n int64) bool {
	e, ok := h.within(off, n)
	if !ok {
		return false
	}
	f := h.openNow(e)
	return f != nil && f.isMarked(mark)
}

// isMarked reports whether the file is the one that the mark names. The file
// is in use.
func (f *openFile) isMarked(mark uint64) bool {
	have := f.mark.Load()
	if have == 0 {
		o, ok := vfs.OSFile(f.File)
		if !ok {
			return false
		}
		have = markOf(o)
		f.mark.Store(have)
	}
	return have != 0 && have == mark
}

// markOf names a file among all that are open: its inode cannot be another's
// before the last descriptor is closed. It is 0 if the kernel does not tell.
func markOf(f *os.File) uint64 {
	raw, err := f.SyscallConn() // leaves the descriptor's mode alone, unlike Fd
	if err != nil {
		return 0
	}
	var st unix.Stat_t
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Fstat(int(fd), &st) }); err != nil || failed != nil {
		return 0
	}
	// Numbers of inodes count up from below, those of devices from above.
	return st.Ino ^ bits.Reverse64(st.Dev)
}
