package tier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// MoveConfig bounds the moves of files between tiers.
type MoveConfig struct {
	// Movers is how many files are moved between tiers at once; 1 to 64. Each
	// mover reads and writes as fast as the disks allow, so a few are enough.
	Movers int `toml:"movers"`
	// MoveQueue is how many files may wait to be moved into a faster tier; 1
	// to 1,000,000. What comes when it is full stays where it is.
	MoveQueue int `toml:"move_queue"`
	// PromoteHits is how often a cached file must be read from its start
	// within PromoteWindow to be moved into a faster tier; 1 to 255. Lower
	// moves files that are read only this once, higher moves them too late.
	PromoteHits int `toml:"promote_hits"`
	// PromoteWindow is the time within which the readings count; 1s to 24h.
	PromoteWindow size.Duration `toml:"promote_window"`
}

// DefaultMoves returns the defaults: two movers, so that one reads while the
// other writes, 1,024 files in the queue, and three readings in ten minutes.
func DefaultMoves() MoveConfig {
	return MoveConfig{Movers: 2, MoveQueue: 1024, PromoteHits: 3, PromoteWindow: size.Duration(10 * time.Minute)}
}

// Validate reports every field that is out of range.
func (c MoveConfig) Validate() error {
	var problems []error
	check := func(name string, n, most int) {
		if n < 1 || n > most {
			problems = append(problems, fmt.Errorf("%s: %d is out of range [1, %d]", name, n, most))
		}
	}
	check("movers", c.Movers, 64)
	check("move_queue", c.MoveQueue, 1_000_000)
	check("promote_hits", c.PromoteHits, maxHits)
	if w := time.Duration(c.PromoteWindow); w < time.Second || w > 24*time.Hour {
		problems = append(problems, fmt.Errorf("promote_window: %v is out of range [1s, 24h]", w))
	}
	return errors.Join(problems...)
}

// moveQueue collects the parts that were read often enough for a faster tier.
type moveQueue struct {
	cfg     MoveConfig
	parts   chan *part
	dropped *atomic.Int64
	window  atomic.Uint32 // number of the present window of time
}

func (q *moveQueue) init(cfg MoveConfig, dropped *atomic.Int64) {
	q.cfg, q.dropped = cfg, dropped
	q.parts = make(chan *part, cfg.MoveQueue)
}

// turn says how long the store runs.
func (q *moveQueue) turn(running time.Duration) {
	q.window.Store(uint32(running / time.Duration(q.cfg.PromoteWindow)))
}

// hit counts n readings of a part and queues it when they are enough. It
// never waits. p.mu is held.
func (q *moveQueue) hit(p *part, n uint32) {
	enough := uint32(q.cfg.PromoteHits)
	before, now := p.hit(n, uint8(q.window.Load()))
	if before >= enough || now < enough {
		return
	}
	select {
	case q.parts <- p:
	default:
		q.dropped.Add(1)
	}
}

// runMover moves what is queued, one part after the other.
func (s *Store) runMover(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-s.moves.parts:
			s.promote(ctx, p)
		}
	}
}

// promote moves a part into a faster tier, if one may take it.
func (s *Store) promote(ctx context.Context, p *part) {
	p.mu.Lock()
	from := s.dirOf(p)
	p.mu.Unlock()
	for _, to := range s.faster(from, p.length) {
		n, err := s.move(ctx, p, to, s.roomByMoving(ctx, to))
		if err == nil {
			s.stats.promotedFiles.Add(1)
			s.stats.promotedBytes.Add(n)
			return
		}
		if !errors.Is(err, errs.NoSpace) {
			return // what failed of the disk is counted where it failed
		}
	}
}

// demote moves a victim into a slower tier that has room for it. Blocks of
// large files are not worth the move of all others.
func (s *Store) demote(ctx context.Context, p *part) bool {
	p.mu.Lock()
	from, byBlock := s.dirOf(p), p.has(partByBlock)
	p.mu.Unlock()
	if byBlock {
		return false
	}
	for _, to := range s.slower(from, p.length) {
		if n, err := s.move(ctx, p, to, to.takeFree); err == nil {
			s.stats.demotedFiles.Add(1)
			s.stats.demotedBytes.Add(n)
			return true
		}
	}
	return false
}

