package blockio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// clientBufferSize is the client's room per connection for what arrives.
	clientBufferSize = 64 << 10
	// directSize is from how many bytes on the rest of a DATA frame is read
	// into the caller's buffer, without a copy of ours.
	directSize = 8 << 10
	// directAtOnce bounds one such read, so that the checksum behind it finds
	// the bytes close to the processor.
	directAtOnce = 256 << 10
	// aheadOfDirect is how much is read to our buffer behind such a frame: the
	// headers that follow, and little of what should be read to where it
	// belongs.
	aheadOfDirect = 1 << 10
)

// frameReader is the receiving half of a client's connection.
type frameReader struct {
	nc  net.Conn
	raw syscall.RawConn // nil where the connection has no descriptor
	in  receiver        // reads from raw
	buf []byte
	r   int // buf[r:w] is what arrived and was not used yet
	w   int
	// ahead is how much one read may put there: all that has room, or little
	// while large frames come.
	ahead int

	// One read from raw: the n bytes for k that its frame still has, and what
	// follows to buf, which is empty; or what arrives to buf[w:].
	k        *call
	n        int
	got      int
	err      error
	toCall   func(fd uintptr) bool
	toBuffer func(fd uintptr) bool
}

// newFrameReader makes a reader that keeps up to descriptors of them.
func newFrameReader(nc net.Conn, descriptors int) *frameReader {
	f := &frameReader{nc: nc, raw: rawConn(nc), buf: make([]byte, clientBufferSize), ahead: clientBufferSize}
	_, f.in.local = nc.(*net.UnixConn)
	f.in.most = descriptors
	f.toCall = func(fd uintptr) bool {
		f.got, f.err = f.k.receive(&f.in, int(fd), f.n, f.buf[:aheadOfDirect])
		return !errors.Is(f.err, unix.EAGAIN)
	}
	f.toBuffer = func(fd uintptr) bool {
		f.got, f.err = f.in.read(int(fd), f.space(), nil)
		return !errors.Is(f.err, unix.EAGAIN)
	}
	return f
}

// receive reads what has arrived from fd to where the call's next bytes belong,
// of which its frame has n; and, if all of those have room there, what follows
// to more. It returns how many bytes were read in all. The lock is held over a
// system call that never waits, and that is what keeps the buffer untouched
// once it was abandoned. For an abandoned call nothing is read: errAbandoned.
func (k *call) receive(in *receiver, fd, n int, more []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.next(min(n, directAtOnce))
	if p == nil {
		return 0, errAbandoned
	}
	if len(p) < n {
		more = nil
	}
	got, err := in.read(fd, p, more)
	k.took(min(got, len(p)))
	return got, noEOF(err)
}

var errAbandoned = errors.New("abandoned")

// need returns the next n bytes, at most clientBufferSize, and leaves them
// where they are until use.
func (f *frameReader) need(n int) ([]byte, error) {
	for f.w-f.r < n {
		if f.r == f.w {
			f.r, f.w = 0, 0
		} else if f.r+n > len(f.buf) {
			f.w = copy(f.buf, f.buf[f.r:f.w])
			f.r = 0
		}
		if err := f.fill(); err != nil {
			if f.w > f.r {
				err = noEOF(err)
			}
			return nil, err
		}
	}
	return f.buf[f.r : f.r+n], nil
}

// use gives up the next n bytes.
func (f *frameReader) use(n int) { f.r += n }

// fill reads what arrives behind what is there.
func (f *frameReader) fill() error {
	if f.raw == nil {
		n, err := f.nc.Read(f.space())
		f.w += n
		if n > 0 {
			return nil
		}
		return err
	}
	f.got, f.err = 0, nil
	if err := f.raw.Read(f.toBuffer); err != nil {
		return err
	}
	f.w += f.got
	return f.err
}

// space is where fill reads to.
func (f *frameReader) space() []byte { return f.buf[f.w:min(f.w+f.ahead, len(f.buf))] }

