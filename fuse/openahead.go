package fuse

import (
	"path"
	"slices"
	"sync"
	"time"

	"millrace/client"
)

const (
	// aheadRun is how many files of a directory must be opened in the order of
	// its listing for the next ones to be prepared: of files that are opened
	// in any order a few are always neighbors.
	aheadRun = 4
	// aheadSlack is by how many places several readers may be out of order.
	aheadSlack = 8
	// aheadLeast and aheadMost bound the files that are prepared at once.
	aheadLeast, aheadMost = 8, 64
	// maxRuns bounds the directories that are followed.
	maxRuns = 256
)

// openAhead has the client get the local files ready that are likely to be
// opened next, since a directory is opened in order. Many of them at once cost
// a third of what each costs by itself. It hears of opens whose local file was
// not used before, so that files in any order cost nothing but their questions.
type openAhead struct {
	client  Client
	entries *entryCache

	mu   sync.Mutex
	runs map[string]*openRun // by directory
}

// openRun is how a directory is opened, by places in its listing.
type openRun struct {
	length int // opens in order
	next   int // the place behind what was opened or prepared
	size   int // of what was prepared last
}

func newOpenAhead(c Client, entries *entryCache) *openAhead {
	return &openAhead{client: c, entries: entries, runs: make(map[string]*openRun)}
}

// note tells of an open.
func (a *openAhead) note(p string) {
	dir := path.Dir(p)
	l := a.entries.whole.of(dir)
	if l == nil {
		return
	}
	place, ok := slices.BinarySearch(l.paths, p)
	if !ok { // the listing is in another order, or of another time
		return
	}
	from, end := a.follow(dir, place)
	if end = min(end, len(l.paths)); from >= end {
		return
	}
	now := time.Now()
	list := make([]*client.Entry, 0, end-from)
	for _, p := range l.paths[from:end] {
		known, ok := a.entries.peek(p)
		if ok && known.fresh(now) && known.entry != nil && !known.entry.Dir && ticketValid(known.entry, now) {
			list = append(list, known.entry)
		}
	}
	if len(list) > 0 {
		a.client.PrepareDescriptors(list)
	}
}

// follow returns which places of a directory are to be prepared when one is
// opened.
func (a *openAhead) follow(dir string, place int) (from, end int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.runs[dir]
	if r == nil {
		if len(a.runs) >= maxRuns {
			for other := range a.runs { // any
				delete(a.runs, other)
				break
			}
		}
		r = &openRun{}
		a.runs[dir] = r
	}
	if place < r.next-2*r.size-aheadSlack || place > r.next+aheadSlack {
		*r = openRun{}
	}
	r.length++
	switch {
	case r.length < aheadRun:
		r.next = max(r.next, place+1)
		return 0, 0
	case r.next-place > r.size/2+1: // there is enough
		return 0, 0
	}
	r.size = min(max(2*r.size, aheadLeast), aheadMost)
	from = max(r.next, place+1)
	r.next = from + r.size
	return from, r.next
}