// roomByMoving is d.makeRoom for movers, which have the time to move victims
// down where there is room for them.
func (s *Store) roomByMoving(ctx context.Context, d *dir) func(bytes, inodes int64) error {
	return func(bytes, inodes int64) error {
		for tried := range maxRefused {
			if err := d.takeFree(bytes, inodes); err == nil || !errors.Is(err, errs.NoSpace) {
				return err
			}
			if d.giveUpSuperseded() {
				continue
			}
			u := d.victim(tried)
			if u == nil {
				break
			}
			if !s.demote(ctx, u.part) {
				d.evict(u)
			}
		}
		return d.makeRoom(bytes, inodes)
	}
}

// giveUpSuperseded gives up one older version, if there is any that can be.
func (d *dir) giveUpSuperseded() bool {
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	done, found := d.evictSuperseded()
	return found && done
}

// errMove is why a part was not moved, where nothing is wrong.
var errMove = errors.New("the file is in use, or gone")

// moveRounds bounds how often a move looks for pages that were filled while it
// copied the others.
const moveRounds = 8

// movePages is how many pages are reserved at once.
const movePages = 64

// move is one part on its way into another directory: both parts are pinned,
// the copy is not found by anybody.
type move struct {
	s        *Store
	from, to *dir
	old, new *Handle
	room     func(bytes, inodes int64) error // charges to
	buf      []byte
}

// move copies a part into another directory and makes the copy the one that
// is found; the old one goes, or is held until all who have it are done. room
// charges the directory. It returns the bytes moved. An error leaves the part
// as it was.
func (s *Store) move(ctx context.Context, p *part, to *dir, room func(bytes, inodes int64) error) (bytes int64, err error) {
	if !to.startCopy(p.id) {
		return 0, errMove
	}
	defer to.endCopy(p.id)
	old, err := s.beginMove(p)
	if err != nil {
		return 0, err
	}
	m := &move{s: s, from: s.dirOf(p), to: to, old: old, new: s.copyOf(p, to), room: room, buf: make([]byte, block.PageSize)}
	defer m.old.Release()
	defer m.new.Release()
	for range moveRounds {
		if err = m.copyPages(ctx); err != nil {
			break
		}
		var moved bool
		if moved, err = m.finish(); err != nil {
			break
		}
		if moved {
			for _, b := range m.new.p.blockStates(nil) {
				bytes += b.CachedBytes
				s.notifyOne(p.id, b.Index)
			}
			return bytes, nil
		}
		err = errMove // fills go on and on
	}
	m.giveUp()
	return 0, err
}

// beginMove pins a part that may be moved.
func (s *Store) beginMove(p *part) (*Handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := s.dirOf(p)
	if d == nil || p.isReplica() || p.has(partDead|partMoving|partCopy) || p.state.Load()&unitSuperseded != 0 || p.empty() {
		return nil, errMove
	}
	// Whoever has the file open keeps the old one, and its room: there is
	// nothing to win before they are done.
	h := &Handle{s: s, p: p, end: p.geometry().Pages()}
	f, err := h.open()
	if err != nil {
		return nil, d.wrap("move", p, err)
	}
	if err := d.prove(f); err != nil {
		f.refs--
		return nil, errMove
	}
	d.unprove(f)
	p.pin(h.first, h.end)
	p.flags |= partMoving
	return h, nil
}

// startCopy takes the name of a file's backing file for a mover, until
// endCopy: a part of the same file that is made meanwhile, since the old one
// was dropped, must not meet the copy.
func (d *dir) startCopy(id block.FileID) bool {
	d.heldMu.Lock()
	defer d.heldMu.Unlock()
	_, busy := d.copies[id]
	if !busy {
		d.copies[id] = nil
	}
	return !busy
}

func (d *dir) endCopy(id block.FileID) {
	d.heldMu.Lock()
	delete(d.copies, id)
	d.heldMu.Unlock()
}

func (d *dir) isCopied(id block.FileID) bool {
	d.heldMu.Lock()
	defer d.heldMu.Unlock()
	_, busy := d.copies[id]
	return busy
}

// copyParts returns the copies that are under way.
func (d *dir) copyParts() []*part {
	d.heldMu.Lock()
	defer d.heldMu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Values(d.copies)), func(p *part) bool { return p == nil })
}

// copyOf makes the part that a copy of p goes into, pinned. Its directory
// finds it, should it fail.
func (s *Store) copyOf(p *part, to *dir) *Handle {
	q := &part{
		id: p.id, mountID: p.mountID, text: p.text, length: p.length,
		tagLen: p.tagLen, blockPages: p.blockPages, dirIndex: to.num,
	}
	q.unit.part = q
	p.mu.Lock()
	q.flags = partCopy | p.flags&partByBlock
	p.mu.Unlock()
	if q.has(partByBlock) {
		q.set = &pageSet{blocks: map[uint32]*unit{}}
	}
	h := &Handle{s: s, p: q, end: q.geometry().Pages()}
	q.pin(h.first, h.end)
	to.heldMu.Lock()
	to.copies[p.id] = q
	to.heldMu.Unlock()
	return h
}

