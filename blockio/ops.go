package blockio

import (
	"context"
	"errors"
	"fmt"
	"os"

	"millrace/block"
	"millrace/internal/errs"
)

// ReadOptions goes with one read.
type ReadOptions struct {
	Priority       Priority
	PlacementEpoch uint64 // by which the worker was chosen; 0 is unknown
	TraceID        uint64 // 0 is none
	CachedOnly     bool   // fail with errs.NotCached rather than fetch
	Replica        bool   // have the worker keep a replica, filled from the file's owner
	ReadThrough    bool   // asked by a worker that fills a replica
	// Checked fails with errs.Corrupt, once the bytes have arrived, if not all
	// pages that the read touches are whole and came with their checksum.
	Checked bool
}

// header returns the header of a request that reads.
func (o *ReadOptions) header(op op, handle uint32, payload []byte) header {
	h := header{
		Op: op, Priority: o.Priority, Handle: handle, Block: noBlock,
		PlacementEpoch: o.PlacementEpoch, TraceID: o.TraceID, Length: uint32(len(payload)),
	}
	if o.CachedOnly {
		h.Flags |= flagCachedOnly
	}
	if o.Replica {
		h.Flags |= flagReplica
	}
	if o.ReadThrough {
		h.Flags |= flagReadThrough
	}
	return h
}

// Open registers a ticket and returns its handle, which is open until
// CloseHandle or the connection's end. The errors are the server's, and those
// of ReadAt.
func (c *Conn) Open(ctx context.Context, t *block.Ticket) (uint32, error) {
	payload, err := appendTicket(nil, t)
	if err != nil {
		return 0, err
	}
	k := c.newCall()
	k.opens, k.length = true, t.Length
	head := header{Op: opOpen, Block: noBlock, Length: uint32(len(payload))}
	if err := c.do(ctx, "open", k, &head, payload); err != nil {
		return 0, err
	}
	handle := k.handle
	err = k.end.err("open", c.addr)
	c.recycle(k)
	if err != nil {
		return 0, err
	}
	return handle, nil
}

// OpenRead is Open and ReadAt in one round trip, for files that are read with
// one request: p may not be longer than Hello().MaxRead, and may be empty. It
// succeeds as a whole or not at all; after an error there is no handle and p
// is worth nothing. Without FeatureOpenRead in Hello it is errs.Unsupported.
func (c *Conn) OpenRead(ctx context.Context, t *block.Ticket, p []byte, off int64, o ReadOptions) (handle uint32, err error) {
	if err := c.offers(FeatureOpenRead, "open"); err != nil {
		return 0, err
	}
	if off < 0 || int64(len(p)) > t.Length-off || len(p) > c.maxRead() {
		return 0, errs.E(errs.Invalid, "open", t.Path, fmt.Errorf("%d bytes at %d of a file of %d in one request", len(p), off, t.Length))
	}
	payload := appendReadPayload(make([]byte, 0, 512), readPayload{Offset: uint64(off), Length: uint32(len(p))})
	if payload, err = appendTicket(payload, t); err != nil {
		return 0, err
	}
	k := c.newCall()
	k.opens, k.length, k.checked = true, t.Length, o.Checked
	k.into(p, off)
	head := o.header(opOpenRead, 0, payload)
	if err := c.do(ctx, "open", k, &head, payload); err != nil {
		return 0, err
	}
	handle, err = k.handle, k.end.err("open", c.addr)
	if err == nil {
		if err = k.corrupt; err != nil {
			c.CloseHandle(handle)
		}
	}
	c.recycle(k)
	if err != nil {
		return 0, err
	}
	return handle, nil
}

// appendTicket appends the encoding of t.
func appendTicket(b []byte, t *block.Ticket) ([]byte, error) {
	payload, err := t.AppendBinary(b)
	if err != nil {
		return nil, errs.E(errs.Invalid, "open", t.Path, err)
	}
	if n := len(payload) - len(b); n > block.MaxTicketSize {
		return nil, errs.E(errs.Invalid, "open", t.Path, fmt.Errorf("a ticket of %d bytes is longer than %d", n, block.MaxTicketSize))
	}
	return payload, nil
}

// CloseHandle gives a handle back and returns at once. Reads under way end as
// if it were open; unknown handles are ignored.
func (c *Conn) CloseHandle(handle uint32) {
	c.mu.Lock()
	_, open := c.lengths[handle]
	delete(c.lengths, handle)
	c.mu.Unlock()
	if open {
		c.out.send(&header{Op: opClose, Handle: handle, Block: noBlock}, nil)
	}
}

