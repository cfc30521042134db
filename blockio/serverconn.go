package blockio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// readBufferSize is the server's room per connection for frames that arrive.
const readBufferSize = 16 << 10

// keepIdle bounds the goroutines of a connection that wait for its next
// request: a new one has to grow its stack first, which costs a small read a
// tenth of its time.
const keepIdle = 8

// serverConn is one connection on the server. The goroutine of serve reads
// frames and answers what is at hand; each other request has a goroutine of its
// own while it runs. slots counts the requests, wg the goroutines, of which a
// few wait for the next request.
type serverConn struct {
	srv   *Server
	nc    net.Conn
	in    *bufio.Reader
	out   *frameWriter
	slots chan struct{}
	next  chan *request // to a goroutine that waits; closed when none will come
	idle  atomic.Int32  // goroutines that wait, or are about to
	wg    sync.WaitGroup

	features uint64 // that both sides offer
	held     bool   // answers wait for the reader, who gathered them, to send them

	mu          sync.Mutex
	requests    map[uint64]*request // in flight, by ID
	files       map[uint32]*openFile
	lastHandle  uint32
	opening     int // OPENs in flight
	ticketBytes int // of files and of OPENs in flight
}

// openFile is one handle. refs counts the table and the reads under way; the
// last one closes the file.
type openFile struct {
	file     File
	geometry block.Geometry
	size     int // of the encoded ticket
	refs     int // under the connection's lock
}

// serve runs the connection until it ends, by the peer, by an error or, after
// a drain, by ctx. The error says why; nil is a peer that hung up.
func (c *serverConn) serve(ctx context.Context) error {
	defer c.closeAll()
	stop := context.AfterFunc(ctx, func() {
		// Wakes the reader, also one that sends answers to who does not receive.
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.DrainTimeout.Std()))
	})
	defer stop()
	if err := c.handshake(ctx); err != nil {
		return err
	}
	err := c.readFrames(ctx)
	close(c.next)
	if ctx.Err() != nil {
		c.drain()
		return nil
	}
	return err
}

// drain lets requests in flight end by themselves for a while.
func (c *serverConn) drain() {
	t := time.AfterFunc(c.srv.cfg.DrainTimeout.Std(), func() {
		c.cancelAll()
		_ = c.nc.Close() // also ends a send to a peer that does not receive
	})
	defer t.Stop()
	c.wg.Wait()
}

// closeAll ends the connection: requests, socket, files.
func (c *serverConn) closeAll() {
	c.cancelAll()
	_ = c.nc.Close() // nothing was promised that a failure could break
	c.wg.Wait()
	for _, f := range c.files { // no goroutine is left that could change it
		c.closeFile(f)
	}
}

func (c *serverConn) cancelAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		r.ctx.cancel(context.Canceled)
	}
}

// handshake reads the client's hello and answers it.
func (c *serverConn) handshake(ctx context.Context) error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.cfg.HandshakeTimeout.Std())); err != nil {
		return err
	}
	if ctx.Err() != nil { // behind the deadline's setting, as in readFrames
		return ctx.Err()
	}
	h, err := readClientHello(c.in)
	if err != nil {
		return err
	}
	c.features = h.Features & c.offer()
	answer := c.srv.hello(c.features)
	if h.Least > Version || h.Most < Version {
		answer = refusal(errs.Unsupported, fmt.Sprintf("versions %d to %d of the data plane are not spoken here, %d is", h.Least, h.Most, Version))
	}
	if _, err := c.nc.Write(encodeServerHello(&answer)); err != nil {
		return err
	}
	if answer.Failed {
		return errs.E(answer.Kind, "handshake", "", errors.New(answer.Text))
	}
	return c.nc.SetDeadline(time.Time{})
}

// offer returns the features that this connection can have.
func (c *serverConn) offer() uint64 {
	features := FeatureReadV | FeatureOpenRead
	if c.srv.toucher != nil {
		features |= FeatureTouch
	}
	if c.out.canSendDescriptors() && c.srv.mayHaveDescriptors(c.nc) {
		features |= FeatureFD | FeatureInPlace
		if c.srv.recaller != nil {
			features |= FeatureRecalls
		}
	}
	return features
}

// readFrames reads frames and starts their requests until ctx or the
// connection ends.
func (c *serverConn) readFrames(ctx context.Context) error {
	idle := c.srv.cfg.IdleTimeout.Std()
	var deadline time.Time
	for {
		// The timer is touched at most each eighth of the time.
		if d := time.Now().Add(idle + idle/8); d.Sub(deadline) > idle/8 {
			deadline = d
			if err := c.nc.SetReadDeadline(d); err != nil {
				return err
			}
		}
		// Behind the deadline's setting, so that the one that ctx's end sets
		// is not lost.
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b, err := c.in.Peek(headerSize)
		switch {
		case errors.Is(err, io.EOF) && len(b) == 0:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && len(b) == 0 && c.busy():
			continue // it waits for us
		case err != nil:
			return err
		}
		h, err := parseHeader(b)
		if err != nil {
			return err
		}
		_, _ = c.in.Discard(headerSize) // was peeked
		if err := c.frame(ctx, &h); err != nil {
			return err
		}
	}
}

