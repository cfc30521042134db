package tier

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"millrace/internal/wait"
)

// maxProbePause is how many times Config.ProbeInterval the pause between two
// looks at a failed directory grows to, and how long one must serve for its
// next failure to count as the first.
const maxProbePause = 32

// tend keeps the i-th directory: it has its pages scrubbed while it serves,
// takes it out of service when it fails, and brings it back when it can be
// used again. It returns when ctx ends.
func (s *Store) tend(ctx context.Context, i int) {
	var failures int // in a row
	var told string  // why it did not come back
	for {
		d := s.current()[i]
		if d.failure() == nil {
			began := time.Now()
			d.serve(ctx)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > maxProbePause*d.cfg.ProbeInterval.Std() {
				failures = 0
			}
			told = d.failure().Error()
		}
		s.takeOut(d)
		pause := d.cfg.ProbeInterval.Std() * time.Duration(min(1<<min(failures, 16), maxProbePause))
		failures++
		if wait.For(ctx, pause) != nil {
			return
		}
		if err := s.bringBack(i); err != nil && err.Error() != told {
			told = err.Error()
			d.log.Warn("cache directory cannot be used yet", slog.Any("reason", err))
		}
	}
}

// serve runs what goes on beside reads and fills until the directory fails or
// ctx ends: its policy, where that has a life of its own, and the scrubber.
func (d *dir) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var policy sync.WaitGroup
	if p, ok := d.queue.(runner); ok {
		policy.Go(func() { p.run(ctx) })
	}
	d.scrub(ctx)
	cancel()
	policy.Wait()
}

// bringBack opens a failed directory anew, as at the start, and adopts what it
// has: each page is compared with its checksum before it is served. A file
// that was kept elsewhere meanwhile stays there.
func (s *Store) bringBack(i int) error {
	old := s.current()[i]
	if err := old.mayReturn(); err != nil {
		return err
	}
	num, ok := s.takeNumber()
	if !ok {
		return old.unusable(errors.New("cache directories failed too often in this run")).WithHint("restart the worker")
	}
	d, err := s.openAgain(old, num)
	if err != nil {
		s.giveNumber(num)
		return err
	}
	s.dirsMu.Lock()
	s.dirs[i] = d
	if !s.anyFailed() {
		s.missed = missedDrops{}
	}
	s.dirsMu.Unlock()
	d.shrink()
	d.log.Info("cache directory is in service again")
	return nil
}

// openAgain opens what lies at the path of a failed directory, under a number
// of its own: who still has parts of the failed one has that one's.
func (s *Store) openAgain(old *dir, num uint8) (*dir, error) {
	// What is found comes into a store of its own first, so that nobody meets
	// a directory that is half recovered.
	cluster := *s.cluster.Load()
	nursery := newStore(s.opts, s.log)
	nursery.byBlock, nursery.opts.OnChange, nursery.opts.ClusterID = s.byBlock, nil, cluster
	d := newDir(old.cfg, num, nursery)
	d.slow = old.slow
	if err := d.open(); err != nil {
		return nil, err
	}
	r, err := s.recoverAgain(d, cluster)
	if err != nil {
		d.closeIdle()
		return nil, errors.Join(err, d.index.close(), d.lock.Close())
	}
	d.store = s
	d.ioErrors.Store(old.ioErrors.Load())
	s.raiseSerial(nursery.serial.Load())
	s.byNumber[num] = d
	s.adoptLate(d, r)
	return d, nil
}

// takeNumber returns a number that no directory ever had in this run.
func (s *Store) takeNumber() (num uint8, ok bool) {
	s.dirsMu.Lock()
	defer s.dirsMu.Unlock()
	i := slices.Index(s.numbers[:], false)
	if i < 0 {
		return 0, false
	}
	s.numbers[i] = true
	return uint8(i), true
}

// giveNumber gives back a number that no part ever had.
func (s *Store) giveNumber(num uint8) {
	s.dirsMu.Lock()
	defer s.dirsMu.Unlock()
	s.numbers[num] = false
}

func (s *Store) raiseSerial(to uint64) {
	for {
		have := s.serial.Load()
		if have >= to || s.serial.CompareAndSwap(have, to) {
			return
		}
	}
}

