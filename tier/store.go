package tier

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

const (
	shardCount    = 64
	checkInterval = time.Second
	// checkBytes bounds what a start after the machine's stop has to read and
	// compare. Less of it makes a fast fill wait for the disk more often.
	checkBytes = 256 << 20
)

// Store is the block store of one worker. All methods are safe for concurrent
// use.
type Store struct {
	opts Options
	log  *slog.Logger

	dirsMu   sync.RWMutex
	dirs     []*dir           // fastest medium first, those that failed as well; see current
	numbers  [maxNumbers]bool // that are or were a directory's
	byNumber [maxNumbers]*dir // each set before a part has its number
	cluster  atomic.Pointer[string]
	missed   missedDrops

	moves   moveQueue
	recalls recalls
	byBlock bool // files above wholeLimit are evicted by block: every directory can punch
	serial  atomic.Uint64

	shards [shardCount]shard
	paths  *pathIndex
	events [shardCount]sync.Mutex // order OnChange per file

	scratch sync.Pool // *[]byte of one page
	frames  sync.Pool // *[]byte for index records

	stats       counters
	cachedBytes atomic.Int64
	cachedFiles atomic.Int64
	closed      atomic.Bool
	kick        chan struct{} // a checkpoint is due before its time

	unregister func()
}

type shard struct {
	mu    sync.RWMutex
	parts map[block.FileID]*part
}

type counters struct {
	filledPages, filledBytes, evictedBytes, evictedFiles, checksumErrors, noSpace atomic.Int64
	scrubbedPages, scrubbedBytes, repairedPages, scrubDroppedPages                atomic.Int64
	promotedFiles, promotedBytes, demotedFiles, demotedBytes, movesDropped        atomic.Int64
}

