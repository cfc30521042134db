package blockio

import (
	"fmt"
	"os"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// smallSize is up to how many bytes a request gathers before it sends them:
// a read of at most this many leaves together with its END.
const smallSize = 16 << 10

// request is one request on the server, from the frame that brought it to its
// END. It is the Responder of a read. Requests are used again: run and what it
// calls own all fields from when it is given to a goroutine to its end.
type request struct {
	conn   *serverConn
	head   header
	handle *openFile     // a reference on it
	ticket *block.Ticket // of an OPEN or OPEN_READ
	size   int           // of the encoded ticket
	refuse error         // if not nil, the answer
	ranges []block.Extent
	read   ReadRequest // the range that is being read, and what holds for all
	ctx    *requestContext

	mark    uint64 // of a READ in place; 0 for none
	touches []Touch
	since   uint64 // of a RECALLS
	opened  uint32 // the handle that an OPEN or OPEN_READ has given out

	fd        *os.File // of an FD, from when the File gave it to its answer
	fdPayload descriptorPayload

	started time.Time
	allowed int64  // bytes of the ranges up to the one that is being read
	written int64  // bytes taken from the File
	pages   int64  // that the ranges before the one that is being read touch
	small   []byte // nil until there is something to gather
	crcs    []pageCRC
	goWork  func() // work, as a value that is made once
}

func newRequest() *request {
	r := &request{ctx: &requestContext{}}
	r.goWork = r.work
	return r
}

// reset makes r as newRequest made it.
func (r *request) reset() {
	ctx := r.ctx
	if !ctx.finish() {
		ctx = &requestContext{}
	}
	*r = request{small: r.small[:0], crcs: r.crcs[:0], ranges: r.ranges[:0], ctx: ctx, goWork: r.goWork}
}

// run does the request and answers it.
func (r *request) run() {
	c := r.conn
	defer c.release(r)
	if r.head.Op == opClose { // taken out of the table as the frame was read
		if r.handle != nil {
			c.unref(r.handle)
		}
		return
	}
	err := r.refuse
	if err == nil {
		err = r.do()
	}
	r.over()
	if r.fd != nil {
		var passed bool
		if passed, err = r.passDescriptor(err); passed {
			return
		}
	}
	a := r.answer(err)
	c.out.end(r.head.Priority, &a, len(c.slots) > 1)
}

// runNow does the request if it is a read of one frame, nobody else is
// sending, and the File has the bytes at hand. END leaves with what follows, or
// when push is called.
func (r *request) runNow() bool {
	if r.head.Op != opRead || r.refuse != nil {
		return false
	}
	f, ok := r.handle.file.(Prompt)
	e := r.ranges[0]
	if !ok || e.IsEmpty() || e.Length > MaxDataFrame || !r.conn.out.free() {
		return false
	}
	r.read.Extent, r.allowed = e, e.Length
	var err error
	if r.mark != 0 { // Place is asked before any byte is sent
		ok = r.placeNow()
	} else if e.Length <= smallSize {
		ok = r.readNow(f, e)
	} else if ok, err = f.SendNow(r.ctx, r.read, r); ok && err == nil && r.written != r.allowed {
		err = errs.E(errs.Internal, "read", "", fmt.Errorf("%d of %d bytes were sent", r.written, r.allowed))
	}
	if !ok {
		r.allowed = 0
		return false
	}
	r.over()
	a := r.answer(err)
	r.conn.out.endLater(r.head.Priority, &a)
	r.conn.release(r)
	return true
}

// readNow is runNow for few bytes.
func (r *request) readNow(f Prompt, e block.Extent) bool {
	page := e.Offset / block.PageSize
	if (e.End()-1)/block.PageSize != page {
		return false
	}
	r.gather()
	crc, ok := f.ReadNow(r.ctx, r.read, r.small[:e.Length])
	if ok {
		r.small, r.written = r.small[:e.Length], e.Length
		r.PageCRC(page, crc)
	}
	return ok
}

// over gives back what the request uses of its connection. From then on its ID
// is free.
func (r *request) over() {
	if r.handle != nil {
		r.conn.unref(r.handle)
	}
	r.conn.forget(r.head.RequestID)
}

// passDescriptor answers an FD that ended with err, and closes what it is to
// pass: the peer has its own by then. If it is false, the error is to be the
// answer.
func (r *request) passDescriptor(err error) (passed bool, _ error) {
	defer r.fd.Close() // was only read
	if err != nil {
		return false, err
	}
	h := r.endHeader()
	if err := r.answerDescriptor(&h); err != nil {
		return false, err
	}
	r.conn.srv.metrics.ended(&r.head, false, 0)
	return true, nil
}

func (r *request) endHeader() header {
	return header{
		RequestID: r.head.RequestID, Handle: r.head.Handle, Block: r.head.Block,
		PlacementEpoch: r.conn.srv.epoch.Load(), TraceID: r.head.TraceID,
	}
}

// answer is how the request ends: err is why it failed.
func (r *request) answer(err error) answer {
	a := answer{data: r.dataHeader(), small: r.small, head: r.endHeader(), end: endOf(err)}
	a.end.CRCs = r.crcs
	if r.opened != 0 {
		a.head.Handle = r.opened
	}
	r.conn.srv.metrics.ended(&r.head, a.end.Failed, r.written)
	return a
}

func (r *request) do() error {
	if err := r.ctx.Err(); err != nil { // before its turn came
		if r.ticket != nil {
			r.conn.giveRoom(r.size)
		}
		return errs.Wrap(err, "serve", "")
	}
	switch r.head.Op {
	case opOpen, opOpenRead:
		return r.open()
	case opRead, opReadV:
		return r.serve()
	case opFD:
		return r.descriptor()
	case opTouch:
		return r.conn.srv.toucher.Touch(r.ctx, r.touches)
	case opRecalls:
		return r.recalls()
	default:
		return errs.E(errs.Unsupported, "serve", "", fmt.Errorf("op %d is not offered here", r.head.Op))
	}
}

// open asks the Handler, reads what an OPEN_READ asks for and gives the file a
// handle. The handle exists only if all of it went well.
func (r *request) open() error {
	c := r.conn
	f, err := c.srv.handler.Open(r.ctx, r.ticket)
	if err != nil {
		c.giveRoom(r.size)
		return err
	}
	r.handle = &openFile{file: f, geometry: r.ticket.Geometry(), size: r.size, refs: 1} // run gives it back
	if r.head.Op == opOpenRead {
		if err := r.serve(); err != nil {
			c.giveRoom(r.size)
			return err
		}
	}
	r.opened = c.addFile(r.handle)
	return nil
}

// serve has the File answer one range after the other.
func (r *request) serve() error {
	if placed, err := r.place(); placed || err != nil {
		return err
	}
	for i, e := range r.ranges {
		if e.IsEmpty() {
			continue
		}
		r.read.Extent, r.read.Ahead = e, nil
		switch {
		case r.allowed > 0:
			if err := r.ctx.Err(); err != nil {
				return errs.Wrap(err, "send", "")
			}
		case i+1 < len(r.ranges):
			r.read.Ahead = r.ranges[i+1:]
		}
		r.allowed += e.Length
		if err := r.handle.file.Read(r.ctx, r.read, r); err != nil {
			return err
		}
		if r.written != r.allowed {
			return errs.E(errs.Internal, "read", "", fmt.Errorf("%d of %d bytes were sent", r.written, r.allowed))
		}
		first, end := r.handle.geometry.PageRange(e)
		r.pages += end - first
	}
	return nil
}

// gather makes room for small answers. A request has none while it waits for
// what it is to send, so that those that wait for long cost little.
func (r *request) gather() {
	if r.small == nil {
		r.small = make([]byte, 0, smallSize)
	}
}

// Write implements Responder.
func (r *request) Write(p []byte) error {
	if err := r.admit(int64(len(p))); err != nil {
		return err
	}
	r.gather()
	for len(p) > 0 {
		if len(r.small)+len(p) <= cap(r.small) {
			r.small = append(r.small, p...)
			return nil
		}
		n := min(len(p), MaxDataFrame-len(r.small))
		h := r.dataHeader()
		if err := r.conn.out.data(r.head.Priority, &h, r.small, p[:n]); err != nil {
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
	r.gather()
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
		if err := r.conn.out.data(r.head.Priority, &h, r.small, nil); err != nil {
			return err
		}
		r.small = r.small[:0]
	}
	for n > 0 {
		k := min(n, MaxDataFrame)
		if err := r.conn.out.dataFile(r.head.Priority, &h, f, off, int(k)); err != nil {
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
	c := pageCRC{Page: uint32(r.pages + page - e.Offset/block.PageSize), CRC: crc}
	if n := len(r.crcs); n > 0 && r.crcs[n-1].Page >= c.Page {
		return
	}
	r.crcs = append(r.crcs, c)
}

// admit counts n bytes that are about to be sent.
func (r *request) admit(n int64) error {
	if more := r.written + n - r.allowed; more > 0 {
		return errs.E(errs.Internal, "send", "", fmt.Errorf("%d bytes more than were asked for", more))
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
