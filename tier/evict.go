package tier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// maxRefused bounds how many victims one reservation asks the kernel about in
// vain before it gives up.
const maxRefused = 64

// idleSuperseded is how many older versions may be on a directory's list,
// beside twice as many as there were, before upkeep takes dropped ones off it.
const idleSuperseded = 1000

// makeRoom charges bytes and inodes, and evicts until they fit. The error is
// of kind NoSpace if they cannot.
func (d *dir) makeRoom(bytes, inodes int64) error {
	if err := d.ensureLog(); err != nil {
		return err
	}
	return d.reserve(bytes, inodes)
}

func (d *dir) reserve(bytes, inodes int64) error {
	if d.ledger.reserve(bytes, inodes) {
		return nil
	}
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	if st := d.ledger.state(); bytes > st.limit-st.reserved {
		return fmt.Errorf("%w: %d bytes are asked for, %d may be taken in all", errs.NoSpace, bytes, st.limit)
	}
	d.sweepHeld()
	for refused := 0; !d.ledger.reserve(bytes, inodes); {
		if err := d.failure(); err != nil {
			return err
		}
		done, found := d.evictNext(refused)
		if !found {
			return fmt.Errorf("%w: all that is cached is in use", errs.NoSpace)
		}
		if !done {
			if refused++; refused > maxRefused {
				return fmt.Errorf("%w: others have the files open", errs.NoSpace)
			}
		}
	}
	return nil
}

// evictNext gives up one victim, after so many that were refused in a row.
// found is false if there is none.
func (d *dir) evictNext(refused int) (done, found bool) {
	if done, found = d.evictSuperseded(); found {
		return done, true
	}
	u := d.victim(refused)
	if u == nil {
		return false, false
	}
	return d.evict(u), true
}

// evictSuperseded is evictNext for older versions alone.
func (d *dir) evictSuperseded() (done, found bool) {
	p := d.nextSuperseded()
	if p == nil {
		return false, false
	}
	n := d.detach(p, true)
	if n > 0 {
		d.store.stats.evictedFiles.Add(1)
		d.store.stats.evictedBytes.Add(n - 1)
	}
	return n > 0, true
}

// supersede puts a part of this directory on the list of older versions.
func (d *dir) supersede(p *part) {
	d.heldMu.Lock()
	d.superseded = append(d.superseded, p)
	d.heldMu.Unlock()
}

// nextSuperseded takes the next older version that nobody uses off the list.
// Only the goroutine that evicts calls it.
func (d *dir) nextSuperseded() (idle *part) {
	d.heldMu.Lock()
	list := d.superseded
	d.superseded = nil
	d.heldMu.Unlock()
	if len(list) == 0 {
		return nil
	}
	var busy []*part // they come last from now on
	for idle == nil && len(list) > 0 {
		p := list[0]
		list = list[1:]
		p.mu.Lock()
		dead, used := p.has(partDead), p.refs > 0
		p.mu.Unlock()
		switch {
		case dead:
		case used:
			busy = append(busy, p)
		default:
			idle = p
		}
	}
	d.heldMu.Lock()
	d.superseded = append(append(list, busy...), d.superseded...)
	d.heldMu.Unlock()
	return idle
}

// pruneSuperseded takes the older versions that were dropped off their list,
// when it has doubled since the last time.
func (d *dir) pruneSuperseded() {
	d.heldMu.Lock()
	if len(d.superseded) <= 2*d.older+idleSuperseded {
		d.heldMu.Unlock()
		return
	}
	list := d.superseded
	d.superseded = nil
	d.heldMu.Unlock()
	list = slices.DeleteFunc(list, func(p *part) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.has(partDead)
	})
	d.heldMu.Lock()
	d.superseded = append(list, d.superseded...)
	d.older = len(d.superseded)
	d.heldMu.Unlock()
}

