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
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

const (
	shardCount    = 64
	checkInterval = time.Second
	checkBytes    = 64 << 20
)

// Store is the block store of one worker. All methods are safe for concurrent
// use.
type Store struct {
	opts Options
	log  *slog.Logger
	dirs []*dir // fastest medium first

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
}

// Open locks the directories, recovers what they hold and returns a store. It
// starts nothing; Run does the upkeep. reg may be nil. The directories of one
// medium form a tier; the order of cfgs means nothing else.
//
// Errors name the directory. Busy if another process has it, Invalid if it
// belongs to another cluster or a newer release or is no cache directory, or
// if it cannot be used beside another one.
func Open(cfgs []Config, opts Options, log *slog.Logger, reg prometheus.Registerer) (_ *Store, err error) {
	if err := ValidateAll(cfgs); err != nil {
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
	s := &Store{
		opts: opts, log: log, paths: newPathIndex(), kick: make(chan struct{}, 1),
		scratch: sync.Pool{New: func() any { b := make([]byte, block.PageSize); return &b }},
		frames:  sync.Pool{New: func() any { return new([]byte) }},
	}
	for i := range s.shards {
		s.shards[i].parts = map[block.FileID]*part{}
	}
	if err := s.openDirs(cfgs); err != nil {
		return nil, err
	}
	s.opts.OnChange = onChange
	if s.unregister, err = register(s, reg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openDirs opens the directories, fastest medium first, and then recovers
// them.
func (s *Store) openDirs(cfgs []Config) (err error) {
	cfgs = slices.Clone(cfgs)
	slices.SortStableFunc(cfgs, func(a, b Config) int { return cmp.Compare(a.Medium.rank(), b.Medium.rank()) })
	defer func() {
		if err == nil {
			return
		}
		for _, d := range s.dirs {
			d.closeIdle()
			err = errors.Join(err, d.index.close(), d.lock.Close())
		}
	}()
	s.byBlock = true
	for _, cfg := range cfgs {
		d, err := openDir(cfg, uint8(len(s.dirs)), s)
		var named *errs.Error
		if err != nil && !errors.As(err, &named) {
			err = errs.Wrap(err, "open cache directory", cfg.Dir)
		}
		if err != nil {
			return err
		}
		s.dirs = append(s.dirs, d)
		s.byBlock = s.byBlock && d.canPunch
	}
	if err := s.BindCluster(s.opts.ClusterID); err != nil {
		return err
	}
	var found []*recovery
	for _, d := range s.dirs {
		r, err := d.recover()
		if err != nil {
			return errs.Wrap(err, "recover cache directory", d.root)
		}
		found = append(found, r)
	}
	return s.adopt(found)
}

// Run keeps the store: a checkpoint each second or 64 MiB, compaction of the
// index, removal of held files. It returns when ctx ends, after a last
// checkpoint.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.upkeep()
			return nil
		case <-tick.C:
		case <-s.kick:
		}
		s.upkeep()
	}
}

// upkeep does one round. What fails is counted and logged there: the next
// round tries again.
func (s *Store) upkeep() {
	for _, d := range s.dirs {
		if err := d.checkpoint(0); err != nil {
			d.ioError("checkpoint", err)
		} else {
			d.warned.Store(false)
		}
		if err := d.compact(false); err != nil {
			d.ioError("compact index", err)
		}
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
	for _, d := range s.dirs {
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
		pathLen:    uint32(len(f.Path)),
		blockPages: uint16(f.BlockSize / block.PageSize),
		dirIndex:   noDir,
	}
	p.unit.part = p
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
	return s.dirs[p.dirIndex]
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
// until they are closed. It returns what was dropped.
func (s *Store) Drop(mountID uint64, path string) (files int, bytes int64, err error) {
	if s.closed.Load() {
		return 0, 0, errClosed("drop", path)
	}
	for _, p := range s.paths.below(mountID, path) {
		d := s.dirOf(p)
		switch n := d.detach(p, false); {
		case n > 0:
			files++
			bytes += n - 1
		case d.index.failure() != nil:
			return files, bytes, errs.Wrap(d.index.failure(), "drop", path)
		}
	}
	return files, bytes, nil
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
// path and below it, and how many of their bytes.
func (s *Store) Usage(mountID uint64, path string) (files int, bytes int64) {
	for _, p := range s.paths.below(mountID, path) {
		p.mu.Lock()
		if !p.has(partDead) {
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
	all := make([]DirStatus, 0, len(s.dirs))
	for _, d := range s.dirs {
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
		CachedBytes:    s.cachedBytes.Load(),
		CachedFiles:    s.cachedFiles.Load(),
	}
	for _, d := range s.dirs {
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
	for _, d := range s.dirs {
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