// Open locks the directories, recovers what they hold and returns a store. It
// starts nothing; Run does the upkeep. reg may be nil. The directories of one
// medium form a tier; the order of cfgs means nothing else.
//
// Errors name the directory. Busy if another process has it, Invalid if it
// belongs to another cluster or a newer release or is no cache directory, or
// if it cannot be used beside another one.
func Open(cfgs []Config, opts Options, log *slog.Logger, reg prometheus.Registerer) (_ *Store, err error) {
	if opts.Moves == (MoveConfig{}) {
		opts.Moves = DefaultMoves()
	}
	if err := errors.Join(ValidateAll(cfgs), opts.Moves.Validate()); err != nil {
		return nil, errs.E(errs.Invalid, "open cache directories", "", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opts.FS == nil {
		opts.FS = vfs.OS()
	}
	if opts.BootID == [16]byte{} {
		opts.BootID = readBootID(opts.FS)
	}
	onChange := opts.OnChange
	opts.OnChange = nil
	s := newStore(opts, log)
	if err := s.openDirs(cfgs); err != nil {
		return nil, err
	}
	s.opts.OnChange = onChange
	if s.unregister, err = register(s, reg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newStore(opts Options, log *slog.Logger) *Store {
	s := &Store{
		opts: opts, log: log, paths: newPathIndex(), kick: make(chan struct{}, 1),
		scratch: sync.Pool{New: func() any { b := make([]byte, block.PageSize); return &b }},
		frames:  sync.Pool{New: func() any { return new([]byte) }},
	}
	for i := range s.shards {
		s.shards[i].parts = map[block.FileID]*part{}
	}
	s.cluster.Store(&opts.ClusterID)
	s.moves.init(opts.Moves, &s.stats.movesDropped)
	s.recalls.init(time.Now())
	return s
}

// openDirs opens the directories, fastest medium first, and then recovers
// them. One whose disk fails is out of service, as long as there are others.
func (s *Store) openDirs(cfgs []Config) (err error) {
	cfgs = slices.Clone(cfgs)
	slices.SortStableFunc(cfgs, func(a, b Config) int { return cmp.Compare(a.Medium.rank(), b.Medium.rank()) })
	defer func() {
		if err == nil {
			return
		}
		for _, d := range s.dirs {
			d.closeIdle()
			err = errors.Join(err, d.index.close())
			if d.lock != nil && !d.out {
				err = errors.Join(err, d.lock.Close())
			}
		}
	}()
	s.byBlock = true
	for _, cfg := range cfgs {
		num, _ := s.takeNumber() // there are more numbers than directories
		d := newDir(cfg, num, s)
		d.slow = len(s.dirs) > 0 && s.dirs[0].cfg.Medium != cfg.Medium
		s.byNumber[num] = d
		s.dirs = append(s.dirs, d)
		if err := d.open(); err != nil {
			if err := s.leaveOut(d, "open cache directory", err); err != nil {
				return err
			}
			continue
		}
		s.byBlock = s.byBlock && d.canPunch
	}
	if err := s.BindCluster(s.opts.ClusterID); err != nil {
		return err
	}
	found, err := s.recoverDirs()
	if err != nil {
		return err
	}
	s.adopt(found)
	return nil
}

// recoverDirs recovers the directories that could be opened. It is an error
// if nothing can be used.
func (s *Store) recoverDirs() (found []*recovery, err error) {
	var failures []error
	for _, d := range s.dirs {
		if d.failure() == nil {
			r, err := d.recover()
			if err == nil {
				found = append(found, r)
				continue
			}
			if err := s.leaveOut(d, "recover cache directory", err); err != nil {
				return nil, err
			}
		}
		failures = append(failures, d.failure())
	}
	switch {
	case len(found) == 0 && len(failures) == 1:
		return nil, failures[0]
	case len(found) == 0:
		return nil, errs.E(errs.Unavailable, "open cache directories", "", errors.Join(failures...))
	}
	for _, d := range s.dirs {
		if d.failure() != nil {
			s.takeOut(d)
		}
	}
	return found, nil
}

// leaveOut fails a directory that cannot be opened because of its disk. What
// the operator has to put right is returned.
func (s *Store) leaveOut(d *dir, doing string, err error) error {
	if _, named := errors.AsType[*errs.Error](err); !named {
		err = errs.Wrap(err, doing, d.root)
	}
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Busy, errs.Permission:
		return err
	default:
	}
	for _, mistake := range []error{syscall.ENOTDIR, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, mistake) {
			return err
		}
	}
	d.fail(err)
	return nil
}

// Run keeps the store: a checkpoint each second or 256 MiB, compaction of the
// index, removal of held files, moves between tiers, and the comparison of what
// is cached with its checksums. It returns when ctx ends, after a last
// checkpoint.
func (s *Store) Run(ctx context.Context) error {
	var others sync.WaitGroup
	for range s.opts.Moves.Movers {
		others.Go(func() { s.runMover(ctx) })
	}
	for i := range s.current() {
		others.Go(func() { s.tend(ctx, i) })
	}
	start := time.Now()
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			others.Wait()
			s.upkeep()
			return nil
		case <-tick.C:
			s.moves.turn(time.Since(start))
		case <-s.kick:
		}
		s.upkeep()
	}
}

// upkeep does one round. What fails is counted and logged there: the next
// round tries again.
func (s *Store) upkeep() {
	for _, d := range s.current() {
		if d.failure() != nil {
			continue
		}
		d.checkPlace()
		if err := d.checkpoint(0); err != nil {
			d.ioError("checkpoint", err)
		} else {
			d.warned.Store(false)
		}
		if err := d.compact(false); err != nil {
			d.ioError("compact index", err)
		}
		d.tidy()
		d.sweepHeld()
		d.refreshLimits()
		d.shrink()
	}
}

// Close makes the store durable and lets the directory go. Handles may still
// read, and must still be released; everything else fails with Unavailable.
// Run must have returned.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.unregister != nil {
		s.unregister()
	}
	var problems []error
	for _, d := range s.current() {
		if d.failure() != nil {
			s.takeOut(d)
			continue
		}
		problems = append(problems, d.close())
	}
	return errors.Join(problems...)
}

func (s *Store) shardOf(id block.FileID) *shard { return &s.shards[id[15]%shardCount] }

