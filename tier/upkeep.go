package tier

import (
	"errors"
	"os"
	"time"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// checkpoint makes everything durable that is recorded so far, and records
// that. Without anything new it does nothing, unless flags ask for a record.
func (d *dir) checkpoint(flags uint8) error {
	d.upkeepMu.Lock()
	defer d.upkeepMu.Unlock()
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

// unverifyAll makes the next read of every page check it again.
func (d *dir) unverifyAll() {
	for i := range d.store.shards {
		sh := &d.store.shards[i]
		sh.mu.RLock()
		parts := make([]*part, 0, len(sh.parts))
		for _, p := range sh.parts {
			parts = append(parts, p)
		}
		sh.mu.RUnlock()
		for _, p := range parts {
			p.mu.Lock()
			if p.dirIndex == d.num {
				p.all(func(u *unit) { u.unverify() })
			}
			p.mu.Unlock()
		}
	}
}

// shrink evicts down to the limit, when others filled the file system.
func (d *dir) shrink() {
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	for range 1024 { // the rest at the next round
		if st := d.ledger.state(); st.used <= st.limit {
			return
		}
		if done, found := d.evictNext(); !found || !done {
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

// writeAll writes all parts, the next victims first, so that the order of the
// policy survives a restart.
func (w *snapshotWriter) writeAll() error {
	large := map[*part]bool{} // whose part record is written
	for _, u := range w.d.queue.units() {
		w.addUnit(u, large)
		if len(w.buf) >= snapshotPiece {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	w.buf = appendFrame(w.buf, &record{Type: recordEnd, Records: w.records})
	return w.flush()
}

func (w *snapshotWriter) addUnit(u *unit, large map[*part]bool) {
	p := u.part
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partDead) || u.count() == 0 {
		return
	}
	if !p.has(partByBlock) || !large[p] {
		w.buf = appendPart(w.buf, p)
		w.records++
		if p.has(partByBlock) {
			large[p] = true
		}
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
	err := d.checkpointLocked(flagClean)
	if err == nil {
		err = d.index.sync()
	}
	err = errors.Join(err, d.index.close())
	d.gate.Unlock()
	d.closeIdle()
	return errors.Join(err, d.lock.Close())
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
