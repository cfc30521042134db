package tier

import (
	"context"
	"errors"
	"iter"
	"log/slog"
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
	dirs []*dir // one, until there are tiers

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

// Open locks the directory, recovers what it holds and returns a store. It
// starts nothing; Run does the upkeep. reg may be nil.
//
// Errors: Busy if another process has the directory, Invalid if it belongs to
// another cluster or a newer release or is no cache directory.
func Open(cfg Config, opts Options, log *slog.Logger, reg prometheus.Registerer) (_ *Store, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, errs.E(errs.Invalid, "open cache directory", cfg.Dir, err)
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
	d, err := openDir(cfg, opts, s, log)
	if err != nil {
		return nil, err
	}
	s.dirs = []*dir{d}
	if err := d.recover(); err != nil {
		d.closeIdle()
		return nil, errors.Join(errs.Wrap(err, "recover cache directory", cfg.Dir), d.index.close(), d.lock.Close())
	}
	s.opts.OnChange = onChange
	if s.unregister, err = register(s, reg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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

func (s *Store) newPart(f File) *part {
	d := s.dirs[0]
	p := &part{
		id: f.ID, mountID: f.MountID, text: f.Path + f.Tag, length: f.Length,
		serial:     d.serial.Add(1),
		pathLen:    uint32(len(f.Path)),
		blockPages: uint16(f.BlockSize / block.PageSize),
		dirIndex:   d.num,
	}
	p.unit.part = p
	if f.Length > wholeLimit && d.canPunch {
		p.flags |= partByBlock
		p.set = &pageSet{blocks: map[uint32]*unit{}}
	}
	return p
}

func (s *Store) dirOf(p *part) *dir { return s.dirs[p.dirIndex] }

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

// BindCluster binds directories that belong to no cluster yet to this one.
// It is an error of kind Invalid if one belongs to another.
func (s *Store) BindCluster(clusterID string) error {
	for _, d := range s.dirs {
		if err := d.checkFormat(clusterID); err != nil {
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
