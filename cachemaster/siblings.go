package cachemaster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"millrace/cachemaster/fsm"
	"millrace/ufs"
)

// Whoever walks a tree looks at the files of a directory one by one, and one
// listing answers for all of them. After a few looks at names of one directory
// that no cache could answer, the directory is listed once, for all who ask
// for its names meanwhile and until the answer is no longer fresh. The listing
// is bounded, so that a prefix of millions of keys costs a few requests more
// and no others until then.

const (
	// maxLookedAt bounds the directories whose looks are counted: 200 bytes
	// and a path each. What is forgotten is counted anew.
	maxLookedAt = 16 << 10
	// listPatience bounds a look's wait for the listing of its directory; one
	// that waited for so long asks by itself.
	listPatience = 500 * time.Millisecond
	// maxPasses bounds the listings for the looks' sake that are under way.
	maxPasses = 64
)

// siblings counts the looks at directories, and knows those that are listed
// for the looks' sake. It is safe for concurrent use.
type siblings struct {
	mu     sync.Mutex
	dirs   *simplelru.LRU[statKey, *lookedAt]
	passes int // under way
}

// lookedAt is what is remembered of a directory.
type lookedAt struct {
	until time.Time // then all of this is forgotten
	looks int       // that asked the under-store
	// futile says that the directory was too long to list, or could not be.
	futile bool
	pass   *pass // the listing under way, if there is one
}

func newSiblings() *siblings {
	// NewLRU fails for a size below one only.
	dirs, _ := simplelru.NewLRU[statKey, *lookedAt](maxLookedAt, nil)
	return &siblings{dirs: dirs}
}

// of returns what is remembered of a directory. The lock is held.
func (s *siblings) of(key statKey, now time.Time, window time.Duration) *lookedAt {
	d, ok := s.dirs.Get(key)
	if !ok || !now.Before(d.until) {
		next := &lookedAt{until: now.Add(window)}
		if ok {
			next.pass = d.pass
		}
		d = next
		s.dirs.Add(key, d)
	}
	return d
}

// ended enters the end of a directory's listing. One that failed is not tried
// again until then.
func (s *siblings) ended(key statKey, p *pass, err error, then time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passes--
	d, ok := s.dirs.Peek(key)
	if !ok || d.pass != p {
		return
	}
	d.pass, d.looks, d.futile = nil, 0, err != nil
	if err != nil && !errors.Is(err, errEnough) && then.Before(d.until) {
		d.until = then
	}
}

// fromSiblings answers a look at a path by the listing of its directory, if
// that is worth it; otherwise the under-store is to be asked.
func (n *namespace) fromSiblings(ctx context.Context, index uint64, m fsm.Mount, rel string) (statAnswer, bool) {
	if n.cfg.ListAheadLooks == 0 {
		return statAnswer{}, false
	}
	dir, name := splitPath(rel)
	key := statKey{mount: m.ID, changed: m.Changed, path: dir}
	expires, _ := n.freshness(m)
	n.siblings.mu.Lock()
	d := n.siblings.of(key, n.now(), n.valid(expires))
	p := d.pass
	if p == nil {
		// A listing may have ended since the cache was asked.
		if answer, ok := n.cache.stat(m.ID, rel); ok {
			n.siblings.mu.Unlock()
			return answer, true
		}
		if d.futile || d.looks < n.cfg.ListAheadLooks || n.siblings.passes >= maxPasses {
			d.looks++
			n.siblings.mu.Unlock()
			return statAnswer{}, false
		}
		p = n.listAhead(ctx, index, m, key)
		if p == nil {
			d.futile = true
			n.siblings.mu.Unlock()
			return statAnswer{}, false
		}
		d.pass = p
		n.siblings.passes++
	}
	n.siblings.mu.Unlock()
	return p.wait(ctx, name)
}

// listAhead starts the listing of a directory for the sake of who looks at its
// files; nil if that cannot be.
func (n *namespace) listAhead(ctx context.Context, index uint64, m fsm.Mount, key statKey) *pass {
	r, err := n.joinListing(ctx, index, m, key.path, n.listAheadEntries())
	if err != nil {
		return nil
	}
	p := newPass(r.l)
	_, err = n.detached.start(ctx, n.cfg.UFSTimeout.Std(), func(ctx context.Context) {
		defer r.leave()
		err := p.follow(ctx, r)
		if errors.Is(err, errEnough) && n.unchanged(m, index) {
			n.cache.putPart(m.ID, key.path, p.all, p.expires)
		}
		n.siblings.ended(key, p, err, n.now().Add(n.cfg.FreshnessTTL.Std()))
		p.end(err == nil)
	})
	if err != nil {
		r.leave()
		return nil
	}
	return p
}

// listAheadEntries returns how long a listing for the sake of looks may be.
func (n *namespace) listAheadEntries() int {
	return min(n.cfg.ListAheadEntries, n.cfg.MaxListingEntries)
}

// pass is a listing of a directory that answers looks at its names. It is safe
// for concurrent use.
type pass struct {
	expires time.Time
	absence time.Time // as of listing

	all []ufs.Info // what came so far; of the follower alone until the end

	mu       sync.Mutex
	seen     map[string]int // name -> index in all
	waiting  map[string][]chan passAnswer
	done     bool
	complete bool // once it is done: what was not seen does not exist
}

type passAnswer struct {
	answer statAnswer
	ok     bool
}

func newPass(l *listing) *pass {
	return &pass{expires: l.expires, absence: l.absence, seen: make(map[string]int), waiting: make(map[string][]chan passAnswer)}
}

// follow reads the listing to its end and answers whom it can.
func (p *pass) follow(ctx context.Context, r *listingReader) error {
	for {
		infos, err := r.next(ctx)
		if err != nil || len(infos) == 0 {
			return err
		}
		p.add(infos)
	}
}

func (p *pass) add(infos []ufs.Info) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range infos {
		_, name := splitPath(infos[i].Path)
		p.seen[name] = len(p.all)
		p.all = append(p.all, infos[i])
		for _, ch := range p.waiting[name] {
			ch <- passAnswer{statAnswer{info: infos[i], expires: p.expires}, true}
		}
		delete(p.waiting, name)
	}
}

// end answers who waits still.
func (p *pass) end(complete bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.complete = true, complete
	for name, chs := range p.waiting {
		for _, ch := range chs {
			ch <- p.missing(name)
		}
	}
	clear(p.waiting)
}

// missing answers for a name that was not seen, after the end.
func (p *pass) missing(name string) passAnswer {
	if !p.complete {
		return passAnswer{}
	}
	return passAnswer{statAnswer{expires: p.absence, err: notThere(name)}, true}
}

// wait returns the listing's answer about a name; false if it has none, or
// not in time.
func (p *pass) wait(ctx context.Context, name string) (statAnswer, bool) {
	p.mu.Lock()
	if i, ok := p.seen[name]; ok {
		defer p.mu.Unlock()
		return statAnswer{info: p.all[i], expires: p.expires}, true
	}
	if p.done {
		defer p.mu.Unlock()
		a := p.missing(name)
		return a.answer, a.ok
	}
	ch := make(chan passAnswer, 1) // whoever answers does not wait
	p.waiting[name] = append(p.waiting[name], ch)
	p.mu.Unlock()
	patience := time.NewTimer(listPatience)
	defer patience.Stop()
	select {
	case a := <-ch:
		return a.answer, a.ok
	case <-patience.C:
	case <-ctx.Done():
	}
	return statAnswer{}, false
}
