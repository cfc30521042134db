package fuse

import (
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"millrace/client"
)

const (
	cacheShards = 32 // a power of two
	// answerOverhead is what an answer costs beside its texts, in bytes, its
	// place in the map included.
	answerOverhead = 208
	// hotShare is how much of the cache the answers may fill that were used
	// more than once, so that a listing of a million names, and a look at each
	// of them, does not drive out what programs work with.
	hotShare = 0.8
	// maxListings bounds the directories whose whole listing is remembered.
	maxListings = 4096
)

// answer is what the masters said about a path.
type answer struct {
	entry *client.Entry // nil: nothing is there
	asked time.Time     // when the question was sent
	until time.Time     // it may be used so long without asking again; zero: not at all
}

func (a *answer) fresh(now time.Time) bool { return now.Before(a.until) }

// entryCache keeps the masters' answers by path, for the time that they are
// valid and, in case no master can be asked then, until there is no room: the
// kernel drops what it knows of names under memory pressure, and a question
// to a master costs more than all the rest of opening a small file. It is
// bounded by bytes and safe for concurrent use.
type entryCache struct {
	epoch  epoch
	shards [cacheShards]cacheShard
	whole  listings
}

// cacheShard holds the answers about the paths of one hash. New answers are
// cold; those that are asked for a second time become hot. Cold ones are
// evicted first.
type cacheShard struct {
	mu     sync.Mutex
	byPath map[string]*cached
	hot    queue
	cold   queue
	limit  int // bytes
	_      [32]byte
}

type cached struct {
	packed
	cost       int32
	used       bool // since it became cold
	hot        bool // in the queue of those
	prev, next *cached
}

// queue is a list with the answer that came last in front, and of those that
// are hot the one that was used last.
type queue struct {
	ends  cached // next is the first, prev the last
	bytes int
}

func (q *queue) init() { q.ends.next, q.ends.prev = &q.ends, &q.ends }

func (q *queue) push(c *cached) {
	c.prev, c.next = &q.ends, q.ends.next
	c.prev.next, c.next.prev = c, c
	q.bytes += int(c.cost)
}

func (q *queue) remove(c *cached) {
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
	q.bytes -= int(c.cost)
}

// queue returns the queue that an answer is in. The shard's lock is held.
func (s *cacheShard) queue(c *cached) *queue {
	if c.hot {
		return &s.hot
	}
	return &s.cold
}

func (q *queue) last() *cached {
	if q.ends.prev == &q.ends {
		return nil
	}
	return q.ends.prev
}

// newEntryCache makes a cache of at most limit bytes.
func newEntryCache(limit int64) *entryCache {
	c := &entryCache{epoch: epoch{time.Now()}, whole: listings{byDir: make(map[string]*listing)}}
	for i := range c.shards {
		s := &c.shards[i]
		s.byPath, s.limit = make(map[string]*cached), int(limit/cacheShards)
		s.hot.init()
		s.cold.init()
	}
	return c
}

func (c *entryCache) shard(p string) *cacheShard {
	return &c.shards[xxhash.Sum64String(p)%cacheShards]
}

// get returns the newest answer about a path, also one that is valid no
// longer; ok is false if there is none.
func (c *entryCache) get(p string) (a answer, ok bool) {
	s := c.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.use(p)
	if x == nil {
		return answer{}, false
	}
	return c.epoch.unpack(&x.packed), true
}

// glance is get for who wants no ticket, and an answer that is valid: it
// allocates nothing. absent says that nothing is at the path.
func (c *entryCache) glance(p string, now time.Time) (e client.Entry, asked, until time.Time, absent, ok bool) {
	s := c.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.byPath[p]; x == nil || !now.Before(c.epoch.time(x.until)) {
		return e, asked, until, false, false // get tells the rest
	}
	x := s.use(p)
	if absent = x.kind == packedAbsent; !absent {
		e = c.epoch.entry(&x.packed)
	}
	return e, c.epoch.time(x.asked), c.epoch.time(x.until), absent, true
}

// use returns the answer about a path, for a use of it that makes it hot if it
// is not the first; nil if there is none. The shard's lock is held.
func (s *cacheShard) use(p string) *cached {
	x := s.byPath[p]
	if x == nil || !x.used {
		if x != nil {
			x.used = true // it stays where it is: a scan looks at each name once
		}
		return x
	}
	s.queue(x).remove(x)
	x.hot = true
	s.hot.push(x)
	for float64(s.hot.bytes) > hotShare*float64(s.limit) {
		old := s.hot.last()
		s.hot.remove(old)
		old.hot, old.used = false, false
		s.cold.push(old)
	}
	return x
}

// peek is get for who passes over many names: nothing becomes hot by it.
func (c *entryCache) peek(p string) (a answer, ok bool) {
	s := c.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.byPath[p]
	if x == nil {
		return answer{}, false
	}
	return c.epoch.unpack(&x.packed), true
}