func (s *Store) lookup(id block.FileID) *part {
	sh := s.shardOf(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.parts[id]
}

// lockPart returns the part of f with its lock held; it makes one in memory
// if there is none.
func (s *Store) lockPart(f File) *part {
	for {
		p := s.lookup(f.ID)
		if p == nil {
			fresh := s.newPart(f)
			sh := s.shardOf(f.ID)
			sh.mu.Lock()
			if p = sh.parts[f.ID]; p == nil {
				p = fresh
				sh.parts[f.ID] = p
			}
			sh.mu.Unlock()
		}
		p.mu.Lock()
		if !p.has(partDead) {
			return p
		}
		p.mu.Unlock() // it left the map; look again
	}
}

// newPart makes a part that is in no directory yet.
func (s *Store) newPart(f File) *part {
	p := &part{
		id: f.ID, mountID: f.MountID, text: f.Path + f.Tag, length: f.Length,
		tagLen:     uint16(len(f.Tag)),
		blockPages: uint16(f.BlockSize / block.PageSize),
		dirIndex:   noDir,
	}
	p.unit.part = p
	if f.Replica && !f.Piecewise {
		p.state.Or(unitReplica)
	}
	if f.Length > wholeLimit && s.byBlock {
		p.flags |= partByBlock
		p.set = &pageSet{blocks: map[uint32]*unit{}}
	}
	return p
}

// dirOf returns the directory of p; nil if nothing of it was ever kept. The
// caller holds p.mu, or saw under it that p has a page.
func (s *Store) dirOf(p *part) *dir {
	if p.dirIndex == noDir {
		return nil
	}
	return s.byNumber[p.dirIndex]
}

// forget takes a dead part out of the maps. p.mu is held.
func (s *Store) forget(p *part) {
	sh := s.shardOf(p.id)
	sh.mu.Lock()
	if sh.parts[p.id] == p {
		delete(sh.parts, p.id)
	}
	sh.mu.Unlock()
	if p.has(partIndexed) {
		p.flags &^= partIndexed
		s.paths.remove(p)
		s.cachedFiles.Add(-1)
		s.cachedBytes.Add(-p.cachedBytes())
	}
}

// notify tells OnChange the states of blocks. No lock of a part is held.
func (s *Store) notify(id block.FileID, blocks []uint32) {
	if s.opts.OnChange == nil {
		return
	}
	for _, i := range blocks {
		s.notifyOne(id, i)
	}
}

func (s *Store) notifyOne(id block.FileID, i uint32) {
	if s.opts.OnChange == nil {
		return
	}
	mu := &s.events[id[15]%shardCount]
	mu.Lock()
	defer mu.Unlock()
	state := BlockState{File: id, Index: i}
	if p := s.lookup(id); p != nil {
		p.mu.Lock()
		if !p.has(partDead) {
			state = p.blockState(i)
		}
		p.mu.Unlock()
	}
	s.opts.OnChange(state)
}

// Drop gives up what is cached of a mount's path and of everything below it;
// path "" is the whole mount. Handles go on reading what they had; their
// fills are refused or lost. Files that others have open stay charged as held
// until they are closed. What a failed directory has is dropped when it comes
// back. It returns what was dropped.
func (s *Store) Drop(mountID uint64, path string) (files int, bytes int64, err error) {
	if s.closed.Load() {
		return 0, 0, errClosed("drop", path)
	}
	what := drop{mountID, path}
	s.noteDrop(what)
	for _, p := range s.paths.below(mountID, path) {
		for p != nil {
			if n := s.dirOf(p).detach(p, false); n > 0 {
				files++
				bytes += n - 1
				break
			}
			p = s.movedTo(p)
		}
	}
	s.noteDrop(what) // for a directory that failed meanwhile
	return files, bytes, nil
}

// movedTo returns the part that took the place of p, if any has.
func (s *Store) movedTo(p *part) *part {
	q := s.lookup(p.id)
	if q == nil || q == p {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dirIndex == noDir {
		return nil
	}
	return q
}

// Cached returns the blocks of a file that have cached pages, in order, and
// the sum of their cached bytes.
func (s *Store) Cached(id block.FileID) (blocks []BlockState, bytes int64) {
	p := s.lookup(id)
	if p == nil {
		return nil, 0
	}
	blocks = p.blockStates(nil)
	for _, b := range blocks {
		bytes += b.CachedBytes
	}
	return blocks, bytes
}

// Usage returns how many files of a mount are cached, in part or whole, at
// path and below it, and how many of their bytes; without replicas, which their
// owner counts.
func (s *Store) Usage(mountID uint64, path string) (files int, bytes int64) {
	for _, p := range s.paths.below(mountID, path) {
		p.mu.Lock()
		if !p.has(partDead) && !p.isReplica() {
			files++
			bytes += p.cachedBytes()
		}
		p.mu.Unlock()
	}
	return files, bytes
}

// Blocks yields every block that has cached pages, as it was at some moment
// during the walk. The store goes on meanwhile.
func (s *Store) Blocks() iter.Seq[BlockState] {
	return func(yield func(BlockState) bool) {
		var parts []*part
		var states []BlockState
		for i := range s.shards {
			sh := &s.shards[i]
			parts = parts[:0]
			sh.mu.RLock()
			for _, p := range sh.parts {
				parts = append(parts, p)
			}
			sh.mu.RUnlock()
			for _, p := range parts {
				states = p.blockStates(states[:0])
				for _, b := range states {
					if !yield(b) {
						return
					}
				}
			}
		}
	}
}

// Status returns the state of each directory.
func (s *Store) Status() []DirStatus {
	dirs := s.current()
	all := make([]DirStatus, 0, len(dirs))
	for _, d := range dirs {
		all = append(all, d.status())
	}
	return all
}

// Stats returns what the store did since it was opened.
func (s *Store) Stats() Stats {
	st := Stats{
		FilledPages:    s.stats.filledPages.Load(),
		FilledBytes:    s.stats.filledBytes.Load(),
		EvictedBytes:   s.stats.evictedBytes.Load(),
		EvictedFiles:   s.stats.evictedFiles.Load(),
		ChecksumErrors: s.stats.checksumErrors.Load(),
		NoSpace:        s.stats.noSpace.Load(),
		PromotedFiles:  s.stats.promotedFiles.Load(),
		PromotedBytes:  s.stats.promotedBytes.Load(),
		DemotedFiles:   s.stats.demotedFiles.Load(),
		DemotedBytes:   s.stats.demotedBytes.Load(),
		MovesDropped:   s.stats.movesDropped.Load(),
		ScrubbedPages:  s.stats.scrubbedPages.Load(),
		ScrubbedBytes:  s.stats.scrubbedBytes.Load(),
		RepairedPages:  s.stats.repairedPages.Load(),
		ScrubDropped:   s.stats.scrubDroppedPages.Load(),
		CachedBytes:    s.cachedBytes.Load(),
		CachedFiles:    s.cachedFiles.Load(),
	}
	for _, d := range s.current() {
		st.IOErrors += d.ioErrors.Load()
	}
	return st
}

// BindCluster binds directories that belong to no cluster yet to this one. If
// one belongs to another it binds none, and the error is of kind Invalid. An
// empty ID binds none.
func (s *Store) BindCluster(clusterID string) error {
	if clusterID == "" {
		return nil
	}
	var free []*dir
	for _, d := range s.current() {
		if d.failure() != nil {
			continue // bound when it comes back
		}
		have, err := d.format(clusterID)
		if err != nil {
			return err
		}
		if have != clusterID {
			free = append(free, d)
		}
	}
	for _, d := range free {
		if err := d.writeFormat(clusterID); err != nil {
			return err
		}
	}
	s.cluster.Store(&clusterID)
	return nil
}

func errClosed(op, path string) error {
	return errs.E(errs.Unavailable, op, path, errors.New("the cache is closed"))
}

// readBootID returns the kernel's ID of this boot; zero, which never equals
// an earlier one, if there is none.
func readBootID(fsys vfs.FS) (id [16]byte) {
	text, err := vfs.ReadFile(fsys, "/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return [16]byte{}
	}
	digits := make([]byte, 0, 32)
	for _, c := range text {
		if c != '-' && c != '\n' {
			digits = append(digits, c)
		}
	}
	parsed, err := block.ParseFileID(string(digits))
	if err != nil {
		return [16]byte{}
	}
	return parsed
}