// copyPages copies what the old part has and the new one has not.
func (m *move) copyPages(ctx context.Context) error {
	for first := int64(0); first < m.old.end; {
		end := first
		for end < m.old.end && end < first+movePages && m.old.Has(end) && !m.new.Has(end) {
			end++
		}
		if end == first {
			first++
			continue
		}
		r := &Reservation{s: m.s, p: m.new.p, first: first, end: end}
		r.pin()
		err := r.chargeTo(m.to, m.room)
		for page := first; page < end && err == nil; page++ {
			if err = ctx.Err(); err == nil {
				err = m.copyPage(r, page)
			}
		}
		r.Release()
		if err != nil {
			return err
		}
		first = end
	}
	return nil
}

// copyPage copies a page after it was compared with its checksum. One that
// differs is dropped, and the copy goes on without it.
func (m *move) copyPage(r *Reservation, page int64) error {
	e := m.old.p.geometry().Page(page)
	want, ok := m.old.PageCRC(page)
	if !ok {
		return nil
	}
	data := m.buf[:e.Length]
	switch _, err := m.old.ReadAt(data, e.Offset); {
	case errors.Is(err, errs.Corrupt), errors.Is(err, errs.NotCached):
		return nil // dropped meanwhile
	case err != nil:
		return err
	}
	if got := block.Checksum(data); got != want {
		_ = m.old.corrupt(page, fmt.Errorf("page %d has checksum %08x, expected %08x", page, got, want))
		return nil
	}
	_, err := r.write(page, data, want)
	return err
}

// finish makes the copy the file's part, unless pages came or are about to
// come that it has not.
func (m *move) finish() (done bool, err error) {
	s, p, q := m.s, m.old.p, m.new.p
	m.from.gate.RLock()
	defer m.from.gate.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	q.mu.Lock() // after p's: nobody else takes both
	defer q.mu.Unlock()
	switch {
	case p.has(partDead) || p.empty() || q.has(partDead):
		return false, errMove
	case p.state.Load()&unitSuperseded != 0:
		// The copy may have a higher serial than the newer version, and would
		// pass for the current one after a restart.
		return false, errMove
	case p.fills > 0 || !q.covers(p):
		return false, nil
	}
	if err := m.to.failure(); err != nil {
		return false, err
	}
	if err := m.from.logDropPart(p); err != nil {
		return false, m.from.wrap("move", p, err)
	}
	p.flags &^= partLogged
	sh := s.shardOf(p.id)
	sh.mu.Lock()
	sh.parts[p.id] = q
	sh.mu.Unlock()
	if s.paths.replace(p, q) {
		m.to.supersede(q)
	}
	s.cachedBytes.Add(q.cachedBytes() - p.cachedBytes())
	q.flags = q.flags&^partCopy | partIndexed
	p.flags &^= partIndexed
	if _, err := m.from.detachLocked(p); err != nil {
		m.from.ioError("drop what was moved", err)
	}
	return true, nil
}

// giveUp drops the copy and leaves the part as it was.
func (m *move) giveUp() {
	p, q := m.old.p, m.new.p
	p.mu.Lock()
	p.flags &^= partMoving
	p.mu.Unlock()
	m.to.gate.RLock()
	defer m.to.gate.RUnlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.has(partDead) { // lost with its directory
		return
	}
	m.to.dropCopy(q)
}

// dropCopy drops one of two parts of a file, come what may. Where the index
// cannot be told, the next start finds it without its file, or as the second
// one that it is. gate and p.mu are held.
func (d *dir) dropCopy(p *part) {
	if err := d.logDropPart(p); err != nil {
		d.ioError("record that a copy is dropped", err)
	}
	p.flags &^= partLogged
	if _, err := d.detachLocked(p); err != nil { // its file cannot be opened for its handles
		d.ioError("drop copy", err)
		d.unknown.Store(true)
	}
}

// Touch counts n readings of a cached file that the store does not see, by
// descriptors that were handed out; 255 at most count.
func (s *Store) Touch(id block.FileID, n int) {
	p := s.lookup(id)
	if p == nil || n <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := s.dirOf(p)
	if d == nil || p.has(partDead) {
		return
	}
	p.all(d.orderOf(p).touch)
	if d.slow {
		s.moves.hit(p, uint32(min(n, maxHits)))
	}
}
