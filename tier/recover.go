package tier

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// recovery rebuilds a directory's memory from its index and its files.
type recovery struct {
	d     *dir
	parts map[uint64]*part       // by serial
	last  *part                  // whose records were applied last; those of a file's pages mostly follow its own
	twins map[block.FileID]*part // those of parts that a directory recovered earlier has, too
	text  []byte                 // scratch of a path and a tag

	segment  uint64 // being read; 0 for the snapshot
	rebooted bool   // the last run ended with the machine's
	clean    bool   // the last record says that the store was closed
	torn     bool
	suspects []suspect // pages behind the last checkpoint; only when rebooted

	mu   sync.Mutex     // of what the scanners note
	odd  map[*part]bool // parts whose file may have room that no page has
	held int            // files that the index does not know

	dropped, verified int
}

// suspect is a record of pages that may not have reached the disk.
type suspect struct {
	at     logPosition // behind the record
	serial uint64
	first  int64 // pages of the file
	count  int64
}

// recover reads the index, compares it with the files, and opens a log
// segment for this run. Its parts are in the store's map then, but for twins;
// adopt does the rest.
func (d *dir) recover() (*recovery, error) {
	start := time.Now()
	r := &recovery{d: d, parts: map[uint64]*part{}, twins: map[block.FileID]*part{}, odd: map[*part]bool{}}
	segments, snapshots, err := r.list()
	if err != nil {
		return nil, err
	}
	if err := r.readIndex(segments, snapshots); err != nil {
		return nil, err
	}
	d.ledger.add(baseCharge*d.block, 8)
	d.ledger.setLimit(math.MaxInt64, math.MaxInt64) // until all is known
	if err := r.scan(); err != nil {
		return nil, err
	}
	if err := r.settle(); err != nil {
		return nil, err
	}
	if err := r.openLog(); err != nil {
		return nil, err
	}
	d.refreshLimits()
	st := d.ledger.state()
	if st.limit < int64(d.cfg.Capacity) {
		d.log.Warn("file system is too full: the cache directory keeps less than its capacity",
			slog.Int64("capacity_bytes", int64(d.cfg.Capacity)), slog.Int64("limit_bytes", st.limit), slog.Int64("used_bytes", st.used))
	}
	d.log.Info("cache directory opened",
		slog.Int("files", len(r.parts)), slog.Int64("used_bytes", st.used), slog.Bool("clean", r.clean),
		slog.Bool("rebooted", r.rebooted), slog.Int("pages_verified", r.verified), slog.Int("dropped", r.dropped),
		slog.Int("unknown_files", r.held), slog.Duration("took", time.Since(start)))
	return r, nil
}

// adopt makes what the directories have one store: of a file in two of them,
// left by a crash in the middle of a move, the better copy stays; the path
// index and the sums are built.
func (s *Store) adopt(found []*recovery) {
	var all []*part
	for _, r := range found {
		for id, twin := range r.twins {
			s.keepBetter(id, twin)
		}
	}
	for _, r := range found {
		for _, p := range r.parts {
			if p.has(partDead) {
				continue
			}
			p.flags |= partIndexed
			s.cachedBytes.Add(p.cachedBytes())
			all = append(all, p)
		}
	}
	s.cachedFiles.Add(int64(len(all)))
	for _, p := range s.paths.load(all) {
		p.state.Or(unitSuperseded)
		s.dirOf(p).supersede(p)
	}
	for _, d := range s.dirs {
		d.shrink()
	}
}

// keepBetter drops one of two parts of a file: the one with fewer pages, the
// one in the slower directory if they are equal.
func (s *Store) keepBetter(id block.FileID, twin *part) {
	sh := s.shardOf(id)
	other := sh.parts[id]
	if twin.has(partDead) {
		return
	}
	loser := twin
	if other == nil || other.pages() < twin.pages() {
		loser, sh.parts[id] = other, twin
	}
	if loser == nil {
		return
	}
	d := s.dirOf(loser)
	d.gate.RLock()
	defer d.gate.RUnlock()
	loser.mu.Lock()
	defer loser.mu.Unlock()
	d.dropCopy(loser)
}

// list returns the sequences of the index's segments and snapshots, ascending,
// charges the files and removes leftovers.
func (r *recovery) list() (segments, snapshots []uint64, err error) {
	d := r.d
	entries, err := d.fs.ReadDir(d.index.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name := filepath.Join(d.index.dir, e.Name())
		if strings.HasSuffix(e.Name(), tempSuffix) {
			if err := d.fs.Remove(name); err != nil {
				return nil, nil, err
			}
			continue
		}
		if seq, ok := parseIndexName(e.Name(), segmentPrefix); ok {
			segments = append(segments, seq)
		} else if seq, ok := parseIndexName(e.Name(), snapshotPrefix); ok {
			snapshots = append(snapshots, seq)
		} else {
			continue
		}
		fi, err := d.fs.Stat(name)
		if err != nil {
			return nil, nil, err
		}
		d.chargeIndex(name, roundUp(vfs.Allocated(fi), d.block))
		d.ledger.add(0, 1)
	}
	slices.Sort(segments)
	slices.Sort(snapshots)
	return segments, snapshots, nil
}