// put enters an answer about e's path, unless there is a newer one. by is the
// listing that it came with, nil if it came alone.
func (c *entryCache) put(e *client.Entry, asked time.Time, by *listing) {
	c.enter(e.Path, answer{entry: e, asked: asked, until: e.ValidUntil}, by)
	if by != nil {
		by.add(e.Path)
	}
}

// putAbsent enters the answer that nothing is at a path.
func (c *entryCache) putAbsent(p string, asked, until time.Time) {
	c.enter(p, answer{asked: asked, until: until}, nil)
}

func (c *entryCache) enter(p string, a answer, by *listing) {
	next := c.epoch.pack(p, &a)
	s := c.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.byPath[p]
	if x != nil && x.asked > next.asked {
		return
	}
	if next.kind != packedAbsent && by == nil && (x == nil || x.kind == packedAbsent) {
		c.whole.forget(path.Dir(p)) // its listing was from before this name
	}
	if x == nil {
		x = &cached{}
		s.byPath[next.path] = x
	} else {
		// An answer without a ticket must not take the ticket away.
		if !next.hasTicket() && x.hasTicket() && next.fileID == x.fileID {
			next.takeTicket(&x.packed)
		}
		next.path = x.path // the same text, which the map holds too
		s.queue(x).remove(x)
	}
	x.packed, x.cost = next, int32(answerOverhead+next.texts())
	s.queue(x).push(x)
	s.evict(c)
}

// evict makes room. The shard's lock is held.
func (s *cacheShard) evict(c *entryCache) {
	for s.hot.bytes+s.cold.bytes > s.limit {
		victim := s.cold.last()
		if victim == nil {
			victim = s.hot.last()
		}
		s.remove(c, victim)
	}
}

// remove takes an answer out. What a listing said is then not known whole any
// more, and that is noted first. The shard's lock is held.
func (s *cacheShard) remove(c *entryCache, x *cached) {
	if x.kind != packedAbsent {
		c.whole.forget(path.Dir(x.path))
	}
	s.queue(x).remove(x)
	delete(s.byPath, x.path)
}

// drop forgets what is known about a path.
func (c *entryCache) drop(p string) {
	s := c.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.byPath[p]; x != nil {
		s.remove(c, x)
	}
}

// bytes returns about how much memory the answers take.
func (c *entryCache) bytes() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.hot.bytes + s.cold.bytes
		s.mu.Unlock()
	}
	return n
}

// len returns the number of answers.
func (c *entryCache) len() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += len(s.byPath)
		s.mu.Unlock()
	}
	return n
}

// absent reports until when a name without an answer of its own is known not
// to exist, since a whole listing of its directory lacks it.
func (c *entryCache) absent(p string, now time.Time) (until time.Time, ok bool) {
	// The listing first: an answer that it brought is then either there or
	// was removed, which spoils the listing before.
	l := c.whole.of(path.Dir(p))
	if l == nil || l.spoilt.Load() || !now.Before(l.absence) {
		return time.Time{}, false
	}
	s := c.shard(p)
	s.mu.Lock()
	known := s.byPath[p] != nil
	s.mu.Unlock()
	return l.absence, !known && !l.spoilt.Load()
}

// listings are the directories whose whole listing is in the cache.
type listings struct {
	mu    sync.Mutex
	byDir map[string]*listing
}

// listing is one listing of a directory. It is spoilt when a name of the
// directory came or went beside it.
type listing struct {
	dir    string
	spoilt atomic.Bool
	paths  []string // in order; of the one who lists until it is whole

	// Guarded by listings.mu until it is whole, constant from then on.
	whole   bool
	until   time.Time // it tells what is there
	absence time.Time // it tells what is not there
}

// add enters the next name. A listing that is spoilt is good for nothing.
func (x *listing) add(p string) {
	if x.spoilt.Load() {
		x.paths = nil
		return
	}
	x.paths = append(x.paths, p)
}

// begin announces a listing whose entries will be put.
func (l *listings) begin(dir string) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.byDir) >= maxListings {
		for other := range l.byDir { // any
			l.spoil(other)
			break
		}
	}
	l.spoil(dir) // who has it in hand would not hear of what goes from now on
	x := &listing{dir: dir}
	l.byDir[dir] = x
	return x
}

// end says that all entries of a listing were put, and how long they are
// valid; the zero time, that it is not whole. absence bounds how long it tells
// what is not there.
func (l *listings) end(x *listing, until, absence time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byDir[x.dir] != x {
		return
	}
	if until.IsZero() {
		l.spoil(x.dir)
		return
	}
	x.whole, x.until, x.absence = true, until, until
	if absence.Before(until) {
		x.absence = absence
	}
}

// of returns the whole listing of a directory, nil if there is none.
func (l *listings) of(dir string) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.byDir[dir]; x != nil && x.whole {
		return x
	}
	return nil
}

// forget spoils the listing of a directory, also one that is under way.
func (l *listings) forget(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spoil(dir)
}

// spoil takes the listing of a directory away, also from those who look into
// it at this moment. l.mu is held.
func (l *listings) spoil(dir string) {
	if x := l.byDir[dir]; x != nil {
		x.spoilt.Store(true)
		delete(l.byDir, dir)
	}
}
