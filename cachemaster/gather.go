package cachemaster

import (
	"time"

	"millrace/cachemaster/fsm"
	"millrace/ufs"
)

// walkShare is which part of the metadata cache one recursive listing fills
// at most, so that a walk over everything does not push out all else.
const walkShare = 4

// gatherer keeps in the metadata cache what a recursive listing finds, by
// directory: whoever loads a tree reads it next. A recursive listing does not
// show empty directories, so it tells what is there, never what is not.
//
// All paths below a directory come one after the other in a recursive
// listing, so that the directories that are not complete are those above the
// last path.
type gatherer struct {
	n       *namespace
	mount   fsm.Mount
	index   uint64    // applied at the start
	expires time.Time // as of the start
	left    int64     // bytes of the cache that may be filled yet
	open    []gathered
}

// gathered is what was found in one directory.
type gathered struct {
	dir      string
	children []ufs.Info
}

// newGatherer begins a listing of the directory rel; nil if nothing of the
// mount may be kept.
func (n *namespace) newGatherer(index uint64, m fsm.Mount, rel string) *gatherer {
	expires, keep := n.freshness(m)
	if !keep {
		return nil
	}
	return &gatherer{
		n: n, mount: m, index: index, expires: expires,
		left: n.cache.bound / walkShare, open: []gathered{{dir: rel}},
	}
}

// add enters a file, in the order of the listing.
func (g *gatherer) add(info ufs.Info) {
	if g == nil || g.left <= 0 {
		return
	}
	dir, _ := splitPath(info.Path)
	for !fsm.Below("/"+dir, "/"+g.top().dir) {
		g.close()
	}
	for g.top().dir != dir {
		// The directories between: each is a child of the one above it.
		next := ufs.Join(g.top().dir, child(dir, g.top().dir))
		g.child(ufs.Info{Path: next, Type: ufs.Dir})
		g.open = append(g.open, gathered{dir: next})
	}
	g.child(info)
}

func (g *gatherer) top() *gathered { return &g.open[len(g.open)-1] }

func (g *gatherer) child(info ufs.Info) {
	g.left -= int64(metaListingCost + len(info.Path) + len(info.Tag))
	g.top().children = append(g.top().children, info)
}

// close ends the innermost directory.
func (g *gatherer) close() {
	d := g.top()
	if len(d.children) > 0 && g.n.unchanged(g.mount, g.index) {
		g.n.cache.putPart(g.mount.ID, d.dir, d.children, g.expires)
	}
	g.open = g.open[:len(g.open)-1]
}

// end keeps what is left, also of a listing that broke off.
func (g *gatherer) end() {
	for g != nil && len(g.open) > 0 {
		g.close()
	}
}