// busy reports whether requests are in flight.
func (c *serverConn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.requests) > 0
}

// frame handles one frame whose header was read. An error ends the connection.
func (c *serverConn) frame(ctx context.Context, h *header) error {
	if h.Op.toClient() {
		return fmt.Errorf("%w: op %d from a client", errProtocol, h.Op)
	}
	if h.Op == opCancel {
		c.cancel(h.RequestID)
		return nil
	}
	arrived := time.Now() // the deadline also counts while it waits for its turn
	select {
	case c.slots <- struct{}{}:
	default:
		c.push()
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r := c.srv.requests.Get().(*request) //nolint:forcetypeassert // the pool holds nothing else
	r.conn, r.head, r.started = c, *h, arrived
	if err := c.prepare(ctx, r); err != nil {
		r.reset()
		c.srv.requests.Put(r)
		return err
	}
	if r.runNow() { //nolint:contextcheck // a request has its own
		c.held = true
		return nil
	}
	select {
	case c.next <- r:
	default:
		c.wg.Add(1)
		go r.goWork()
	}
	return nil
}

// push sends the answers that wait. The reader calls it before it waits itself.
func (c *serverConn) push() {
	if c.held {
		c.held = false
		c.out.push()
	}
}

// work is a goroutine that runs the request and then others, for as long as
// few wait for them.
func (r *request) work() {
	c := r.conn
	defer c.wg.Done()
	for ok := true; ok; {
		r.run()
		if c.idle.Add(1) > keepIdle {
			ok = false
		} else {
			r, ok = <-c.next
		}
		c.idle.Add(-1)
	}
}

// prepare reads the request's payload and decides what is known without
// waiting: whether it is refused, and the state that later frames rely on.
func (c *serverConn) prepare(ctx context.Context, r *request) error {
	h := &r.head
	timeout := c.srv.cfg.RequestTimeout.Std()
	if h.TimeoutMS != 0 {
		timeout = min(timeout, time.Duration(h.TimeoutMS)*time.Millisecond)
	}
	r.ctx.start(ctx, r.started.Add(timeout))
	if h.Op == opClose {
		r.handle = c.takeFile(h.Handle)
		return nil
	}
	if !c.register(r) {
		return fmt.Errorf("%w: request ID %d is in flight", errProtocol, h.RequestID)
	}
	if err := c.payload(r); err != nil {
		c.forget(h.RequestID)
		return err
	}
	return nil
}

// payload reads the payload and sets what r is to do. Only a failure of the
// connection is an error; what is wrong with the request becomes its answer.
func (c *serverConn) payload(r *request) error {
	h := &r.head
	if r.refuse = c.unsupported(h); r.refuse != nil {
		_, err := c.in.Discard(int(h.Length))
		return noEOF(err)
	}
	b, err := c.readPayload(int(h.Length))
	if err != nil {
		return err
	}
	switch h.Op {
	case opOpen:
		r.refuse = c.prepareOpen(r, b)
	case opOpenRead:
		r.refuse = c.prepareOpenRead(r, b)
	case opRead, opReadV:
		if r.refuse = c.refer(r); r.refuse == nil {
			r.refuse = c.prepareRead(r, b, r.handle.geometry)
		}
	case opFD:
		r.refuse = c.refer(r)
	case opTouch:
		var err error
		if r.touches, err = parseTouches(b); err != nil {
			r.refuse = errs.E(errs.Invalid, "touch", "", err)
		}
	case opRecalls:
		r.since = binary.LittleEndian.Uint64(b)
	default: // unsupported knows the others
	}
	return nil
}

// unsupported returns why a request cannot be done for what its header says.
func (c *serverConn) unsupported(h *header) error {
	var err error
	switch {
	case h.Flags&criticalFlags&^requestCritical != 0:
		err = fmt.Errorf("flags %#x are not known to this release", h.Flags&criticalFlags&^requestCritical)
	case h.Op.feature() != h.Op.feature()&c.features:
		err = fmt.Errorf("op %d is not offered on this connection", h.Op)
	case h.Flags&flagInPlace != 0 && (c.features&FeatureInPlace == 0 || h.Op != opRead && h.Op != opFD):
		err = fmt.Errorf("op %d in place is not offered on this connection", h.Op)
	case h.Priority > PriorityRepair || h.Shard != 0 || h.Generation != 0:
		err = fmt.Errorf("priority %d, shard %d, generation %d", h.Priority, h.Shard, h.Generation)
	default:
		return nil
	}
	return errs.E(errs.Unsupported, "serve", "", err)
}

// readPayload reads n bytes, which stay until something else is read.
func (c *serverConn) readPayload(n int) ([]byte, error) {
	if n > readBufferSize {
		b := make([]byte, n)
		_, err := io.ReadFull(c.in, b)
		return b, noEOF(err)
	}
	b, err := c.in.Peek(n)
	if err != nil {
		return nil, noEOF(err)
	}
	_, err = c.in.Discard(n)
	return b, err
}

// prepareOpen decodes a ticket and takes room for it.
func (c *serverConn) prepareOpen(r *request, b []byte) error {
	t, err := block.ParseTicket(b)
	if err != nil {
		return errs.E(errs.Invalid, "open", "", err)
	}
	if !c.takeRoom(len(b)) {
		return errs.E(errs.Busy, "open", "", errors.New("too many open files on this connection"))
	}
	r.ticket, r.size = t, len(b)
	return nil
}

func (c *serverConn) prepareOpenRead(r *request, b []byte) error {
	if err := c.prepareOpen(r, b[readPayloadSize:]); err != nil {
		return err
	}
	err := c.prepareRead(r, b[:readPayloadSize], r.ticket.Geometry())
	if err != nil {
		c.giveRoom(r.size)
	}
	return err
}

// refer takes a reference on the request's handle.
func (c *serverConn) refer(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[r.head.Handle]
	if f == nil {
		return errs.E(errs.Invalid, "serve", "", fmt.Errorf("handle %d is not open", r.head.Handle))
	}
	f.refs++
	r.handle = f
	return nil
}

// prepareRead decodes the ranges in b of a file with geometry g.
func (c *serverConn) prepareRead(r *request, b []byte, g block.Geometry) error {
	h := &r.head
	var err error
	if h.Flags&flagInPlace != 0 {
		if r.mark, b, err = cutMark(b); err != nil {
			return errs.E(errs.Invalid, "read", "", err)
		}
	}
	if r.ranges, err = appendExtents(r.ranges[:0], b, g, h.Block); err != nil {
		return errs.E(errs.Invalid, "read", "", err)
	}
	_, local := c.nc.(*net.UnixConn)
	r.read = ReadRequest{
		Local: local, Priority: h.Priority, PlacementEpoch: h.PlacementEpoch, TraceID: h.TraceID,
		CachedOnly: h.Flags&flagCachedOnly != 0,
		Replica:    h.Flags&flagReplica != 0, ReadThrough: h.Flags&flagReadThrough != 0,
	}
	return nil
}

// register makes r one of the requests in flight; false if its ID is taken.
func (c *serverConn) register(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests[r.head.RequestID] != nil {
		return false
	}
	c.requests[r.head.RequestID] = r
	return true
}

// forget takes a request out of those in flight, before its END: from then on
// the ID is free.
func (c *serverConn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.requests, id)
}

