package fuse

import (
	"context"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// No-open: a mount that answers OPEN once with ENOSYS hears of no open or
// close any more, for its life. What an OPEN would have made is then made by
// the first READ of a node, and kept for the next ones for a while.

const (
	// maxUnopened bounds the files that are kept for the READs to come, a
	// part of it in each shard.
	maxUnopened    = 1024
	unopenedShards = 16
	// unopenedIdle is how long one stays that nobody reads: as long as it
	// does, the worker cannot give the file's room to others.
	unopenedIdle = 5 * time.Second
)

// unopened are the files that are read without having been opened.
type unopened struct {
	shards [unopenedShards]unopenedShard
	stale  stalePages
}

type unopenedShard struct {
	mu   sync.Mutex
	byID map[uint64]*nodeFile
	ends nodeFile // of a list: next is the one used last
	_    [32]byte
}

// nodeFile is what an OPEN of a node would have made.
type nodeFile struct {
	openFile
	unsettled bool // the kernel is to keep no pages of it

	// Guarded by the shard's lock.
	users      int // READs under way
	used       time.Time
	prev, next *nodeFile // nil when it is out of the shard: its last user closes it
}

func newUnopened() *unopened {
	u := &unopened{stale: stalePages{ids: make(map[uint64]struct{}), wake: make(chan struct{}, 1)}}
	for i := range u.shards {
		s := &u.shards[i]
		s.byID = make(map[uint64]*nodeFile)
		s.ends.prev, s.ends.next = &s.ends, &s.ends
	}
	return u
}

func (u *unopened) shardOf(id uint64) *unopenedShard {
	// The low bits of an ID are the shard of its path, and spread as well.
	return &u.shards[id%unopenedShards]
}

// use returns the file of a node for one READ, nil if there is none.
func (u *unopened) use(id uint64) *nodeFile {
	s := u.shardOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byID[id]
	if o == nil {
		return nil
	}
	o.users++
	s.unlink(o)
	s.link(o)
	return o
}

// add keeps a file for the READs to come, and returns the one to use, which
// another may have brought meanwhile. What is not to be used is closed.
func (u *unopened) add(o *nodeFile) (*nodeFile, []*nodeFile) {
	s := u.shardOf(o.node.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byID[o.node.id]; other != nil {
		other.users++
		return other, []*nodeFile{o}
	}
	o.users = 1
	s.byID[o.node.id] = o
	s.link(o)
	if len(s.byID) <= maxUnopened/unopenedShards {
		return o, nil
	}
	if last := s.ends.prev; s.take(last) {
		return o, []*nodeFile{last}
	}
	return o, nil
}

// release ends a READ, and returns the file if it is to be closed.
func (u *unopened) release(o *nodeFile) *nodeFile {
	s := u.shardOf(o.node.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.users--; o.users == 0 && o.next == nil {
		return o
	}
	o.used = time.Now()
	return nil
}

// drop forgets the file of a node, and returns it if it is to be closed.
func (u *unopened) drop(id uint64) *nodeFile {
	s := u.shardOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.byID[id]; o != nil && s.take(o) {
		return o
	}
	return nil
}

// idle takes out what nobody has read since a moment, and returns what is to
// be closed.
func (u *unopened) idle(since time.Time) (all []*nodeFile) {
	for i := range u.shards {
		s := &u.shards[i]
		s.mu.Lock()
		for o := s.ends.prev; o != &s.ends; {
			before := o.prev
			if o.users == 0 && !o.used.After(since) && s.take(o) {
				all = append(all, o)
			}
			o = before
		}
		s.mu.Unlock()
	}
	return all
}

func (u *unopened) len() int {
	n := 0
	for i := range u.shards {
		s := &u.shards[i]
		s.mu.Lock()
		n += len(s.byID)
		s.mu.Unlock()
	}
	return n
}

func (s *unopenedShard) link(o *nodeFile) {
	o.prev, o.next = &s.ends, s.ends.next
	o.prev.next, o.next.prev = o, o
}

func (s *unopenedShard) unlink(o *nodeFile) {
	o.prev.next, o.next.prev = o.next, o.prev
	o.prev, o.next = nil, nil
}

// take takes a file out, and reports whether nobody uses it.
func (s *unopenedShard) take(o *nodeFile) bool {
	delete(s.byID, o.node.id)
	s.unlink(o)
	return o.users == 0
}

// fileOf returns the file of a node for one READ, which releaseUnopened ends.
func (f *fsys) fileOf(cancel <-chan struct{}, in *gofuse.ReadIn) (*nodeFile, gofuse.Status) {
	n := f.table.get(in.NodeId)
	switch {
	case n == nil || n.superseded.Load():
		f.closeUnopened(f.unopened.drop(in.NodeId))
		return nil, gofuse.Status(syscall.ESTALE)
	case n.dir:
		return nil, gofuse.EISDIR
	}
	if o := f.unopened.use(n.id); o != nil {
		return o, gofuse.OK
	}
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	e, file, status := f.openNode(ctx, n)
	if status != gofuse.OK {
		return nil, status
	}
	f.client.CountOpen(false)
	f.metrics.open(false, unasked)
	o, others := f.unopened.add(&nodeFile{
		openFile: openFile{node: n, file: file}, unsettled: n.mayHaveOtherPages(e.Ticket),
	})
	f.closeUnopened(others...)
	return o, gofuse.OK
}

// readUnopened is Read of a node that was not opened.
func (f *fsys) readUnopened(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	o, status := f.fileOf(cancel, in)
	if status != gofuse.OK {
		return nil, status
	}
	res, status := f.read(cancel, in, buf, &o.openFile)
	if status == gofuse.Status(syscall.ESTALE) {
		f.closeUnopened(f.unopened.drop(in.NodeId)) // the next READ looks anew
	}
	if o.unsettled {
		f.unopened.stale.add(o.node.id)
	}
	if p, ok := res.(*fileReply); ok {
		p.unopened = o // until the bytes have left
	} else {
		f.releaseUnopened(o)
	}
	return res, status
}

func (f *fsys) releaseUnopened(o *nodeFile) { f.closeUnopened(f.unopened.release(o)) }

func (f *fsys) closeUnopened(all ...*nodeFile) {
	for _, o := range all {
		if o != nil {
			f.closeFile(&o.openFile)
		}
	}
}

// runUnopened closes what nobody reads, and has the kernel drop the pages of
// what may still change, until ctx ends.
func (f *fsys) runUnopened(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			f.closeUnopened(f.unopened.idle(now.Add(-unopenedIdle))...)
		case <-f.unopened.stale.wake:
			for _, id := range f.unopened.stale.take() {
				// Nothing is lost if the kernel has forgotten the node.
				_ = f.pass.kernel.InodeNotify(id, 0, 0)
			}
		case <-ctx.Done():
			return
		}
	}
}

// stalePages are nodes of which the kernel is to drop the pages: those of
// versions that may still change. It is told behind the READ that brought
// them, from a goroutine of its own, for it waits for pages that are being
// read. There are at most as many as the kernel has nodes.
type stalePages struct {
	wake chan struct{}

	mu  sync.Mutex
	ids map[uint64]struct{}
}

func (p *stalePages) add(id uint64) {
	p.mu.Lock()
	p.ids[id] = struct{}{}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *stalePages) take() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]uint64, 0, len(p.ids))
	for id := range p.ids {
		all = append(all, id)
	}
	clear(p.ids)
	return all
}
