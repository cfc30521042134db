package client

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

// placeWorth is from how many bytes on a read is worth it: the copies that it
// saves are more than what it costs to keep a file from being evicted.
const placeWorth = 64 << 10

// Filling is a descriptor of the local file into which a worker of this host
// fetches a version, so that bytes may be missing. Reads with its mark are told
// which are there, and those stay for as long as it is open.
type Filling struct {
	file   *os.File
	base   int64
	length int64
	worker block.WorkerID
	mark   uint64
	of     *descriptors

	users atomic.Int32 // the File that has it, and reads: the last one closes it
	used  atomic.Int64 // when a read last used it, in Unix ns
}

// FD returns the number of the descriptor, good until Close.
func (d *Filling) FD() int { return int(d.file.Fd()) }

// Extent says which bytes of the local file are the version.
func (d *Filling) Extent() (base, length int64) { return d.base, d.length }

// IsFresh is false: the file's worker is asked for each read.
func (d *Filling) IsFresh() bool { return false }

// Count does nothing: the worker counts what it tells of.
func (d *Filling) Count(int64) {}

// Close ends one use. It is called once for each.
func (d *Filling) Close() error {
	if d.users.Add(-1) > 0 {
		return nil
	}
	d.of.giveBack(d)
	return d.file.Close()
}

// ReadInPlace is ReadAtContext that may leave the bytes where they are: if d
// is not nil, the n bytes at off of the version are in it, and p was not
// filled. It may lack bytes that no read told of. The caller closes it.
func (f *File) ReadInPlace(ctx context.Context, p []byte, off int64) (n int, d *Filling, err error) {
	return f.read(ctx, p, off, true)
}

// placePiece fills p with bytes of one block, or, with leave, may return the
// local file that has them, in use.
func (f *File) placePiece(ctx context.Context, until time.Time, p []byte, off int64, leave bool) (*Filling, error) {
	r := piece{
		key: block.Key{File: f.entry.FileID, Index: uint32(f.entry.geometry().BlockOf(off))},
		p:   p, off: off,
	}
	if len(p) >= placeWorth {
		r.in = f.useFilling()
	}
	err := f.readPiece(ctx, until, &r)
	in, inPlace := r.in, r.inPlace
	if err == nil && inPlace && leave {
		return in, nil
	}
	if in != nil {
		defer in.Close() // was only read
	}
	if err != nil || !inPlace {
		return nil, err
	}
	if n, _ := in.file.ReadAt(p, in.base+off); n == len(p) {
		return nil, nil //nolint:nilnil // p is filled
	}
	r.in, r.inPlace = nil, false // the disk fails: the worker finds out
	return nil, f.readPiece(ctx, until, &r)
}

// useFilling returns the local file with one use more; nil if there is none.
func (f *File) useFilling() *Filling {
	d := f.filling.Load()
	if d == nil {
		return nil
	}
	for n := d.users.Load(); n > 0; n = d.users.Load() {
		if d.users.CompareAndSwap(n, n+1) {
			d.used.Store(d.of.clock.now())
			return d
		}
	}
	return nil // it was closed at this moment
}

// seekFilling asks for the local file after n bytes came from a worker of this
// host, beside the reads. A small file is not worth the question.
func (f *File) seekFilling(n int) {
	if n < placeWorth || f.entry.Size <= smallFile || f.filling.Load() != nil || f.local.Load() != nil {
		return
	}
	r := f.routed.Load()
	if r == nil || r.to == nil || !f.c.workers.sameHost(r.to) {
		return
	}
	now, ask := f.c.clock.now(), f.askFilling.Load()
	if now < ask || !f.askFilling.CompareAndSwap(ask, now+int64(askAgain)) {
		return
	}
	f.c.background(func(ctx context.Context) { f.findFilling(ctx, r.to) })
}

// findFilling asks the worker. What it refuses is asked for again later.
func (f *File) findFilling(ctx context.Context, w *member) {
	s := f.c.descriptors
	d := &Filling{of: s, worker: w.id, length: f.entry.Size}
	if !s.lend(d, f) {
		f.askFilling.Store(f.c.clock.now() + int64(askAgainLate))
		return
	}
	within := f.c.attempts.begin(ctx, time.Now().Add(askTimeout))
	defer within.end()
	var err error
	d.file, d.base, d.mark, err = f.c.workers.partialDescriptor(within, w, f.ticket.Load()) //nolint:contextcheck // within is made of ctx
	if err != nil {
		s.giveBack(d)
		if errors.Is(err, errs.Unsupported) {
			f.askFilling.Store(f.c.clock.now() + int64(askAgainLate))
		}
		return
	}
	d.users.Store(1)
	d.used.Store(s.clock.now())
	if !f.filling.CompareAndSwap(nil, d) {
		_ = d.Close() // was not used
	}
	if f.closed.Load() {
		f.leaveFilling()
	}
}

// leaveFilling gives the local file back; reads that use it end as if it were
// there.
func (f *File) leaveFilling() {
	if d := f.filling.Swap(nil); d != nil {
		_ = d.Close() // was only read
	}
}

// lend takes the place of a descriptor that s does not share, of one File;
// giveBack must follow if it is true.
func (s *descriptors) lend(d *Filling, f *File) bool {
	if s.limit == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.makeRoom() {
		return false
	}
	s.asked++
	s.lent[d] = f
	return true
}

func (s *descriptors) giveBack(d *Filling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked--
	delete(s.lent, d)
}

// endLoans closes the local files of Files that have not read by them for a
// while: as long as they are open, nothing of them can be evicted.
func (s *descriptors) endLoans(now int64) {
	for _, f := range s.idleLoans(now) {
		f.leaveFilling()
	}
}

func (s *descriptors) idleLoans(now int64) (idle []*File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, f := range s.lent {
		if f.filling.Load() == d && now-d.used.Load() >= int64(descriptorIdle) {
			idle = append(idle, f)
		}
	}
	return idle
}

// partialDescriptor asks the worker, which is on this host, for the local file
// as it is now.
func (w *workers) partialDescriptor(ctx context.Context, m *member, t *block.Ticket) (f *os.File, base int64, mark uint64, err error) {
	x, err := w.get(m)
	if err != nil {
		return nil, 0, 0, err
	}
	c, err := x.slot(t).get(ctx, w, m)
	if err != nil {
		return nil, 0, 0, err
	}
	if !c.places {
		return nil, 0, 0, errs.E(errs.Unsupported, "", "", errPassesNone)
	}
	h, err := c.acquire(ctx, t, nil)
	if err != nil {
		return nil, 0, 0, err
	}
	defer c.release(h)
	return c.PartialDescriptor(ctx, h.id)
}

// readInPlace is readAt for a read whose bytes may be in the local file r.in.
func (c *dataConn) readInPlace(ctx context.Context, t *block.Ticket, r *piece, o blockio.ReadOptions) (bool, error) {
	h, err := c.acquire(ctx, t, nil)
	if err != nil {
		return false, err
	}
	defer c.release(h)
	return c.ReadInPlace(ctx, h.id, r.p, r.off, r.in.mark, o)
}