// evict gives up a unit, if nobody uses it and the kernel proves that nobody
// else has the file. It reports whether room was won.
func (d *dir) evict(u *unit) bool {
	d.gate.RLock()
	defer d.gate.RUnlock()
	p := u.part
	p.mu.Lock()
	if p.has(partDead) || u.pins.Load() > 0 || u.state.Load()&unitQueued == 0 {
		p.mu.Unlock()
		return true // somebody else was here; try the next
	}
	var changed []uint32
	var freed int64
	switch {
	case p.isReplica() && p.refs > 0: // it goes as a whole
		p.mu.Unlock()
		return false
	case p.has(partByBlock) && !p.isReplica():
		changed = []uint32{u.word}
		freed = d.evictBlock(p, u)
		if freed >= 0 && p.refs == 0 && !p.has(partDead) && p.empty() && d.evictWhole(p) < 0 {
			d.tidyLater(p) // it has no unit left that could be a victim
		}
		if p.has(partDead) { // perhaps since its file was gone, with pages in other blocks
			changed = append(p.changedBlocks(), u.word)
		}
	default:
		changed = p.changedBlocks()
		freed = d.evictWhole(p)
	}
	id := p.id
	p.mu.Unlock()
	d.store.recalls.victim(id, freed < 0)
	if freed < 0 {
		return false
	}
	d.store.stats.evictedBytes.Add(freed)
	d.store.notify(id, changed)
	return true
}

// prove takes the lease that shows that nobody else has the backing file.
// nil is the proof; where the file system had no leases as the directory was
// opened nothing is ever given out, and the part's lock is the proof. Anything
// else is none: descriptors may be out, also those of an earlier run.
func (d *dir) prove(f vfs.File) error {
	if !d.canLease.Load() {
		return nil
	}
	return f.Lease()
}

func (d *dir) unprove(f vfs.File) {
	if !d.canLease.Load() {
		return
	}
	if err := f.Unlease(); err != nil {
		d.ioError("end lease", err)
	}
}

// evictWhole removes a part that nobody uses: the proof, the index, the file.
// It returns the cached bytes given up, or -1. gate and p.mu are held.
func (d *dir) evictWhole(p *part) int64 {
	f, err := d.openPart(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.ioError("open victim", err)
		return -1
	}
	if f != nil {
		if err := d.prove(f); err != nil {
			return -1
		}
	}
	if err := d.logDropPart(p); err != nil {
		if f != nil {
			d.unprove(f)
		}
		d.ioError("evict", err)
		return -1
	}
	bytes, charge := p.cachedBytes(), d.partCharge(p)
	if f != nil {
		err = d.fs.Remove(d.partName(p.id))
	}
	d.leaves.grow(leafOf(p.id), -1)
	// The name goes before the part does: whoever looks for the file waits
	// for p.mu, and only then makes a new one.
	if f == nil || err == nil {
		p.flags &^= partCreated
		d.forget(p)
		d.letGo(p) // closing ends the lease
		d.ledger.free(charge, 1)
	} else {
		d.ioError("remove victim", err)
		d.moveToHeld(p)
		d.forget(p)
		d.ledger.hold(charge)
		d.finishHeld(p)
	}
	d.store.stats.evictedFiles.Add(1)
	return bytes
}

// evictBlock punches a block of a large part. It returns the cached bytes
// given up, or -1. gate and p.mu are held.
func (d *dir) evictBlock(p *part, u *unit) int64 {
	f, err := d.openPart(p)
	if err != nil {
		d.ioError("open victim", err)
		if errors.Is(err, fs.ErrNotExist) {
			return d.evictWhole(p)
		}
		return -1
	}
	if err := d.prove(f); err != nil {
		return -1
	}
	defer d.unprove(f)
	first, end := u.unitPages()
	if err := d.logDropPages(u, first, end); err != nil {
		d.ioError("evict", err)
		return -1
	}
	bytes, charge := u.cachedBytes(), d.charge(u)
	d.orderOf(p).remove(u)
	if p.has(partIndexed) { // else it is about to be adopted, and not counted yet
		d.store.cachedBytes.Add(-bytes)
	}
	if err := d.punchBlock(f, u); err != nil {
		d.ioError("punch victim", err)
		for page := first; page < end; page++ {
			if u.hasPage(page) {
				u.clearPage(page)
				d.spoil(u, page)
			}
		}
		d.tidyLater(p)
		return bytes
	}
	delete(p.set.blocks, u.word)
	d.ledger.free(charge, 0)
	return bytes
}

// punchBlock gives the room of a block back. Behind the end of the file it
// goes on to where the last folio may end, so that none is cut.
func (d *dir) punchBlock(f vfs.File, u *unit) error {
	p := u.part
	e := p.geometry().PagesExtent(u.unitPages())
	length := roundUp(e.Length, d.block)
	if p.sendable() {
		length = roundUp(e.Length, largestFolio)
	}
	return f.PunchHole(e.Offset, length)
}