// recoverAgain recovers a directory that failed, and has it write to its disk.
func (s *Store) recoverAgain(d *dir, cluster string) (*recovery, error) {
	if s.byBlock && !d.canPunch {
		return nil, d.unusable(errors.New("its file system cannot punch holes any more")).WithHint("restart the worker")
	}
	have, err := d.format(cluster)
	if err == nil && have != cluster {
		err = d.writeFormat(cluster)
	}
	if err != nil {
		return nil, err
	}
	r, err := d.recover()
	if err != nil {
		return nil, err
	}
	return r, d.lock.SyncFS()
}

// mayReturn refuses what lies at the path of a failed directory if that is
// not the directory, nor its empty file system: to fill the disk below the
// mount point of one that is gone is worse than not to cache.
func (d *dir) mayReturn() error {
	if d.device == 0 {
		return nil // it was never open, so that this is its start
	}
	fi, err := d.fs.Stat(d.root + "/.") // follows a link
	if err != nil {
		return d.unusable(err)
	}
	_, err = d.fs.Stat(filepath.Join(d.root, formatFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if n, ok := fileNumbers(fi); ok && n.device != d.device {
		return d.unusable(errors.New("it is empty and on another file system than before")).
			WithHint("mount its file system, or restart the worker to use this one")
	}
	return nil
}

// adoptLate takes the parts of a directory that comes back into the store.
func (s *Store) adoptLate(d *dir, r *recovery) {
	for _, p := range r.parts {
		p.mu.Lock()
		adopted, changed := s.adoptPart(p), p.changedBlocks()
		p.mu.Unlock()
		if !adopted {
			d.detach(p, false)
			continue
		}
		s.notify(p.id, changed)
	}
}

// adoptPart is false if the store has another part of the file, or was told
// to drop it meanwhile. p.mu is held.
func (s *Store) adoptPart(p *part) bool {
	if p.has(partDead) { // evicted already for one that came before
		return true
	}
	// A drop comes before, and is known, or after, and finds the part.
	s.dirsMu.RLock()
	defer s.dirsMu.RUnlock()
	if s.missed.has(p) {
		return false
	}
	sh := s.shardOf(p.id)
	sh.mu.Lock()
	taken := sh.parts[p.id] != nil
	if !taken {
		sh.parts[p.id] = p
	}
	sh.mu.Unlock()
	if taken {
		return false
	}
	p.flags |= partIndexed
	s.cachedBytes.Add(p.cachedBytes())
	s.cachedFiles.Add(1)
	s.supersede(s.paths.adopt(p))
	return true
}

// missedDrops is what was dropped while a directory was out of service. Past
// maxMissed, nothing that such a directory had is taken back.
type missedDrops struct {
	list []drop
	all  bool
}

// drop is a path of a mount with all below it.
type drop struct {
	mountID uint64
	path    string
}

const maxMissed = 1000

// anyFailed reports whether a directory is out of service. dirsMu is held.
func (s *Store) anyFailed() bool {
	return slices.ContainsFunc(s.dirs, func(d *dir) bool { return d.failure() != nil })
}

// noteDrop remembers a drop if there is a directory that misses it.
func (s *Store) noteDrop(d drop) {
	s.dirsMu.Lock()
	defer s.dirsMu.Unlock()
	switch {
	case !s.anyFailed():
	case slices.Contains(s.missed.list, d):
	case len(s.missed.list) == maxMissed:
		s.missed.all = true
	default:
		s.missed.list = append(s.missed.list, d)
	}
}

func (m *missedDrops) has(p *part) bool {
	return m.all || slices.ContainsFunc(m.list, func(d drop) bool {
		return p.mountID == d.mountID && isBelow(p.path(), d.path)
	})
}

// supersede puts older versions of files in line before all other victims.
func (s *Store) supersede(parts []*part) {
	for _, p := range parts {
		s.dirOf(p).supersede(p)
	}
}

// current returns the directories in the order of their tiers, each as it is
// in service or was last.
func (s *Store) current() []*dir {
	s.dirsMu.RLock()
	defer s.dirsMu.RUnlock()
	return slices.Clone(s.dirs)
}
