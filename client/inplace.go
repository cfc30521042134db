package client

import (
	"context"
	"errors"
	"os"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

// filling is a descriptor of the local file into which a worker of this host
// fetches a version, so that bytes may be missing. Reads with its mark are told
// which are there, and those stay for as long as it is open.
type filling struct {
	Descriptor
	worker block.WorkerID
	mark   uint64
}

// ReadInPlace is ReadAtContext that may leave the bytes where they are: if d
// is not nil, the n bytes at off of the version are in it, and p was not
// filled. d is f's: it is good until f is closed, it may lack bytes that no
// read told of, and who reads from it does not count that.
func (f *File) ReadInPlace(ctx context.Context, p []byte, off int64) (n int, d *Descriptor, err error) {
	n, at, err := f.read(ctx, p, off, true)
	if at != nil {
		d = &at.Descriptor
	}
	return n, d, err
}

// placePiece fills p with bytes of one block, or, with leave, returns the local
// file that has them.
func (f *File) placePiece(ctx context.Context, until time.Time, p []byte, off int64, leave bool) (*filling, error) {
	r := piece{
		key: block.Key{File: f.entry.FileID, Index: uint32(f.entry.geometry().BlockOf(off))},
		p:   p, off: off, in: f.filling.Load(),
	}
	switch err := f.readPiece(ctx, until, &r); {
	case err != nil || !r.inPlace:
		return nil, err
	case leave:
		return r.in, nil
	}
	if n, _ := r.in.File.ReadAt(p, r.in.Base+off); n == len(p) {
		return nil, nil //nolint:nilnil // p is filled
	}
	// The disk fails, or f was closed: the worker finds out, or reads anew.
	r.in, r.inPlace = nil, false
	return nil, f.readPiece(ctx, until, &r)
}

// seekFilling asks for the local file after bytes came from a worker of this
// host, beside the reads. A small file is not worth the question.
func (f *File) seekFilling() {
	if f.entry.Size <= smallFile || f.filling.Load() != nil || f.local.Load() != nil {
		return
	}
	r := f.routed.Load()
	if r == nil || r.to == nil || !f.c.workers.sameHost(r.to) {
		return
	}
	now, ask := time.Now(), f.askFilling.Load()
	if now.UnixNano() < ask || !f.askFilling.CompareAndSwap(ask, now.Add(askAgain).UnixNano()) {
		return
	}
	f.c.background(func(ctx context.Context) { f.findFilling(ctx, r.to) })
}

// findFilling asks the worker. What it refuses is asked for again later.
func (f *File) findFilling(ctx context.Context, w *member) {
	s := f.c.descriptors
	if !s.lend() {
		f.askFilling.Store(time.Now().Add(askAgainLate).UnixNano())
		return
	}
	within := f.c.attempts.begin(ctx, time.Now().Add(askTimeout))
	defer within.end()
	d := &filling{worker: w.id, Descriptor: Descriptor{of: s, Length: f.entry.Size}}
	var err error
	d.File, d.Base, d.mark, err = f.c.workers.partialDescriptor(within, w, f.ticket.Load()) //nolint:contextcheck // within is made of ctx
	if err != nil {
		s.giveBack()
		if errors.Is(err, errs.Unsupported) {
			f.askFilling.Store(time.Now().Add(askAgainLate).UnixNano())
		}
		return
	}
	if !f.filling.CompareAndSwap(nil, d) {
		d.leave()
	}
	if f.closed.Load() {
		f.leaveFilling()
	}
}

// leaveFilling closes the local file, once no read will come.
func (f *File) leaveFilling() {
	if d := f.filling.Swap(nil); d != nil {
		d.leave()
	}
}

func (d *filling) leave() {
	_ = d.File.Close() // was only read
	d.of.giveBack()
}

// lend takes the place of a descriptor that s does not keep; giveBack must
// follow if it is true.
func (s *descriptors) lend() bool {
	if s.limit == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.makeRoom() {
		return false
	}
	s.asked++
	return true
}

func (s *descriptors) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked--
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