// spoil notes that the room of an absent page is taken all the same. p.mu is
// held.
func (d *dir) spoil(u *unit, page int64) {
	u.spoil(page)
	d.unknown.Store(true)
}

// addUnknown charges room of a file that no page has, until the next start.
func (d *dir) addUnknown(bytes int64) {
	d.ledger.add(bytes, 0)
	d.unknown.Store(true)
}

// dropUnit forgets a block that nobody uses and that has no page. Where it
// has room that is taken all the same, upkeep comes back to it. p.mu is held.
func (d *dir) dropUnit(u *unit) {
	if u.spoiledPages() == nil {
		d.forgetBlock(u)
	}
}

// forgetBlock forgets a block that takes no room any more. p.mu is held.
func (d *dir) forgetBlock(u *unit) {
	d.orderOf(u.part).remove(u)
	d.ledger.free(d.charge(u), 0)
	delete(u.part.set.blocks, u.word)
}

// detach takes a part out of the store at once: index, then held/; the file
// goes when the kernel proves that nobody has it. Handles go on reading what
// is there. It returns 1 + the cached bytes, or 0 if the part was gone or in
// use where only idle ones are wanted.
func (d *dir) detach(p *part, onlyIdle bool) int64 {
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	if p.has(partDead) || onlyIdle && p.refs > 0 {
		p.mu.Unlock()
		return 0
	}
	bytes, err := d.detachLocked(p)
	changed := p.changedBlocks()
	p.mu.Unlock()
	if err != nil {
		d.ioError("drop", err)
		return 0
	}
	d.store.notify(p.id, changed)
	return 1 + bytes
}

func (d *dir) detachLocked(p *part) (int64, error) {
	gone := false
	if p.refs > 0 && p.has(partCreated) {
		f, err := d.openPart(p) // by its name, while it has one
		switch {
		case err == nil:
			f.refs++ // kept for the handles; ended by finishHeld
		case errors.Is(err, fs.ErrNotExist):
			gone = true
		default:
			return 0, err
		}
	}
	if err := d.logDropPart(p); err != nil {
		if p.refs > 0 && p.file != nil {
			p.file.refs--
		}
		return 0, err
	}
	bytes, charge := p.cachedBytes(), d.partCharge(p)
	if !p.has(partCreated) {
		d.forget(p)
		return bytes, nil
	}
	if !gone {
		// The name goes while the part is still found: whoever looks for the
		// file waits for p.mu, and only then makes a new one.
		d.moveToHeld(p)
	}
	d.forget(p)
	if gone {
		p.flags &^= partCreated
		d.leaves.grow(leafOf(p.id), -1)
		d.ledger.free(charge, 1)
		d.store.recalls.file(p.id) // nobody can prove that no descriptor is out
		return bytes, nil
	}
	d.leaves.grow(leafOf(p.id), -1)
	d.ledger.hold(charge)
	if p.refs == 0 {
		d.finishHeld(p)
	}
	return bytes, nil
}

// finishHeld removes the file of a part that is out of the store and that no
// handle uses any more. p.mu is held.
func (d *dir) finishHeld(p *part) {
	if p.file != nil {
		p.file.refs = 0
	}
	d.letGo(p)
	if !p.has(partCreated) {
		return
	}
	h := heldFile{d.heldName(p), d.partCharge(p)}
	if !d.removeHeld(h) {
		d.store.recalls.file(p.id)
		d.heldMu.Lock()
		d.held = append(d.held, h)
		d.heldMu.Unlock()
	}
	p.flags &^= partCreated
}