// deliver reads the n bytes of a DATA frame's payload to the call.
func (f *frameReader) deliver(k *call, n int) error {
	for n > 0 {
		if have := min(n, f.w-f.r); have > 0 {
			k.take(f.buf[f.r : f.r+have])
			f.r += have
			n -= have
			continue
		}
		if f.raw != nil && n >= directSize && k.inOne(n) >= directSize {
			f.r, f.w, f.ahead = 0, 0, aheadOfDirect
			f.k, f.n, f.got, f.err = k, n, 0, nil
			err := f.raw.Read(f.toCall)
			f.k = nil
			f.w = max(f.got-n, 0)
			n -= f.got - f.w
			switch {
			case err != nil:
				return err
			case f.err == nil:
				continue
			case !errors.Is(f.err, errAbandoned):
				return f.err
			}
		}
		f.r, f.w, f.ahead = 0, 0, clientBufferSize
		if err := f.fill(); err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// readFrames is the goroutine that reads what the server sends. It alone ends
// calls, so that none ends while its bytes are being delivered.
func (c *Conn) readFrames() {
	f := newFrameReader(c.nc, cap(c.slots.all))
	defer f.in.close()
	var err error
	for err == nil {
		err = c.readFrame(f)
	}
	c.fail(err)
	c.mu.Lock()
	pending := c.pending
	c.pending = nil // no call is added to a connection that is over
	err = c.err
	c.mu.Unlock()
	for _, k := range pending {
		k.err = err
		k.closeFile()
		priority := k.priority
		k.finish()
		c.slots.give(priority)
	}
}

// readFrame reads one frame and does what it says. An error ends the
// connection.
func (c *Conn) readFrame(f *frameReader) error {
	b, err := f.need(headerSize)
	if err != nil {
		return err
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	f.use(headerSize)
	switch {
	case !h.Op.toClient():
		return fmt.Errorf("%w: op %d from a server", errProtocol, h.Op)
	case h.Flags&criticalFlags&^responseCritical != 0:
		return fmt.Errorf("%w: flags %#x are not known to this release", errProtocol, h.Flags)
	}
	c.mu.Lock()
	k := c.pending[h.RequestID]
	c.mu.Unlock()
	if k == nil {
		return fmt.Errorf("%w: an answer to request %d, which is not in flight", errProtocol, h.RequestID)
	}
	if len(f.in.descriptors) > 0 && len(f.in.descriptors) > c.descriptorsWanted() {
		return fmt.Errorf("%w: a descriptor that nobody asked for", errProtocol)
	}
	n := int(h.Length)
	if h.Op == opData {
		if room := k.room(); n > room {
			return fmt.Errorf("%w: %d bytes for request %d, which waits for %d", errProtocol, n, h.RequestID, room)
		}
		if k.descriptor {
			return c.deliverDescriptor(f, k, n)
		}
		return f.deliver(k, n)
	}
	if b, err = f.need(n); err != nil {
		return noEOF(err)
	}
	e, err := parseEnd(b, k.crcs[:0])
	if err != nil {
		return err
	}
	f.use(n)
	return c.endCall(k, &h, &e)
}

// deliverDescriptor reads the DATA that answers FD, of n bytes, and takes the
// descriptor that came with it.
func (c *Conn) deliverDescriptor(f *frameReader, k *call, n int) error {
	if n != k.want {
		return fmt.Errorf("%w: an answer to FD of %d bytes", errProtocol, n)
	}
	b, err := f.need(n)
	if err != nil {
		return noEOF(err)
	}
	base, err := parseDescriptor(b, k.length)
	if err != nil {
		return err
	}
	if k.inPlace {
		if k.mark, _, err = cutMark(b); err != nil {
			return err
		}
	}
	k.take(b)
	f.use(n)
	fd, err := f.in.take()
	if err != nil {
		return err
	}
	k.refused = checkDescriptor(fd, base+k.length)
	if k.refused == nil {
		k.file, k.base = os.NewFile(uintptr(fd), "descriptor from "+c.addr), base
	} else {
		closeAll([]int{fd})
	}
	return nil
}

// descriptorsWanted returns how many descriptors may still come.
func (c *Conn) descriptorsWanted() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.pending {
		if k.descriptor && k.room() > 0 {
			n++
		}
	}
	return n
}

// endCall ends a call with its END.
func (c *Conn) endCall(k *call, h *header, e *endPayload) error {
	if err := k.checkEnd(e, c.addr); err != nil {
		return err
	}
	opened := k.opens && !e.Failed
	if e.Failed {
		k.closeFile()
	}
	c.mu.Lock()
	if opened {
		if _, taken := c.lengths[h.Handle]; taken || h.Handle == 0 {
			c.mu.Unlock()
			return fmt.Errorf("%w: handle %d was given out twice", errProtocol, h.Handle)
		}
		c.lengths[h.Handle] = k.length
	}
	delete(c.pending, h.RequestID)
	c.mu.Unlock()
	if h.PlacementEpoch > c.epoch.Load() {
		c.epoch.Store(h.PlacementEpoch)
	}
	k.end, k.crcs, k.handle = *e, e.CRCs, h.Handle
	c.slots.give(k.priority)
	if k.finish() {
		return nil
	}
	k.closeFile()
	if opened { // nobody waits for the handle any longer
		c.CloseHandle(h.Handle)
	}
	c.recycle(k)
	return nil
}
