package fuse

import (
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/block"
	"millrace/client"
)

// node is what a node ID stands for: a directory, or one version of a file.
// The fields up to mtime are set at birth; table.mu guards the rest.
type node struct {
	id     uint64
	path   string
	ino    uint64
	dir    bool
	fileID block.FileID // zero for directories
	size   int64        // bytes
	mtime  time.Time    // zero if unknown

	// entry is the newest description of this version; it is replaced, never
	// changed.
	entry *client.Entry
	// checked is when the master was asked for the entry.
	checked time.Time
	// superseded is set when the path is known to have another version.
	superseded bool
	// lookups is how many references the kernel holds.
	lookups uint64
}

func (n *node) is(e *client.Entry) bool { return n.dir == e.Dir && n.fileID == e.FileID }

// table binds node IDs to nodes for as long as the kernel refers to them. It
// is bounded by the kernel's own cache of entries, which forgets under
// memory pressure.
type table struct {
	mu     sync.Mutex
	last   uint64 // node ID given out last; IDs are never used again
	byID   map[uint64]*node
	byPath map[string]*node // the current version of each path
}

const rootID = gofuse.FUSE_ROOT_ID

func newTable(root *client.Entry) *table {
	n := &node{id: rootID, path: root.Path, ino: rootID, dir: true, mtime: root.MTime, entry: root}
	return &table{
		last:   rootID,
		byID:   map[uint64]*node{rootID: n},
		byPath: map[string]*node{root.Path: n},
	}
}

// inode returns the inode number of a path: a hash, so that it is the same on
// every host and in every run. 0, 1 and 2^64-1 have other meanings.
func inode(path string) uint64 {
	h := xxhash.Sum64String(path)
	if h <= rootID || h == ^uint64(0) {
		h = rootID + 1
	}
	return h
}

// get returns the node of an ID; nil if the kernel was never given it, or
// gave it back.
func (t *table) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// view is a consistent copy of what changes in a node.
type view struct {
	entry      *client.Entry
	checked    time.Time
	superseded bool
}

func (t *table) view(n *node) view {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.view()
}

func (n *node) view() view { return view{n.entry, n.checked, n.superseded} }

// known returns the current node of a path without counting a reference.
func (t *table) known(path string) (*node, view) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byPath[path]; n != nil {
		return n, n.view()
	}
	return nil, view{}
}

// retain counts a reference of the kernel to a node that known returned; it
// reports false if the node is gone or superseded in the meantime.
func (t *table) retain(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byPath[n.path] != n {
		return false
	}
	t.refer1(n)
	return true
}

func (t *table) refer1(n *node) {
	if n.id != rootID {
		n.lookups++
	}
}

// refer returns the node of what e describes, makes it the current one of its
// path, and counts a reference of the kernel to it. asked is when the master
// was asked; if the table has a newer answer, the node of that is returned.
func (t *table) refer(e *client.Entry, asked time.Time) (*node, view) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.update(e, asked)
	if n == nil {
		t.last++
		n = &node{
			id: t.last, path: e.Path, ino: inode(e.Path), dir: e.Dir, fileID: e.FileID,
			size: e.Size, mtime: e.MTime, entry: e, checked: asked,
		}
		t.byID[n.id], t.byPath[e.Path] = n, n
	}
	t.refer1(n)
	return n, n.view()
}

// refresh tells the table a master's answer without giving the kernel a
// reference. It returns the node of that version, nil if the kernel has none.
func (t *table) refresh(e *client.Entry, asked time.Time) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.update(e, asked)
}

// update finds the current node of e's path and brings it up to date. It
// returns nil if there is none of e's version; one of another version is
// superseded from then on. The caller holds t.mu.
func (t *table) update(e *client.Entry, asked time.Time) *node {
	n := t.byPath[e.Path]
	switch {
	case n == nil:
		return nil
	case n.checked.After(asked):
		return n
	case n.is(e):
		// An answer without a ticket must not take the ticket away.
		if e.Ticket == nil && n.entry.Ticket != nil {
			c := *e
			c.Ticket = n.entry.Ticket
			e = &c
		}
		n.entry, n.checked = e, asked
		return n
	case n.id == rootID:
		return n // the mount outlives what its root was
	default:
		n.superseded = true
		delete(t.byPath, n.path)
		return nil
	}
}

// doubt ends the validity of a node's entry: the next use asks the master.
func (t *table) doubt(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := *n.entry
	c.ValidUntil = time.Time{}
	n.entry, n.checked = &c, time.Time{}
}

// forget takes back references that the kernel gave up.
func (t *table) forget(id, count uint64) {
	if id == rootID {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups > 0 {
		return
	}
	delete(t.byID, id)
	if t.byPath[n.path] == n {
		delete(t.byPath, n.path)
	}
}

// len returns the number of nodes that the kernel refers to.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
