package tier

import (
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// checkpoint makes everything durable that is recorded so far, and records
// that. Without anything new it does nothing, unless flags ask for a record.
func (d *dir) checkpoint(flags uint8) error {
	d.upkeepMu.Lock()
	defer d.upkeepMu.Unlock()
	if err := d.failure(); err != nil {
		return err
	}
	return d.checkpointLocked(flags)
}

func (d *dir) checkpointLocked(flags uint8) error {
	written := d.unsynced.Load()
	if written == 0 && flags == 0 {
		return nil
	}
	// A page is written before its record, so the sync covers the pages of
	// all records before this position.
	pos := d.index.position()
	if err := d.lock.SyncFS(); err != nil {
		// The kernel may have thrown away pages that it could not write.
		d.unverifyAll()
		return err
	}
	err := d.index.append(appendFrame(nil, &record{
		Type: recordCheckpoint, Flags: flags, Segment: pos.segment,
		Offset: uint64(pos.offset),
		UnixMS: uint64(time.Now().UnixMilli()),
	}))
	if err != nil {
		return err
	}
	d.unsynced.Add(-written)
	return nil
}

// unverifyAll makes the next read of every page check it again, also of those
// that are being filled or checked just now.
func (d *dir) unverifyAll() {
	d.doubts.Add(1)
	for _, u := range d.units() {
		u.part.mu.Lock()
		u.unverify()
		u.part.mu.Unlock()
	}
	d.store.recalls.all()
}

// eachPart calls fn with each part until fn fails. Parts that come meanwhile
// may be left out.
func (s *Store) eachPart(fn func(p *part) error) error {
	var parts []*part
	for i := range s.shards {
		sh := &s.shards[i]
		parts = parts[:0]
		sh.mu.RLock()
		for _, p := range sh.parts {
			parts = append(parts, p)
		}
		sh.mu.RUnlock()
		for _, p := range parts {
			if err := fn(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidyLater has upkeep come back to a part that was left empty, or that may
// have blocks which are empty but for spoiled pages. Others keep those: they
// may be sent from their file, and what sits in a socket's queue must not
// become zeros.
func (d *dir) tidyLater(p *part) {
	if !p.has(partByBlock) && !p.empty() {
		return
	}
	d.heldMu.Lock()
	defer d.heldMu.Unlock()
	if d.untidy == nil {
		d.untidy = map[*part]struct{}{}
	}
	d.untidy[p] = struct{}{}
}

// tidy gives the room of spoiled pages back and drops parts that are empty.
// What somebody uses, or what fails, is left for the next round.
func (d *dir) tidy() {
	d.pruneSuperseded()
	d.heldMu.Lock()
	parts := d.untidy
	d.untidy = nil
	d.heldMu.Unlock()
	for p := range parts {
		d.punchSpoiled(p)
		d.dropEmpty(p)
	}
}

// punchSpoiled punches the blocks that nobody has pinned and that have spoiled
// pages alone, if the kernel proves that nobody else has the file.
func (d *dir) punchSpoiled(p *part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var units []*unit
	p.all(func(u *unit) {
		if u.count() == 0 && u.spoiledPages() != nil {
			units = append(units, u)
		}
	})
	if p.has(partDead) || !p.has(partByBlock) || units == nil {
		return
	}
	f, err := d.openPart(p)
	if err == nil {
		err = d.prove(f)
	}
	if err != nil {
		d.tidyLater(p)
		return
	}
	defer d.unprove(f)
	for _, u := range units {
		if u.pins.Load() > 0 {
			d.tidyLater(p)
			continue
		}
		if err := d.punchBlock(f, u); err != nil {
			d.ioError("punch spoiled pages", err)
			d.tidyLater(p)
			return
		}
		d.forgetBlock(u)
	}
}

// shrink evicts down to the limit, when others filled the file system, or a
// start needed room for its index.
func (d *dir) shrink() {
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	refused := 0
	for range 1024 { // the rest at the next round
		if st := d.ledger.state(); st.used <= st.limit {
			return
		}
		done, found := d.evictNext(refused)
		if !done {
			refused++
		}
		if !found || refused > maxRefused {
			return
		}
	}
}

// maxIndexFiles bounds the segments that restarts leave behind.
const maxIndexFiles = 10

// compact writes a snapshot and starts a new log segment, when the log has
// outgrown the last snapshot, or always when forced.
func (d *dir) compact(force bool) error {
	d.upkeepMu.Lock()
	defer d.upkeepMu.Unlock()
	if err := d.failure(); err != nil {
		return err
	}
	d.indexMu.Lock()
	files := len(d.indexFiles)
	d.indexMu.Unlock()
	if !force && files <= maxIndexFiles && d.index.grown() < max(d.snapshot, 4*d.index.chunk) {
		return nil
	}
	// A short segment is read again on top of the snapshot; when the last
	// attempt failed there is no need for yet another one.
	if force || d.index.position().offset > d.index.chunk/2 {
		if err := d.rotate(); err != nil {
			return err
		}
	}
	return d.writeSnapshot()
}

// rotate starts a new log segment. When it returns, what the segments before
// it say is in memory.
func (d *dir) rotate() error {
	seq := d.index.position().segment + 1
	chunk := d.index.chunk
	if err := d.reserve(chunk, 1); err != nil {
		return err
	}
	f, err := d.index.newSegment(seq)
	if err != nil {
		d.ledger.cancel(chunk, 1)
		return err
	}
	d.ledger.written(chunk)
	oldName := segmentName(d.index.dir, seq-1)
	d.gate.Lock()
	old := d.index.use(f, seq)
	d.gate.Unlock()

	d.indexMu.Lock()
	d.indexFiles[segmentName(d.index.dir, seq)] += chunk // it may have been extended by now
	d.indexMu.Unlock()
	if old == nil {
		return nil
	}
	err = d.trim(old, oldName)
	return errors.Join(err, old.Close())
}

// trim gives back the room of a finished segment that was never written.
func (d *dir) trim(f vfs.File, name string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Truncate(fi.Size()); err != nil {
		return err
	}
	if fi, err = f.Stat(); err != nil {
		return err
	}
	d.chargeIndex(name, roundUp(vfs.Allocated(fi), d.block))
	return nil
}

// chargeIndex sets what an index file takes; 0 forgets it. Its inode is
// charged by its maker.
func (d *dir) chargeIndex(name string, bytes int64) {
	d.indexMu.Lock()
	defer d.indexMu.Unlock()
	d.ledger.add(bytes-d.indexFiles[name], 0)
	if d.indexFiles[name] = bytes; bytes == 0 {
		delete(d.indexFiles, name)
	}
}

// snapshotWriter collects frames and writes them in large pieces, within the
// room that was reserved.
type snapshotWriter struct {
	d       *dir
	f       vfs.File
	buf     []byte
	off     int64
	charged int64
	records uint64
}

const snapshotPiece = 1 << 20

func (w *snapshotWriter) flush() error {
	end := w.off + int64(len(w.buf))
	if need := roundUp(end, w.d.block) - w.charged; need > 0 {
		if err := w.d.reserve(need, 0); err != nil {
			return err
		}
		w.d.ledger.written(need)
		w.charged += need
	}
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off, w.buf = end, w.buf[:0]
	return nil
}

// writeSnapshot writes what memory says, and then removes the segments and
// snapshots that it replaces. Records that come meanwhile are in the current
// segment, which is read after the snapshot; applying them twice is harmless.
func (d *dir) writeSnapshot() (err error) {
	seq := d.index.position().segment
	name := snapshotName(d.index.dir, seq)
	if !d.ledger.reserve(0, 1) {
		return errs.E(errs.NoSpace, "", "", nil)
	}
	f, err := d.fs.OpenFile(name+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		d.ledger.cancel(0, 1)
		return err
	}
	w := &snapshotWriter{d: d, f: f, buf: header{magic: snapshotMagic, seq: seq, boot: d.index.boot}.encode()}
	err = w.writeAll()
	if err == nil {
		err = d.lock.SyncFS() // the pages as well as the file
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = d.fs.Rename(name+tempSuffix, name)
	}
	if err == nil {
		err = d.fs.SyncDir(d.index.dir)
	}
	if err != nil {
		if rmErr := d.fs.Remove(name + tempSuffix); rmErr == nil {
			d.ledger.free(w.charged, 1)
		}
		return err
	}
	d.indexMu.Lock()
	d.indexFiles[name] = w.charged
	d.indexMu.Unlock()
	d.snapshot = w.off
	d.index.restart()
	return d.removeIndexBefore(seq)
}

// writeAll writes all parts in the order of the policy, so that it survives a
// restart.
func (w *snapshotWriter) writeAll() error {
	// First the copies, which nobody finds: one that is done meanwhile is in
	// the maps by then.
	for _, p := range w.d.copyParts() {
		w.addPartByBlock(p)
	}
	err := w.d.store.eachPart(func(p *part) error {
		w.addPartByBlock(p)
		return w.flushPiece()
	})
	if err != nil {
		return err
	}
	for _, u := range w.d.units() {
		w.addUnit(u)
		if err := w.flushPiece(); err != nil {
			return err
		}
	}
	w.buf = appendFrame(w.buf, &record{Type: recordEnd, Records: w.records})
	return w.flush()
}

func (w *snapshotWriter) flushPiece() error {
	if len(w.buf) < snapshotPiece {
		return nil
	}
	return w.flush()
}

// addPartByBlock writes the record of a part that is evicted by block. It may
// have no block now, and be filled again with no other record of it in the
// log.
func (w *snapshotWriter) addPartByBlock(p *part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partByBlock) && p.has(partLogged) && !p.has(partDead) && w.d.store.dirOf(p) == w.d {
		w.buf = appendPart(w.buf, p)
		w.records++
	}
}

// addUnit writes the pages of u, and before them the record of a part that is
// evicted as a whole. Such a part is written without pages, too, when those
// failed their checks: they may be filled again.
func (w *snapshotWriter) addUnit(u *unit) {
	p := u.part
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partDead) {
		return
	}
	if !p.has(partByBlock) {
		w.buf = appendPart(w.buf, p)
		w.records++
	}
	var flags uint8
	if u.state.Load()&unitVisited != 0 {
		flags = flagVisited
	}
	perBlock := int64(p.blockPages)
	first, end := u.unitPages()
	var crcs []uint32
	for page := first; page < end; page++ {
		if !u.hasPage(page) {
			continue
		}
		start := page
		crcs = crcs[:0]
		for page < end && u.hasPage(page) && page/perBlock == start/perBlock {
			crcs = append(crcs, u.crcOf(page))
			page++
		}
		page--
		w.buf = appendPages(w.buf, p, start, crcs, flags)
		w.records++
	}
}

// removeIndexBefore removes segments and snapshots older than seq.
func (d *dir) removeIndexBefore(seq uint64) error {
	entries, err := d.fs.ReadDir(d.index.dir)
	if err != nil {
		return err
	}
	var problems []error
	for _, e := range entries {
		n, ok := parseIndexName(e.Name(), segmentPrefix)
		if !ok {
			n, ok = parseIndexName(e.Name(), snapshotPrefix)
		}
		if !ok || n >= seq {
			continue
		}
		name := d.index.dir + string(os.PathSeparator) + e.Name()
		if err := d.fs.Remove(name); err != nil {
			problems = append(problems, err)
			continue
		}
		d.chargeIndex(name, 0)
		d.ledger.free(0, 1)
	}
	return errors.Join(problems...)
}

// close writes a last checkpoint that says that nothing is under way, and
// lets the directory go.
func (d *dir) close() error {
	d.upkeepMu.Lock()
	defer d.upkeepMu.Unlock()
	// No record may come behind the last one.
	d.gate.Lock()
	var flags uint8
	if !d.unknown.Load() && !d.unrecorded() {
		flags = flagClean
	}
	err := d.checkpointLocked(flags)
	if err == nil {
		err = d.index.sync()
	}
	err = errors.Join(err, d.index.close())
	d.gate.Unlock()
	d.closeIdle()
	return errors.Join(err, d.lock.Close())
}

// unrecorded reports whether there is a file that the index does not know,
// since nothing of it could be kept.
func (d *dir) unrecorded() bool {
	found := false
	look := func(p *part) {
		p.mu.Lock()
		defer p.mu.Unlock()
		found = found || p.flags&(partCreated|partLogged|partDead) == partCreated && d.store.dirOf(p) == d
	}
	for _, p := range d.copyParts() {
		look(p)
	}
	for i := range d.store.shards {
		sh := &d.store.shards[i]
		sh.mu.RLock()
		parts := slices.Collect(maps.Values(sh.parts))
		sh.mu.RUnlock()
		for _, p := range parts {
			look(p)
		}
	}
	return found
}

// closeIdle closes the descriptors that no handle uses; the others go with
// their handles.
func (d *dir) closeIdle() {
	d.files.mu.Lock()
	d.files.limit = 0
	var idle []*openFile
	for i := 0; i < len(d.files.slots); i++ {
		f := d.files.slots[i]
		if !f.part.mu.TryLock() {
			continue
		}
		if f.refs == 0 {
			f.part.file = nil
			d.files.drop(f)
			idle = append(idle, f)
			i--
		}
		f.part.mu.Unlock()
	}
	d.files.mu.Unlock()
	for _, f := range idle {
		d.closeFile(f)
	}
}