// readIndex applies the newest snapshot and the segments on top of it.
func (r *recovery) readIndex(segments, snapshots []uint64) error {
	d := r.d
	from := uint64(0)
	if n := len(snapshots); n > 0 {
		from = snapshots[n-1]
	}
	segments = slices.DeleteFunc(segments, func(seq uint64) bool { return seq < from })
	if n := len(segments); n > 0 {
		boot, err := r.bootOf(segments[n-1])
		if err != nil {
			return err
		}
		r.rebooted = boot == [16]byte{} || boot != d.index.boot
	}
	if from > 0 {
		size, err := r.readFile(snapshotName(d.index.dir, from), snapshotMagic)
		if err != nil {
			return err
		}
		d.snapshot = size
	}
	for _, seq := range segments {
		r.segment = seq
		size, err := r.readFile(segmentName(d.index.dir, seq), segmentMagic)
		if err != nil {
			return err
		}
		d.index.since += size
	}
	d.index.seq = from
	if n := len(segments); n > 0 {
		d.index.seq = max(from, segments[n-1])
	}
	return nil
}

// bootOf returns the boot in which a segment was written; zero if its header
// is not whole.
func (r *recovery) bootOf(seq uint64) (boot [16]byte, err error) {
	f, err := r.d.fs.OpenFile(segmentName(r.d.index.dir, seq), os.O_RDONLY, 0)
	if err != nil {
		return boot, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head := make([]byte, headerSize)
	if n, err := f.ReadAt(head, 0); n < headerSize {
		return boot, ignoreEOF(err)
	}
	h, err := decodeHeader(head, segmentMagic)
	if errors.Is(err, errNewerRecord) {
		return boot, errs.E(errs.Invalid, "", "", err)
	}
	return h.boot, nil // a bad header is found again when the segment is read
}

// readFile applies one index file and cuts a torn tail off.
func (r *recovery) readFile(name, magic string) (size int64, err error) {
	f, err := r.d.fs.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ended := magic == segmentMagic
	if !ended {
		if err := r.expect(f); err != nil {
			return 0, err
		}
	}
	r.clean = false // a run has begun; what it wrote may have no record
	valid, torn, err := readRecords(f, magic, func(rec *record, end int64) error {
		ended = ended || rec.Type == recordEnd
		return r.apply(rec, end)
	})
	if err != nil {
		return 0, fmt.Errorf("read index %s: %w", filepath.Base(name), err)
	}
	if !ended {
		r.torn = true
		r.d.log.Warn("index snapshot is damaged: what it does not tell is dropped", slog.String("file", name))
		return valid, nil
	}
	if torn {
		r.torn, r.clean = true, false
		r.d.log.Info("index has a torn tail: it is cut", slog.String("file", name), slog.Int64("at", valid))
	}
	if magic == segmentMagic { // gives back room that was never written, too
		if err := f.Truncate(valid); err != nil {
			return 0, fmt.Errorf("cut index %s: %w", filepath.Base(name), err)
		}
		fi, err := f.Stat()
		if err != nil {
			return 0, err
		}
		r.d.chargeIndex(name, roundUp(vfs.Allocated(fi), r.d.block))
	}
	return valid, nil
}

// expect makes room for the parts of a snapshot, so that the maps need not
// grow again and again.
func (r *recovery) expect(snapshot vfs.File) error {
	fi, err := snapshot.Stat()
	if err != nil {
		return err
	}
	const perFile = 192 // of one page, with a path of some 50 bytes
	n := int(fi.Size() / perFile)
	r.parts = make(map[uint64]*part, n)
	for i := range r.d.store.shards {
		if sh := &r.d.store.shards[i]; len(sh.parts) == 0 {
			sh.parts = make(map[block.FileID]*part, n/shardCount)
		}
	}
	return nil
}

// apply brings one record into memory. Records may come twice: in a snapshot
// and in the segment that was written meanwhile.
func (r *recovery) apply(rec *record, end int64) error {
	r.clean = false
	switch rec.Type {
	case recordPart:
		return r.applyPart(rec)
	case recordPages:
		p := r.part(rec.Serial)
		if p == nil {
			return nil // dropped before
		}
		if rec.Kind != p.kind() || rec.Generation != 0 {
			return errUnknownKind(rec)
		}
		r.applyPages(p, rec, end)
	case recordDropPages:
		if p := r.part(rec.Serial); p != nil {
			first, end := r.pagesOf(p, rec)
			r.dropPages(p, first, end)
		}
	case recordDropPart:
		if p := r.part(rec.Serial); p != nil {
			r.dropPart(p)
		}
	case recordCheckpoint:
		r.clean = rec.Flags&flagClean != 0
		done := logPosition{rec.Segment, int64(min(rec.Offset, math.MaxInt64))}
		r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool {
			return cmp.Or(cmp.Compare(s.at.segment, done.segment), cmp.Compare(s.at.offset, done.offset)) <= 0
		})
	}
	return nil
}