// ReadAt fills p with the file's bytes at off and returns len(p), or fewer
// and an error. p must lie in the file: a read behind its end is errs.Invalid.
// Reads longer than the server takes at once are done piece by piece.
//
// ReadAt returns as soon as ctx ends, with errs.Canceled or errs.Timeout; p is
// the caller's again, and the connection goes on. Bytes of pages that do not
// match their checksum are errs.Corrupt. If the connection is or gets lost:
// errs.Unavailable.
func (c *Conn) ReadAt(ctx context.Context, handle uint32, p []byte, off int64, o ReadOptions) (int, error) {
	done := 0
	for {
		piece := p[done:]
		if limit := c.maxRead(); len(piece) > limit {
			// Pages are not split, so that each piece can be checked.
			end := (off + int64(done+limit)) / block.PageSize * block.PageSize
			if n := int(end - off - int64(done)); n > 0 {
				limit = n
			}
			piece = piece[:limit]
		}
		n, err := c.read(ctx, handle, piece, off+int64(done), &o)
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// maxRead returns the most bytes of one request.
func (c *Conn) maxRead() int { return int(min(c.hello.MaxRead, MaxReadLength)) }

func (c *Conn) read(ctx context.Context, handle uint32, p []byte, off int64, o *ReadOptions) (int, error) {
	length, err := c.lengthOf(handle)
	switch {
	case err != nil:
		return 0, err
	case off < 0 || int64(len(p)) > length-off:
		return 0, errs.E(errs.Invalid, "read", c.addr, fmt.Errorf("%d bytes at %d of a file of %d", len(p), off, length))
	case len(p) == 0:
		return 0, nil
	}
	k := c.newCall()
	k.length, k.checked = length, o.Checked
	k.into(p, off)
	var room [readPayloadSize]byte
	payload := appendReadPayload(room[:0], readPayload{Offset: uint64(off), Length: uint32(len(p))})
	head := o.header(opRead, handle, payload)
	if err := c.do(ctx, "read", k, &head, payload); err != nil {
		return 0, err
	}
	n, err := k.outcome(c.addr)
	c.recycle(k)
	return n, err
}

// lengthOf returns the length of an open file.
func (c *Conn) lengthOf(handle uint32) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	length, open := c.lengths[handle]
	switch {
	case c.err != nil:
		return 0, c.err
	case !open:
		return 0, errs.E(errs.Invalid, "use", c.addr, fmt.Errorf("handle %d is not open", handle))
	}
	return length, nil
}

// outcome returns how many bytes of a read arrived, and what was wrong.
func (k *call) outcome(addr string) (int, error) {
	if err := k.end.err("read", addr); err != nil {
		return k.got, err
	}
	if k.corrupt != nil {
		return 0, k.corrupt
	}
	return k.got, nil
}

// ReadV fills the buffers of all ranges and returns the sum of their lengths,
// or fewer and an error: how many bytes at the start of the first buffers,
// taken one after the other, hold what the server sent. Everything else is as
// in ReadAt. The ranges may be in any order and overlap in the file, their
// buffers may not overlap. Up to MaxRanges of them and Hello().MaxRead bytes
// are one request; more are several, one after the other. The slice is not
// used after ReadV has returned. Without FeatureReadV in Hello it is
// errs.Unsupported.
func (c *Conn) ReadV(ctx context.Context, handle uint32, ranges []Range, o ReadOptions) (int, error) {
	if err := c.offers(FeatureReadV, "read"); err != nil {
		return 0, err
	}
	length, err := c.lengthOf(handle)
	if err != nil {
		return 0, err
	}
	for _, r := range ranges {
		if r.Off < 0 || int64(len(r.Buf)) > length-r.Off {
			return 0, errs.E(errs.Invalid, "read", c.addr, fmt.Errorf("%d bytes at %d of a file of %d", len(r.Buf), r.Off, length))
		}
	}
	done := 0
	for len(ranges) > 0 {
		count, sum := c.fitting(ranges)
		var n int
		if count == 0 { // the first one alone is too long
			count = 1
			n, err = c.ReadAt(ctx, handle, ranges[0].Buf, ranges[0].Off, o)
		} else if sum > 0 {
			n, err = c.readV(ctx, handle, ranges[:count], sum, length, &o)
		}
		done += n
		if err != nil {
			return done, err
		}
		ranges = ranges[count:]
	}
	return done, nil
}

// fitting returns how many ranges, and of how many bytes, are one request.
func (c *Conn) fitting(ranges []Range) (count, sum int) {
	limit := c.maxRead()
	for count < min(len(ranges), MaxRanges) && len(ranges[count].Buf) <= limit-sum {
		sum += len(ranges[count].Buf)
		count++
	}
	return count, sum
}

func (c *Conn) readV(ctx context.Context, handle uint32, ranges []Range, sum int, length int64, o *ReadOptions) (int, error) {
	k := c.newCall()
	k.length, k.checked, k.ranges, k.want = length, o.Checked, ranges, sum
	var room [MaxRanges * readPayloadSize]byte
	payload := room[:0]
	for _, r := range ranges {
		payload = appendReadPayload(payload, readPayload{Offset: uint64(r.Off), Length: uint32(len(r.Buf))})
	}
	head := o.header(opReadV, handle, payload)
	if err := c.do(ctx, "read", k, &head, payload); err != nil {
		return 0, err
	}
	n, err := k.outcome(c.addr)
	c.recycle(k)
	return n, err
}

// Descriptor returns a descriptor of the file that holds an open file's bytes
// on this host, and where in it they begin; it has all of them. It is open for
// reading alone, is the caller's, who closes it, and stays good after the
// handle and the connection are closed.
//
// A file that is not cached whole is errs.NotCached; with o.Fill, only if it is
// longer than a page or cannot be fetched in time. Without FeatureFD in
// Hello, that is on TCP, it is errs.Unsupported, as for files that are not to
// be handed out. When this process can have no more descriptors it is
// errs.Unavailable.
func (c *Conn) Descriptor(ctx context.Context, handle uint32, o DescriptorOptions) (f *os.File, base int64, err error) {
	if err := c.offers(FeatureFD, "pass a descriptor"); err != nil {
		return nil, 0, err
	}
	f, base, _, err = c.askFD(ctx, handle, o, false)
	return f, base, err
}

// askFD asks for a descriptor of a file that is whole, or of one to read in
// place, which has a mark.
func (c *Conn) askFD(ctx context.Context, handle uint32, o DescriptorOptions, inPlace bool) (f *os.File, base int64, mark uint64, err error) {
	length, err := c.lengthOf(handle)
	if err != nil {
		return nil, 0, 0, err
	}
	k := c.newCall()
	k.descriptor, k.inPlace, k.length, k.want = true, inPlace, length, descriptorSize
	head := header{Op: opFD, Priority: o.Priority, Handle: handle, Block: noBlock}
	if o.Fill {
		head.Flags |= flagFill
	}
	if inPlace {
		head.Flags |= flagInPlace
		k.want += markSize
	}
	if err := c.do(ctx, "pass a descriptor", k, &head, nil); err != nil {
		return nil, 0, 0, err
	}
	f, base, mark, err = k.file, k.base, k.mark, k.end.err("pass a descriptor", c.addr)
	if err == nil && k.refused != nil {
		err = errs.Wrap(k.refused, "pass a descriptor", c.addr)
	}
	c.recycle(k)
	return f, base, mark, err
}

// Touch tells the server how often files were used through descriptors, in as
// many requests as it takes. The same file may come more than once. Without
// FeatureTouch in Hello it is errs.Unsupported.
func (c *Conn) Touch(ctx context.Context, touches []Touch) error {
	if err := c.offers(FeatureTouch, "touch"); err != nil {
		return err
	}
	for len(touches) > 0 {
		n := min(len(touches), maxTouches)
		payload := make([]byte, 0, n*touchSize)
		for i := range touches[:n] {
			payload = appendTouch(payload, &touches[i])
		}
		touches = touches[n:]
		k := c.newCall()
		head := header{Op: opTouch, Block: noBlock, Length: uint32(len(payload))}
		if err := c.do(ctx, "touch", k, &head, payload); err != nil {
			return err
		}
		err := k.end.err("touch", c.addr)
		c.recycle(k)
		if err != nil {
			return err
		}
	}
	return nil
}

// offers reports whether the server offers a feature.
func (c *Conn) offers(feature uint64, op string) error {
	if c.hello.Features&feature != 0 {
		return nil
	}
	return errs.E(errs.Unsupported, op, c.addr, errors.New("not offered on this connection"))
}
