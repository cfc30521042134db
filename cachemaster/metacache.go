package cachemaster

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"millrace/internal/errs"
	"millrace/ufs"
)

// What an entry of the metadata cache costs beside its texts, in bytes: the
// structs, the map and list nodes, rounded up.
const (
	metaEntryCost   = 256
	metaListingCost = 104 // for each child of a listing
)

// metaKey names what is cached: a look at a path, or the listing of it.
type metaKey struct {
	mount uint64
	path  string // below the under-store mount
	list  bool
}

// metaEntry is the answer to one stat or one listing. It is immutable.
type metaEntry struct {
	expires time.Time // the zero time never comes
	bytes   int64

	found bool     // of a stat
	info  ufs.Info // of a stat that found something

	children []ufs.Info // of a listing
	byPath   []int32    // the indexes of children in byte order of the path
	part     bool       // of a listing that may lack children
	absence  time.Time  // until when a listing tells what is not there
}

func (e *metaEntry) freshAt(now time.Time) bool { return e.expires.IsZero() || now.Before(e.expires) }

// metaCache is the leader's bounded cache of under-store metadata. Answers
// that are no longer fresh are not given; what was used least recently makes
// room. It is safe for concurrent use.
type metaCache struct {
	bound int64
	now   func() time.Time

	mu    sync.Mutex
	lru   *simplelru.LRU[metaKey, *metaEntry]
	bytes int64
}

// maxMetaEntries bounds the number of entries; the bound in bytes is reached
// long before it.
const maxMetaEntries = 1 << 30

func newMetaCache(bound int64, now func() time.Time) *metaCache {
	c := &metaCache{bound: bound, now: now}
	c.purge()
	return c
}

// purge forgets everything.
func (c *metaCache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// NewLRU fails for a size below one only.
	c.lru, _ = simplelru.NewLRU(maxMetaEntries, func(_ metaKey, e *metaEntry) { c.bytes -= e.bytes })
	c.bytes = 0
}

// listing returns a fresh and whole listing of a directory.
func (c *metaCache) listing(mount uint64, dir string) (*metaEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.fresh(metaKey{mount: mount, path: dir, list: true})
	return e, ok && !e.part
}

func (c *metaCache) fresh(k metaKey) (*metaEntry, bool) {
	e, ok := c.lru.Get(k)
	if !ok {
		return nil, false
	}
	if !e.freshAt(c.now()) {
		c.lru.Remove(k)
		return nil, false
	}
	return e, true
}

// stat answers a look at a path from what is known of it, or from the
// listings of it or of its parent.
func (c *metaCache) stat(mount uint64, p string) (answer statAnswer, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.fresh(metaKey{mount: mount, path: p}); ok {
		if !e.found {
			return statAnswer{expires: e.expires, err: notThere(p)}, true
		}
		return statAnswer{info: e.info, expires: e.expires}, true
	}
	dir, _ := splitPath(p)
	above, known := c.fresh(metaKey{mount: mount, path: dir, list: true})
	if known {
		if child := above.child(p); child != nil {
			return statAnswer{info: *child, expires: above.expires}, true
		}
	}
	// Of a part nobody knows whether its directory is a file too.
	if e, ok := c.fresh(metaKey{mount: mount, path: p, list: true}); ok && !e.part {
		return statAnswer{info: ufs.Info{Path: p, Type: ufs.Dir}, expires: e.expires}, true
	}
	if known && !above.part && c.now().Before(above.absence) {
		return statAnswer{expires: above.absence, err: notThere(p)}, true
	}
	return statAnswer{}, false
}

func notThere(p string) error { return errs.E(errs.NotFound, "stat", p, nil) }

// splitPath returns the parent of a path below an under-store mount, and its
// last component.
func splitPath(p string) (dir, name string) {
	dir, name = path.Split(p)
	if dir != "" {
		dir = dir[:len(dir)-1]
	}
	return dir, name
}

func (c *metaCache) putStat(mount uint64, p string, info ufs.Info, found bool, expires time.Time) {
	c.put(metaKey{mount: mount, path: p}, &metaEntry{
		expires: expires, found: found, info: info,
		bytes: int64(metaEntryCost + len(p) + len(info.Path) + len(info.Tag)),
	})
}

// correct forgets the listing of the parent of p if it says otherwise than the
// under-store just did: it would bring back the version that is gone.
func (c *metaCache) correct(mount uint64, p string, info ufs.Info, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, _ := splitPath(p)
	k := metaKey{mount: mount, path: dir, list: true}
	above, ok := c.lru.Peek(k)
	if !ok {
		return
	}
	child := above.child(p)
	switch {
	case child == nil && (!found || above.part):
	case child != nil && found && child.Type == info.Type && child.Tag == info.Tag && child.Size == info.Size:
	default:
		c.lru.Remove(k)
	}
}

// putListing keeps all children of a directory; absence is until when it is
// known that there are no others.
func (c *metaCache) putListing(mount uint64, dir string, children []ufs.Info, expires, absence time.Time) {
	e := newListingEntry(dir, children, expires)
	e.absence = absence
	c.put(metaKey{mount: mount, path: dir, list: true}, e)
}

// putPart keeps children of a directory that may have more. It does not take
// the place of what says more.
func (c *metaCache) putPart(mount uint64, dir string, children []ufs.Info, expires time.Time) {
	e := newListingEntry(dir, children, expires)
	e.part = true
	c.put(metaKey{mount: mount, path: dir, list: true}, e)
}

func newListingEntry(dir string, children []ufs.Info, expires time.Time) *metaEntry {
	e := &metaEntry{
		expires: expires, children: children, byPath: make([]int32, len(children)),
		bytes: int64(metaEntryCost + len(dir)),
	}
	for i := range children {
		e.byPath[i] = int32(i)
		e.bytes += int64(metaListingCost + len(children[i].Path) + len(children[i].Tag))
	}
	slices.SortFunc(e.byPath, func(a, b int32) int {
		return cmp.Or(strings.Compare(children[a].Path, children[b].Path), cmp.Compare(a, b))
	})
	return e
}

// child returns the child of a listing with that path: the file, if it is a
// directory too, since that comes first. It is nil if there is none.
func (e *metaEntry) child(p string) *ufs.Info {
	i, ok := slices.BinarySearchFunc(e.byPath, p, func(i int32, p string) int { return strings.Compare(e.children[i].Path, p) })
	if !ok {
		return nil
	}
	return &e.children[e.byPath[i]]
}

func (c *metaCache) put(k metaKey, e *metaEntry) {
	if e.bytes > c.bound {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.part {
		if old, ok := c.fresh(k); ok && (!old.part || len(old.children) > len(e.children)) {
			return
		}
	}
	c.lru.Remove(k) // Add would replace it without telling the callback
	c.lru.Add(k, e)
	c.bytes += e.bytes
	for c.bytes > c.bound {
		c.lru.RemoveOldest()
	}
}

// retain forgets the entries of under-store mounts for which keep is false.
func (c *metaCache) retain(keep func(mount uint64) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.lru.Keys() {
		if !keep(k.mount) {
			c.lru.Remove(k)
		}
	}
}

// size returns the number of entries and what they take, in bytes.
func (c *metaCache) size() (entries int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len(), c.bytes
}