// part returns the part of a serial; nil if it was dropped.
func (r *recovery) part(serial uint64) *part {
	if r.last == nil || r.last.serial != serial || r.last.has(partDead) {
		r.last = r.parts[serial]
	}
	return r.last
}

func errUnknownKind(rec *record) error {
	return errs.E(errs.Invalid, "", "", fmt.Errorf(
		"it holds files of kind %d, shard %d, generation %d, which this release cannot keep", rec.Kind, rec.Shard, rec.Generation))
}

func (r *recovery) applyPart(rec *record) error {
	if rec.Kind != kindCached && rec.Kind != kindReplica || rec.Shard != 0 {
		return errUnknownKind(rec)
	}
	d := r.d
	if r.part(rec.Serial) != nil {
		return nil
	}
	r.text = append(append(r.text[:0], rec.Path...), rec.Tag...)
	text := string(r.text)
	p := d.store.newPart(File{
		ID: rec.File, MountID: rec.MountID, Length: rec.Length, BlockSize: rec.BlockSize,
		Replica: rec.Kind == kindReplica,
		Path:    text, // the tag is set below: one string for both
	})
	p.tagLen = uint16(len(rec.Tag))
	p.serial, p.dirIndex = rec.Serial, d.num
	p.flags |= partCreated | partLogged
	sh := d.store.shardOf(p.id)
	switch old := sh.parts[p.id]; {
	case old == nil:
		sh.parts[p.id] = p
	case old.dirIndex == d.num:
		r.dropPart(old) // its drop record is lost
		sh.parts[p.id] = p
	default:
		if old = r.twins[p.id]; old != nil {
			r.dropPart(old)
		}
		r.twins[p.id] = p
	}
	r.parts[p.serial], r.last = p, p
	if d.store.serial.Load() < p.serial {
		d.store.serial.Store(p.serial)
	}
	return nil
}

// find returns this directory's part of a file.
func (r *recovery) find(id block.FileID) *part {
	if p := r.twins[id]; p != nil {
		return p
	}
	if p := r.d.store.shardOf(id).parts[id]; p != nil && p.dirIndex == r.d.num {
		return p
	}
	return nil
}

// pagesOf returns the pages [first, end) of the file that rec tells of, cut
// to those that exist.
func (r *recovery) pagesOf(p *part, rec *record) (first, end int64) {
	g := p.geometry()
	first = int64(rec.Block)*int64(p.blockPages) + int64(rec.First)
	blockEnd := (int64(rec.Block) + 1) * int64(p.blockPages)
	return first, min(first+int64(rec.Count), blockEnd, g.Pages())
}

func (r *recovery) applyPages(p *part, rec *record, at int64) {
	d := r.d
	first, end := r.pagesOf(p, rec)
	if end-first != int64(rec.Count) || int64(rec.BlockLength) != p.geometry().Block(int64(rec.Block)).Length {
		d.log.Warn("index record does not fit its file: the file is dropped", slog.String("file", p.id.String()))
		r.dropPart(p)
		return
	}
	u := p.makeUnit(first)
	for i, crc := range rec.CRCs {
		u.setPage(first+int64(i), crc, false)
	}
	u.state.Or(unitCharged)
	if rec.Flags&flagVisited != 0 {
		u.state.Or(unitVisited)
	}
	d.orderOf(p).add(u)
	if r.rebooted && r.segment > 0 {
		r.suspects = append(r.suspects, suspect{logPosition{r.segment, at}, p.serial, first, int64(rec.Count)})
	}
}

func (r *recovery) dropPages(p *part, first, end int64) {
	if first >= end {
		return
	}
	u := p.unitOf(first)
	if u == nil {
		return
	}
	for page := first; page < end; page++ {
		if u.hasPage(page) {
			u.clearPage(page)
		}
	}
	if u.count() == 0 {
		r.d.orderOf(p).remove(u)
		u.clearAll()
		if p.has(partByBlock) {
			delete(p.set.blocks, u.word)
		}
	}
}

