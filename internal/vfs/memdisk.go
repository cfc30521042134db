package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// memBlock is the unit of allocation of a MemFS, and of what a crash keeps.
const memBlock = 4096

// memSector is how a write to a block may tear.
const memSector = 512

// memRoot is the root directory's inode number.
const memRoot = 1

// memNode is a file or directory. Blocks are never changed once they are in a
// map, so that states can share them; a nil block is all zeros and takes room.
type memNode struct {
	dir    bool
	size   int64
	blocks map[int64][]byte
	names  map[string]uint64 // of a directory

	parent uint64 // the one place where it is linked; 0: none
	name   string
}

// memState is all nodes by inode number: as the kernel sees them, or as they
// are on the disk.
type memState map[uint64]*memNode

// node returns a node and makes it if it is not there: after a crash a change
// may have survived without the one that made its file.
func (s memState) node(ino uint64, dir bool) *memNode {
	n := s[ino]
	if n == nil {
		n = &memNode{dir: dir}
		if dir {
			n.names = map[string]uint64{}
		} else {
			n.blocks = map[int64][]byte{}
		}
		s[ino] = n
	}
	return n
}

type memOp uint8

const (
	memLink   memOp = iota // ino gets a name, and loses the one it had
	memUnlink              // a name goes
	memWrite               // a block has new content
	memAlloc               // a block takes room
	memPunch               // a block takes no room
	memGrow                // the file is at least so long
	memCut                 // the file is so long, and has nothing behind
)

// memChange is one step of an operation: what may survive a crash alone.
type memChange struct {
	op    memOp
	ino   uint64
	isDir bool // memLink: ino is a directory

	dir  uint64 // memLink, memUnlink
	name string
	from uint64 // memLink: the directory of the name it had

	block int64  // memWrite, memAlloc, memPunch
	data  []byte // memWrite
	size  int64  // memGrow, memCut
}

// names reports whether the change is one of names, not of content.
func (c *memChange) names() bool { return c.op == memLink || c.op == memUnlink }

// apply brings a change into s. Of a write, no more than the first sectors
// are new; the rest is as it was.
func (s memState) apply(c *memChange, sectors int) {
	if c.names() {
		s.applyName(c)
		return
	}
	n := s.node(c.ino, false)
	switch c.op {
	case memWrite:
		data := c.data
		if cut := sectors * memSector; cut < memBlock {
			data = make([]byte, memBlock)
			copy(data, n.blocks[c.block])
			copy(data[:cut], c.data)
		}
		n.blocks[c.block] = data
	case memAlloc:
		if _, ok := n.blocks[c.block]; !ok {
			n.blocks[c.block] = nil
		}
	case memPunch:
		delete(n.blocks, c.block)
	case memGrow:
		n.size = max(n.size, c.size)
	case memCut:
		n.cut(c.size)
	case memLink, memUnlink:
	}
}

func (s memState) applyName(c *memChange) {
	dir := s.node(c.dir, true)
	if c.op == memUnlink {
		if dir.names[c.name] == c.ino {
			delete(dir.names, c.name)
			s.node(c.ino, c.isDir).parent = 0
		}
		return
	}
	n := s.node(c.ino, c.isDir)
	if old := s[n.parent]; old != nil && old.names[n.name] == c.ino {
		delete(old.names, n.name)
	}
	if replaced := s[dir.names[c.name]]; replaced != nil {
		replaced.parent = 0
	}
	dir.names[c.name] = c.ino
	n.parent, n.name = c.dir, c.name
}

// cut makes the file size bytes long, without anything behind.
func (n *memNode) cut(size int64) {
	for i, data := range n.blocks {
		switch start := i * memBlock; {
		case start >= size:
			delete(n.blocks, i)
		case start+memBlock > size && data != nil:
			kept := make([]byte, memBlock)
			copy(kept, data[:size-start])
			n.blocks[i] = kept
		}
	}
	n.size = size
}

// room is the number of blocks that the node takes.
func (n *memNode) room() int64 {
	if n.dir {
		return 1
	}
	return int64(len(n.blocks))
}

// clone copies the state.
func (s memState) clone() memState {
	to := make(memState, len(s))
	for ino, n := range s {
		c := *n
		c.blocks, c.names = maps.Clone(n.blocks), maps.Clone(n.names)
		to[ino] = &c
	}
	return to
}

// prune forgets what has no name.
func (s memState) prune() {
	named := make(map[uint64]bool, len(s))
	var walk func(ino uint64)
	walk = func(ino uint64) {
		named[ino] = true
		for _, child := range s[ino].names {
			walk(child)
		}
	}
	walk(memRoot)
	maps.DeleteFunc(s, func(ino uint64, _ *memNode) bool { return !named[ino] })
}

// settle makes pending changes durable, those that pick chooses.
func (d *memDisk) settle(pick func(c *memChange) bool) {
	d.pending = slices.DeleteFunc(d.pending, func(c memChange) bool {
		if !pick(&c) {
			return false
		}
		d.durable.apply(&c, memBlock/memSector)
		return true
	})
	if len(d.pending) == 0 {
		d.durable.prune()
	}
}

// crash returns the disk as the machine finds it after its power went: with
// all that was synced, and of the rest what chance keeps, each change by
// itself, and a write perhaps in part.
func (d *memDisk) crash(seed uint64) *memDisk {
	rnd := rand.New(rand.NewPCG(seed, 0))
	after := d.durable.clone()
	odds := rnd.Float64()
	for i := range d.pending {
		if rnd.Float64() >= odds {
			continue
		}
		sectors := memBlock / memSector
		if rnd.IntN(4) == 0 {
			sectors = rnd.IntN(sectors)
		}
		after.apply(&d.pending[i], sectors)
	}
	after.prune()
	to := &memDisk{now: after, durable: after.clone(), next: d.next, blocks: d.blocks, inodes: d.inodes, open: map[uint64]*memOpen{}}
	for _, n := range after {
		to.used += n.room()
	}
	return to
}