// moveToHeld takes the name of a part away that is about to be forgotten, so
// that the same file can be cached anew. Where that fails the file stays
// charged, and the next start finds it.
func (d *dir) moveToHeld(p *part) {
	if err := d.fs.Rename(d.partName(p.id), d.heldName(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.ioError("hold dropped file", err)
		d.unknown.Store(true)
		p.flags &^= partCreated
	}
}

func (d *dir) heldName(p *part) string {
	return filepath.Join(d.root, heldDir, fmt.Sprintf("%s-%x", p.id, p.serial))
}

// removeHeld unlinks a held file if the kernel proves that nobody has it.
func (d *dir) removeHeld(h heldFile) bool {
	if d.failure() != nil {
		return false // found again when the directory comes back
	}
	f, err := d.fs.OpenFile(h.name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		d.ledger.hold(-h.bytes)
		d.ledger.free(h.bytes, 1)
		return true
	}
	if err != nil {
		d.ioError("open held file", err)
		return false
	}
	err = d.prove(f)
	if err == nil {
		err = d.fs.Remove(h.name)
	}
	if closeErr := f.Close(); closeErr != nil {
		d.ioError("close held file", closeErr)
	}
	if err != nil {
		if !errors.Is(err, vfs.ErrShared) {
			d.ioError("remove held file", err)
		}
		return false
	}
	d.ledger.hold(-h.bytes)
	d.ledger.free(h.bytes, 1)
	return true
}

// sweepHeld removes the held files that are free by now.
func (d *dir) sweepHeld() {
	d.heldMu.Lock()
	list := d.held
	d.held = nil
	d.heldMu.Unlock()
	kept := list[:0]
	for _, h := range list {
		if !d.removeHeld(h) {
			kept = append(kept, h)
		}
	}
	d.heldMu.Lock()
	d.held = append(kept, d.held...)
	d.heldMu.Unlock()
}

// discard moves a file that no index knows to held/ and charges it.
func (d *dir) discard(name string) error {
	fi, err := d.fs.Stat(name)
	if err != nil {
		return err
	}
	held := filepath.Join(d.root, heldDir, fmt.Sprintf("%s-x%x", filepath.Base(name), d.heldNames.Add(1)))
	if err := d.fs.Rename(name, held); err != nil {
		return err
	}
	h := heldFile{held, vfs.Allocated(fi)}
	d.ledger.add(h.bytes, 1)
	d.ledger.hold(h.bytes)
	if !d.removeHeld(h) {
		d.heldMu.Lock()
		d.held = append(d.held, h)
		d.heldMu.Unlock()
	}
	return nil
}

// ensureLog keeps room in the log for the records of what is about to be
// filled, and of evictions on a full disk.
func (d *dir) ensureLog() error {
	if d.index.left() >= d.index.chunk/2 {
		return nil
	}
	d.indexMu.Lock()
	defer d.indexMu.Unlock()
	if d.index.left() >= d.index.chunk/2 {
		return nil
	}
	if err := d.reserve(d.index.chunk, 0); err != nil {
		return err
	}
	if err := d.index.extend(); err != nil {
		d.ledger.cancel(d.index.chunk, 0)
		d.countError(err)
		if isNoSpace(err) {
			return errs.E(errs.NoSpace, "", "", err)
		}
		return errs.E(errs.Unavailable, "", "", err)
	}
	d.ledger.written(d.index.chunk)
	d.indexFiles[segmentName(d.index.dir, d.index.position().segment)] += d.index.chunk
	return nil
}

// forget takes a part out of every structure. p.mu is held. What it charged
// stays charged, and its pages stay readable to handles.
func (d *dir) forget(p *part) {
	p.flags |= partDead
	p.all(d.orderOf(p).remove)
	d.leaveShare(p)
	d.store.forget(p)
}

func (d *dir) partCharge(p *part) int64 {
	var n int64
	p.all(func(u *unit) { n += d.charge(u) })
	return n
}

// changedBlocks returns the blocks that have pages. p.mu is held.
func (p *part) changedBlocks() []uint32 {
	var all []uint32
	g := p.geometry()
	p.all(func(u *unit) {
		if u.count() == 0 {
			return
		}
		if p.has(partByBlock) {
			all = append(all, u.word)
			return
		}
		for i := range uint32(g.Blocks()) {
			if p.blockState(i).CachedBytes > 0 {
				all = append(all, i)
			}
		}
	})
	return all
}

func (d *dir) logDropPart(p *part) error {
	if !p.has(partLogged) {
		return nil
	}
	return d.index.append(appendFrame(nil, &record{Type: recordDropPart, Serial: p.serial}))
}

// logDropPages records that the pages [first, end) of u are gone.
func (d *dir) logDropPages(u *unit, first, end int64) error {
	var frames []byte
	g := u.part.geometry()
	perBlock := int64(u.part.blockPages)
	for first < end {
		b := first / perBlock
		stop := min(end, (b+1)*perBlock, g.Pages())
		frames = appendFrame(frames, &record{
			Type: recordDropPages, Serial: u.part.serial, Block: uint32(b),
			First: uint32(first - b*perBlock), Count: uint32(stop - first),
		})
		first = stop
	}
	return d.index.append(frames)
}
