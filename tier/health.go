package tier

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// strikeWindow is the time in which Config.MaxErrors failed operations take a
// directory out of service.
const strikeWindow = time.Minute

// health is what a directory's operations tell of its disk. It is safe for
// concurrent use, with any other lock held.
type health struct {
	cause atomic.Pointer[error] // why the directory is out of service; set once
	down  chan struct{}         // closed when cause is set

	mu      sync.Mutex
	since   time.Time // when the first of strikes was
	strikes int
}

// failure returns why the directory is out of service, or nil. Nothing is
// kept in it from then on; what it has is forgotten a moment later.
func (h *health) failure() error {
	if cause := h.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

func (h *health) fail(cause error) {
	if h.cause.CompareAndSwap(nil, &cause) {
		close(h.down)
	}
}

// strike counts a failed operation, and reports whether there were most within
// strikeWindow.
func (h *health) strike(now time.Time, most int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.since) > strikeWindow {
		h.since, h.strikes = now, 0
	}
	h.strikes++
	return h.strikes >= most
}

// judge takes an operation that failed as a sign of the disk's health. One
// error makes no dead disk, unless it says that nothing can be written or that
// there is no disk; or the index was left in a state that nobody knows.
func (d *dir) judge(err error) {
	switch {
	case d.index.failure() != nil: // whatever it was
		d.fail(d.unusable(d.index.failure()))
	case isNoSpace(err), errors.Is(err, vfs.ErrShared), errors.Is(err, fs.ErrNotExist),
		errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		// Of the room, of others, of this process. checkPlace looks whether
		// the directory is there.
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		d.fail(d.unusable(err))
	case d.strike(time.Now(), d.cfg.MaxErrors):
		d.fail(d.unusable(err))
	}
}

func (d *dir) unusable(cause error) *errs.Error {
	return errs.E(errs.Unavailable, "use cache directory", d.root, cause)
}

// ioError counts a failed operation of the disk that no caller is told of.
// The first since the last success of a checkpoint is logged.
func (d *dir) ioError(doing string, err error) {
	d.countError(err)
	if d.failure() == nil && !d.warned.Swap(true) {
		d.log.Warn("cache directory fails", slog.String("doing", doing), slog.Any("error", err))
	}
}

func (d *dir) countError(err error) {
	d.ioErrors.Add(1)
	d.judge(err)
}

// wrap gives an error of the disk its kind and counts it.
func (d *dir) wrap(op string, p *part, err error) error {
	d.countError(err)
	k := errs.KindOf(err)
	switch {
	case isNoSpace(err):
		k = errs.NoSpace
	case k == errs.Unknown || k == errs.NotFound:
		k = errs.Unavailable
	}
	return errs.E(k, op, p.path(), err)
}

// checkPlace fails the directory if it is no longer at its path: removed, or
// its file system unmounted.
func (d *dir) checkPlace() {
	fi, err := d.fs.Stat(filepath.Join(d.root, lockFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.fail(d.unusable(err))
		return
	case err != nil:
		d.ioError("look for the directory", err)
		return
	}
	mine, err := d.lock.Stat()
	if err != nil {
		d.ioError("look for the directory", err)
		return
	}
	if there, ok := fileNumbers(fi); ok {
		if ours, ok := fileNumbers(mine); ok && ours != there {
			d.fail(d.unusable(errors.New("another directory is in its place")))
		}
	}
}

// fileNumber names a file on this machine.
type fileNumber struct{ device, inode uint64 }

// fileNumbers returns a file's number, where its file system has them.
func fileNumbers(fi fs.FileInfo) (fileNumber, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileNumber{}, false
	}
	return fileNumber{st.Dev, st.Ino}, true
}

// takeOut forgets all that a failed directory has, so that its files are
// fetched and kept elsewhere, and lets the directory go. Handles on its parts
// find their pages absent. It touches nothing on the disk.
func (s *Store) takeOut(d *dir) {
	d.upkeepMu.Lock()
	defer d.upkeepMu.Unlock()
	if d.out {
		return
	}
	d.out = true
	d.gate.Lock() // no record and no eviction is under way
	lost := s.forgetAll(d)
	err := d.index.close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	d.gate.Unlock()
	d.heldMu.Lock()
	d.held, d.superseded, d.untidy = nil, nil, nil // found again when it comes back
	d.heldMu.Unlock()
	d.closeIdle()
	s.recalls.all()
	for _, l := range lost {
		s.notify(l.id, l.blocks)
	}
	attrs := []any{
		slog.Any("reason", d.failure()), slog.Int("files", len(lost)), slog.Duration("next_look", d.cfg.ProbeInterval.Std()),
		slog.String("hint", "reads go on without it; repair or mount the disk, and it is used again, or take it out of the configuration"),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("close", err))
	}
	d.log.Error("cache directory is out of service", attrs...)
}

// lostPart are the blocks that a part had when its directory failed.
type lostPart struct {
	id     block.FileID
	blocks []uint32
}

// forgetAll takes the parts of a directory out of the store. The directory's
// gate is held, and it takes no new ones, for it has failed.
func (s *Store) forgetAll(d *dir) []lostPart {
	var lost []lostPart
	lose := func(p *part) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dirIndex == d.num && !p.has(partDead) {
			lost = append(lost, lostPart{p.id, p.changedBlocks()})
			d.lose(p)
		}
		return nil
	}
	// First the copies: one that is done meanwhile is in the maps by then.
	for _, p := range d.copyParts() {
		_ = lose(p)
	}
	_ = s.eachPart(lose)
	return lost
}

// lose forgets a part with its pages. Whoever has it neither reads nor writes
// its file any more, which may soon be another one's: of the directory as it
// comes back. p.mu is held.
func (d *dir) lose(p *part) {
	p.flags &^= partCreated | partLogged
	d.forget(p)
	p.all((*unit).clearAll)
	d.letGo(p)
}
