package fuse

import (
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/block"
	"millrace/client"
)

// node is what a node ID stands for: a directory, or one version of a file.
// There is one for each name that the kernel knows, so it is kept small; the
// master's answer about the path is in the entry cache.
type node struct {
	id     uint64
	path   string
	fileID block.FileID // zero for directories
	size   int64        // bytes
	mtime  int64        // Unix ns; 0 if unknown
	dir    bool
	// superseded is set when the path is known to have another version.
	superseded atomic.Bool
	// unsettled is set while the kernel may have pages of the version from
	// when it could still change.
	unsettled atomic.Bool

	// Guarded by the shard's lock.
	lookups uint64 // references that the kernel holds
	checked moment // when the master was asked about this version last
	opening *opening
}

func (n *node) is(e *client.Entry) bool { return n.dir == e.Dir && n.fileID == e.FileID }

// mayHaveOtherPages reports, at an open with the ticket t, whether the pages
// that the kernel has of the node may be other than the version's. Then it is
// to drop them: while the version may still change under its tag, and once
// when it is settled.
func (n *node) mayHaveOtherPages(t *block.Ticket) bool {
	if t != nil && t.Unsettled {
		n.unsettled.Store(true)
		return true
	}
	return n.unsettled.Swap(false)
}

// ino returns the inode number, which is that of the path.
func (n *node) ino() uint64 {
	if n.id == rootID {
		return rootID
	}
	return inode(n.path)
}

func newNode(id uint64, e *client.Entry, checked moment) *node {
	n := &node{id: id, path: e.Path, fileID: e.FileID, size: e.Size, dir: e.Dir, checked: checked}
	if !e.MTime.IsZero() {
		n.mtime = e.MTime.UnixNano()
	}
	return n
}

const (
	tableShardBits = 6
	tableShards    = 1 << tableShardBits
)

// table binds node IDs to nodes for as long as the kernel refers to them. It
// is bounded by the kernel's own cache of entries, which forgets under memory
// pressure. The low bits of an ID are the shard of its path.
type table struct {
	epoch  epoch
	root   *node
	count  atomic.Int64
	shards [tableShards]tableShard
}

type tableShard struct {
	mu     sync.Mutex
	last   uint64 // given out last, without the low bits; IDs are never used again
	byID   map[uint64]*node
	byPath map[string]*node // the current version of each path
	_      [32]byte
}

const rootID = gofuse.FUSE_ROOT_ID

func newTable(root *client.Entry) *table {
	t := &table{epoch: epoch{time.Now()}, root: newNode(rootID, root, 0)}
	for i := range t.shards {
		t.shards[i].byID, t.shards[i].byPath = make(map[uint64]*node), make(map[string]*node)
	}
	_, s := t.shard(root.Path)
	s.byPath[root.Path] = t.root
	t.count.Store(1)
	return t
}

func (t *table) shard(path string) (index uint64, s *tableShard) {
	index = xxhash.Sum64String(path) % tableShards
	return index, &t.shards[index]
}

// shardOf returns the shard of a node.
func (t *table) shardOf(n *node) *tableShard { return &t.shards[n.id%tableShards] }

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
	if id == rootID {
		return t.root
	}
	s := &t.shards[id%tableShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

// refer returns the node of what e describes, makes it the current one of its
// path, and counts a reference of the kernel to it. asked is when the master
// was asked; if the table has a newer answer, the node of that is returned.
func (t *table) refer(e *client.Entry, asked time.Time) *node {
	index, s := t.shard(e.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	checked := t.epoch.moment(asked)
	n := s.update(e, checked)
	if n == nil {
		s.last++
		n = newNode(s.last<<tableShardBits|index, e, checked)
		s.byID[n.id], s.byPath[e.Path] = n, n
		t.count.Add(1)
	}
	if n.id != rootID {
		n.lookups++
	}
	return n
}

// refresh tells the table a master's answer without giving the kernel a
// reference. It returns the node of that version, nil if the kernel has none.
func (t *table) refresh(e *client.Entry, asked time.Time) *node {
	_, s := t.shard(e.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.update(e, t.epoch.moment(asked))
}

// stillIs is refresh, and reports whether n is a node of that version. It need
// not be the path's current one, which may be of another mode.
func (t *table) stillIs(n *node, e *client.Entry, asked time.Time) bool {
	now := t.refresh(e, asked)
	return now == n || !n.superseded.Load() && n.is(e) && (now == nil || now.is(e))
}

// update finds the current node of e's path and brings it up to date. It
// returns nil if there is none of e's version; one of another version is
// superseded from then on. The caller holds the lock.
func (s *tableShard) update(e *client.Entry, checked moment) *node {
	n := s.byPath[e.Path]
	switch {
	case n == nil:
		return nil
	case n.checked > checked:
		return n
	case n.is(e):
		n.checked = checked
		return n
	case n.id == rootID:
		return n // the mount outlives what its root was
	default:
		n.superseded.Store(true)
		delete(s.byPath, n.path)
		return nil
	}
}

// detach makes a node the current one of its path no more: the next lookup
// makes another. It reports false if it was not.
func (t *table) detach(n *node) bool {
	s := t.shardOf(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byPath[n.path] != n {
		return false
	}
	delete(s.byPath, n.path)
	return true
}

// parentOf returns the directory of a node, if the kernel refers to it, and
// the node's name there.
func (t *table) parentOf(n *node) (id uint64, name string, ok bool) {
	dir := path.Dir(n.path)
	_, s := t.shard(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	parent := s.byPath[dir]
	if parent == nil {
		return 0, "", false
	}
	return parent.id, path.Base(n.path), true
}

// forget takes back references that the kernel gave up.
func (t *table) forget(id, count uint64) {
	if id == rootID {
		return
	}
	s := &t.shards[id%tableShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byID[id]
	if n == nil {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups > 0 {
		return
	}
	delete(s.byID, id)
	t.count.Add(-1)
	if s.byPath[n.path] == n {
		delete(s.byPath, n.path)
	}
}

// len returns the number of nodes that the kernel refers to.
func (t *table) len() int { return int(t.count.Load()) }