func (r *recovery) dropPart(p *part) {
	p.all(r.d.orderOf(p).remove)
	p.flags |= partDead
	delete(r.parts, p.serial)
	sh := r.d.store.shardOf(p.id)
	if sh.parts[p.id] == p {
		delete(sh.parts, p.id)
	}
	if r.twins[p.id] == p {
		delete(r.twins, p.id)
	}
}

// lose drops a part that the index has and the disk has not, and records it.
func (r *recovery) lose(p *part) error {
	r.dropped++
	if err := r.d.logDropPart(p); err != nil {
		return err
	}
	r.dropPart(p)
	return nil
}

// settle checks the pages that may not be on the disk and charges all parts.
func (r *recovery) settle() error {
	if err := r.checkSuspects(); err != nil {
		return err
	}
	d := r.d
	for _, p := range r.parts {
		whole := !p.empty()
		if whole && r.odd[p] {
			var err error
			if whole, err = r.punchUnknown(p); err != nil {
				return err
			}
		}
		if !whole {
			if err := r.giveUp(p); err != nil {
				return err
			}
			continue
		}
		d.ledger.add(d.partCharge(p), 0)
		if p.isReplica() {
			d.replicas.charge(d.replicaCharge(p))
		}
		p.flags &^= partSeen
	}
	return nil
}

// checkSuspects reads the pages that were recorded behind the last checkpoint
// of a run that ended with the machine's, and drops those that are not what
// was recorded.
func (r *recovery) checkSuspects() error {
	d := r.d
	page := make([]byte, block.PageSize)
	for _, s := range r.suspects {
		p := r.parts[s.serial]
		if p == nil {
			continue
		}
		g := p.geometry()
		u := p.unitOf(s.first)
		for i := s.first; i < s.first+s.count && u != nil; i++ {
			if !u.hasPage(i) || u.isVerified(i) {
				continue
			}
			f, err := d.openPart(p)
			if err != nil {
				return err
			}
			e := g.Page(i)
			n, _ := f.ReadAt(page[:e.Length], e.Offset)
			if int64(n) == e.Length && block.Checksum(page[:n]) == u.crcOf(i) {
				u.setVerified(i, true)
				r.verified++
				continue
			}
			r.dropped++
			r.odd[p] = true // the room may be another page's, which has no record
			if err := d.logDropPages(u, i, i+1); err != nil {
				return err
			}
			r.dropPages(p, i, i+1)
			// It is not punched: a peer may not have received it yet from
			// the run before.
			d.spoil(p.makeUnit(i), i)
		}
	}
	return nil
}

// giveUp drops a part whose file is there.
func (r *recovery) giveUp(p *part) error {
	d := r.d
	d.letGo(p)
	d.ledger.free(0, 1)
	if err := r.lose(p); err != nil {
		return err
	}
	if err := r.hold(d.partName(p.id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // somebody removed it
}

// punchUnknown gives the room of pages back that were written but not
// recorded, if the file takes more than its recorded pages do. Where somebody
// has the file open, that room stays charged until the next start. It reports
// false for a file that is not what the index says and cannot be made so.
func (r *recovery) punchUnknown(p *part) (ok bool, err error) {
	d := r.d
	fi, err := d.fs.Stat(d.partName(p.id))
	if err != nil {
		return false, err
	}
	excess := max(0, vfs.Allocated(fi)-d.partCharge(p))
	if excess == 0 && fi.Size() == p.length {
		return true, nil
	}
	f, err := d.openPart(p)
	if err != nil {
		return false, err
	}
	if err := d.prove(f); err != nil {
		if fi.Size() != p.length {
			return false, nil
		}
		d.addUnknown(excess)
		return true, nil
	}
	defer d.unprove(f)
	if fi.Size() != p.length {
		if err := f.Truncate(p.length); err != nil {
			return false, err
		}
	}
	for _, e := range p.missingRuns(0, p.geometry().Pages()) {
		if err := f.PunchHole(e.Offset, roundUp(e.Length, d.block)); err != nil {
			d.ioError("punch unrecorded pages", err)
			d.addUnknown(excess)
			return true, nil
		}
	}
	return true, nil
}

// begin makes this run's segment durable before the run keeps anything: should
// the machine stop, the next start must not take the clean end of an earlier
// run for the end of this one.
func (r *recovery) begin() error {
	index := &r.d.index
	if err := index.start(); err != nil {
		return err
	}
	if err := index.sync(); err != nil {
		return err
	}
	return r.d.fs.SyncDir(index.dir)
}

// openLog starts this run's segment. On a full disk it gives up victims until
// there is room for it.
func (r *recovery) openLog() error {
	d := r.d
	for {
		err := d.rotate()
		if err == nil {
			return r.begin()
		}
		if !isNoSpace(err) {
			return err
		}
		if done, found := d.evictNext(0); !found || !done {
			return errs.E(errs.NoSpace, "", "", err)
		}
	}
}