// cancel ends the context of a request; one that is over is no error, for END
// and CANCEL may cross.
func (c *serverConn) cancel(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.requests[id]; r != nil {
		r.ctx.cancel(context.Canceled)
	}
}

// release makes the request one that can be used again.
func (c *serverConn) release(r *request) {
	r.reset()
	c.srv.requests.Put(r)
	<-c.slots
}

// takeRoom reserves a handle and n bytes of ticket.
func (c *serverConn) takeRoom(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.files)+c.opening >= c.srv.cfg.MaxHandles || c.ticketBytes+n > int(c.srv.cfg.MaxTicketBytes) {
		return false
	}
	c.opening++
	c.ticketBytes += n
	return true
}

// giveRoom gives back what takeRoom reserved.
func (c *serverConn) giveRoom(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening--
	c.ticketBytes -= n
}

// addFile gives f a handle in the room that takeRoom reserved, and the table a
// reference on it.
func (c *serverConn) addFile(f *openFile) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening--
	for {
		c.lastHandle++
		if c.lastHandle != 0 && c.files[c.lastHandle] == nil {
			break
		}
	}
	f.refs++
	c.files[c.lastHandle] = f
	return c.lastHandle
}

// takeFile takes a handle out of the table; its reference is the caller's.
// Nil if there is none.
func (c *serverConn) takeFile(handle uint32) *openFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[handle]
	if f != nil {
		delete(c.files, handle)
		c.ticketBytes -= f.size
	}
	return f
}

// unref gives a reference back and closes the file with the last one.
func (c *serverConn) unref(f *openFile) {
	c.mu.Lock()
	f.refs--
	last := f.refs == 0
	c.mu.Unlock()
	if last {
		c.closeFile(f)
	}
}

func (c *serverConn) closeFile(f *openFile) {
	if err := f.file.Close(); err != nil {
		c.srv.log.Warn("an open file could not be closed", "peer", peerName(c.nc), "error", err)
	}
}

// noEOF makes an end in the middle of a frame an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
