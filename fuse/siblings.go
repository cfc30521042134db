package fuse

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Programs that know the names of their files open them without a listing,
// each at the price of a question to a master. A listing brings a name for a
// thirtieth of that, its ticket included. So after a few questions about names
// of one directory it is listed beside them: a little of it at first, in case
// that these were all, and more of it when there are more.

// listAhead says after how many questions about a directory's names how many
// of them are listed.
//
//nolint:gochecknoglobals // a table
var listAhead = [...]struct{ looks, names int }{{3, 256}, {16, 4096}, {256, 64 << 10}}

const (
	// looksWindow is for how long questions are counted together.
	looksWindow = time.Minute
	// maxLookedAt bounds the directories whose questions are counted: 200
	// bytes and a path each.
	maxLookedAt = 8192
	// maxAhead bounds the listings for the questions' sake that are under way.
	maxAhead = 4
)

// siblings counts the questions about names by directory. It is safe for
// concurrent use.
type siblings struct {
	mu    sync.Mutex
	dirs  *simplelru.LRU[string, *lookedAt]
	ahead int // listings under way
}

// lookedAt is what is remembered of a directory.
type lookedAt struct {
	until   time.Time // then all of this is forgotten
	looks   int
	level   int  // of listAhead that comes next
	listing bool // one is under way
}

func newSiblings() *siblings {
	// NewLRU fails for a size below one only.
	dirs, _ := simplelru.NewLRU[string, *lookedAt](maxLookedAt, nil)
	return &siblings{dirs: dirs}
}

// look counts a question about a name of dir, and returns how many of its
// names are to be listed now; 0 for none. Otherwise listed must follow.
func (s *siblings) look(dir string, now time.Time) (names int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.dirs.Get(dir)
	if !ok || !d.listing && !now.Before(d.until) {
		d = &lookedAt{until: now.Add(looksWindow)}
		s.dirs.Add(dir, d)
	}
	d.looks++
	if d.listing || s.ahead == maxAhead || d.level == len(listAhead) || d.looks < listAhead[d.level].looks {
		return 0
	}
	names = listAhead[d.level].names
	d.level++
	d.listing = true
	s.ahead++
	return names
}

// listed says that the listing which look asked for is over. One that was
// futile is not followed by another.
func (s *siblings) listed(dir string, futile bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead--
	if d, ok := s.dirs.Peek(dir); ok {
		d.listing = false
		if futile {
			d.level = len(listAhead)
		}
	}
}

// listSiblings counts a question about a name of dir, and lists the directory
// beside it where that is worth it.
func (f *fsys) listSiblings(dir string, now time.Time) {
	names := f.siblings.look(dir, now)
	if names == 0 {
		return
	}
	ctx, stop := f.req.begin()
	f.req.workers.Go(func() {
		defer stop()
		kept := true
		_, err := f.listInto(ctx, dir, func(l listed) bool {
			kept = time.Now().Before(l.entry.ValidUntil)
			names--
			return names > 0 && kept
		})
		f.siblings.listed(dir, err != nil || !kept)
	})
}
