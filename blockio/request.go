package blockio

import (
	"fmt"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// smallSize is up to how many bytes a request gathers before it sends them:
// a read of at most this many leaves together with its END.
const smallSize = 16 << 10

// request is one request on the server, from the frame that brought it to its
// END. It is the Responder of a read. Requests are used again: run and what it
// calls own all fields from the start of its goroutine to its end.
type request struct {
	conn   *serverConn
	head   header
	handle *openFile     // of a READ or CLOSE
	ticket *block.Ticket // of an OPEN
	size   int           // of the encoded ticket
	refuse error         // if not nil, the answer
	read   ReadRequest
	ctx    *requestContext

	started time.Time
	written int64 // bytes taken from the File
	small   []byte
	crcs    []pageCRC
	goRun   func() // run, as a value that is made once
}

func newRequest() *request {
	r := &request{small: make([]byte, 0, smallSize), ctx: &requestContext{}}
	r.goRun = r.run
	return r
}

// reset makes r as newRequest made it.
func (r *request) reset() {
	ctx := r.ctx
	if !ctx.finish() {
		ctx = &requestContext{}
	}
	*r = request{small: r.small[:0], crcs: r.crcs[:0], ctx: ctx, goRun: r.goRun}
}

// run does the request and answers it.
func (r *request) run() {
	c := r.conn
	defer c.release(r)
	err := r.refuse
	if err == nil {
		err = r.do()
	}
	if r.handle != nil {
		c.unref(r.handle)
	}
	if r.head.Op == opClose {
		return
	}
	c.forget(r.head.RequestID)
	e := endOf(err)
	e.CRCs = r.crcs
	c.srv.metrics.ended(&r.head, e.Failed, r.written)
	end := header{
		RequestID: r.head.RequestID, Handle: r.head.Handle, Block: r.head.Block,
		PlacementEpoch: c.srv.epoch.Load(), TraceID: r.head.TraceID,
	}
	c.out.end(&end, r.small, &e, len(c.slots) > 1)
}

func (r *request) do() error {
	switch r.head.Op {
	case opOpen:
		return r.open()
	case opRead:
		err := r.handle.file.Read(r.ctx, r.read, r)
		if err == nil && r.written != r.read.Extent.Length {
			return errs.E(errs.Internal, "read", "", fmt.Errorf("%d of %d bytes were sent", r.written, r.read.Extent.Length))
		}
		return err
	case opClose:
		return nil // taken out of the table as the frame was read
	default:
		return errs.E(errs.Unsupported, "serve", "", fmt.Errorf("op %d is not offered by this release", r.head.Op))
	}
}

// open asks the Handler and gives the file a handle.
func (r *request) open() error {
	f, err := r.conn.srv.handler.Open(r.ctx, r.ticket)
	if err != nil {
		r.conn.giveRoom(r.size)
		return err
	}
	r.head.Handle = r.conn.addFile(f, r.ticket.Geometry(), r.size)
	return nil
}

// Write implements Responder.
func (r *request) Write(p []byte) error {
	if err := r.admit(int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		if len(r.small)+len(p) <= cap(r.small) {
			r.small = append(r.small, p...)
			return nil
		}
		n := min(len(p), MaxDataFrame-len(r.small))
		h := r.dataHeader()
		if err := r.conn.out.data(&h, r.small, p[:n]); err != nil {
			return err
		}
		r.small, p = r.small[:0], p[n:]
		if err := r.ctx.Err(); err != nil && len(p) > 0 {
			return errs.Wrap(err, "send", "")
		}
	}
	return nil
}

// SendFile implements Responder.
func (r *request) SendFile(f FileSection, off, n int64) error {
	if n <= int64(cap(r.small)-len(r.small)) {
		return r.gatherFile(f, off, int(n))
	}
	if !r.conn.out.canSendFile(f) {
		return r.copyFile(f, off, n)
	}
	if err := r.admit(n); err != nil {
		return err
	}
	h := r.dataHeader()
	if len(r.small) > 0 {
		if err := r.conn.out.data(&h, r.small, nil); err != nil {
			return err
		}
		r.small = r.small[:0]
	}
	for n > 0 {
		k := min(n, MaxDataFrame)
		if err := r.conn.out.dataFile(&h, f, off, int(k)); err != nil {
			return err
		}
		if err := r.ctx.Err(); err != nil && n > k {
			return errs.Wrap(err, "send", "")
		}
		off, n = off+k, n-k
	}
	return nil
}

// gatherFile reads few bytes to where they leave together with END.
func (r *request) gatherFile(f FileSection, off int64, n int) error {
	if err := r.admit(int64(n)); err != nil {
		return err
	}
	k := len(r.small)
	got, err := f.ReadAt(r.small[k:k+n], off)
	if got < n {
		r.written -= int64(n)
		return errs.E(errs.KindOf(err), "read", "", err)
	}
	r.small = r.small[:k+n]
	return nil
}

// copyFile is SendFile for connections that cannot send descriptors.
func (r *request) copyFile(f FileSection, off, n int64) error {
	buf := r.conn.srv.buffers.Get().(*[copySize]byte) //nolint:forcetypeassert // the pool holds nothing else
	defer r.conn.srv.buffers.Put(buf)
	for n > 0 {
		k := min(n, copySize)
		if got, err := f.ReadAt(buf[:k], off); int64(got) < k {
			return errs.E(errs.KindOf(err), "read", "", err)
		}
		if err := r.Write(buf[:k]); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// PageCRC implements Responder.
func (r *request) PageCRC(page int64, crc uint32) {
	e := r.read.Extent
	p := r.handle.geometry.Page(page)
	if p.IsEmpty() || p.Offset < e.Offset || p.End() > e.End() || len(r.crcs) == maxPageCRCs {
		return
	}
	c := pageCRC{Page: uint32(page - e.Offset/block.PageSize), CRC: crc}
	if n := len(r.crcs); n > 0 && r.crcs[n-1].Page >= c.Page {
		return
	}
	r.crcs = append(r.crcs, c)
}

// admit counts n bytes that are about to be sent.
func (r *request) admit(n int64) error {
	if r.written+n > r.read.Extent.Length {
		return errs.E(errs.Internal, "send", "", fmt.Errorf("%d bytes more than the %d that were asked for", r.written+n-r.read.Extent.Length, r.read.Extent.Length))
	}
	if err := r.ctx.Err(); err != nil {
		return errs.Wrap(err, "send", "")
	}
	r.written += n
	return nil
}

func (r *request) dataHeader() header {
	return header{Op: opData, RequestID: r.head.RequestID, Handle: r.head.Handle, Block: r.head.Block, TraceID: r.head.TraceID}
}
