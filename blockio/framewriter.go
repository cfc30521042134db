package blockio

import (
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"millrace/internal/errs"
)

// outBufferSize is the room for small frames that leave in one system call.
const outBufferSize = 64 << 10

// frameWriter is the sending half of a server's connection. Whole frames of
// many goroutines take turns in it, the urgent ones first; small ones are
// gathered while others wait for their turn, large ones leave with what was
// gathered in one writev.
type frameWriter struct {
	conn    net.Conn
	raw     syscall.RawConn // nil where the connection has no descriptor
	timeout time.Duration   // for one frame to be taken by the peer
	sent    func(n int64)   // told the bytes that left

	waiting atomic.Int32 // goroutines on their way to their turn
	turns   turns

	// Of who has the turn.
	buf      []byte
	vec      net.Buffers // room for the writev
	room     [2][]byte
	deadline time.Time
	err      error
	file     fileSend
}

func newFrameWriter(conn net.Conn, timeout time.Duration, sent func(int64)) *frameWriter {
	w := &frameWriter{conn: conn, raw: rawConn(conn), timeout: timeout, sent: sent, buf: make([]byte, 0, outBufferSize)}
	w.turns.init()
	w.file.init()
	return w
}

// rawConn returns the descriptor's access of a TCP or Unix connection.
func rawConn(conn net.Conn) syscall.RawConn {
	switch c := conn.(type) {
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	case *net.UnixConn:
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// lock takes the writer for one frame.
func (w *frameWriter) lock(p Priority) {
	w.waiting.Add(1)
	w.turns.take(p)
	w.waiting.Add(-1)
}

// free reports whether nobody sends.
func (w *frameWriter) free() bool { return w.turns.isFree() }

// unlock sends what was gathered, unless someone waits who will.
func (w *frameWriter) unlock() {
	if len(w.buf) > 0 && (w.waiting.Load() == 0 || len(w.buf) >= outBufferSize/2) {
		_ = w.flush(nil) // kept in w.err
	}
	w.turns.give()
}

// data sends one DATA frame whose payload is small followed by large. Both
// are the caller's again when it returns.
func (w *frameWriter) data(p Priority, h *header, small, large []byte) error {
	w.lock(p)
	defer w.unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.makeRoom(headerSize + len(small)); err != nil {
		return err
	}
	h.Length = uint32(len(small) + len(large))
	w.buf = appendHeader(w.buf, h)
	w.buf = append(w.buf, small...)
	return w.flush(large)
}

// answer is the last of what a request sends: a DATA frame with the bytes that
// it gathered, if there are any, and END.
type answer struct {
	data, head header
	small      []byte
	end        endPayload
}

// size returns the most bytes that a takes on the wire.
func (a *answer) size() int {
	return 2*headerSize + len(a.small) + a.endSize()
}

// endSize returns the bytes of END's payload.
func (a *answer) endSize() int { return endFixed + len(a.end.Text) + len(a.end.CRCs)*crcSize }

// end sends a. A failure is kept for whoever asks next.
// With busy, the frames wait until others that are ready to run had their
// turn: together they are one system call.
func (w *frameWriter) end(p Priority, a *answer, busy bool) {
	w.lock(p)
	defer w.unlock()
	w.append(a)
	if busy && w.waiting.Load() == 0 && len(w.buf) < outBufferSize/2 {
		w.turns.give()
		runtime.Gosched()
		w.lock(p)
	}
}

// endLater gathers a, which leaves with what follows or when push is called.
func (w *frameWriter) endLater(p Priority, a *answer) {
	w.lock(p)
	w.append(a)
	w.turns.give()
}

// push sends what was gathered.
func (w *frameWriter) push() {
	w.lock(PriorityRead)
	w.unlock()
}

// append gathers a.
func (w *frameWriter) append(a *answer) {
	if w.err != nil || w.makeRoom(a.size()) != nil {
		return
	}
	if len(a.small) > 0 {
		a.data.Length = uint32(len(a.small))
		w.buf = appendHeader(w.buf, &a.data)
		w.buf = append(w.buf, a.small...)
	}
	a.head.Op, a.head.Length = opEnd, uint32(a.endSize())
	w.buf = appendHeader(w.buf, &a.head)
	w.buf = appendEnd(w.buf, &a.end)
}

// makeRoom sends what was gathered if n more bytes do not fit.
func (w *frameWriter) makeRoom(n int) error {
	if len(w.buf)+n <= cap(w.buf) {
		return nil
	}
	return w.flush(nil)
}

// flush sends what was gathered and then more.
func (w *frameWriter) flush(more []byte) error {
	if w.err != nil {
		return w.err
	}
	w.extendDeadline()
	w.vec = append(w.room[:0], w.buf)
	if len(more) > 0 {
		w.vec = append(w.vec, more)
	}
	n, err := w.vec.WriteTo(w.conn)
	w.room = [2][]byte{} // forget the caller's bytes
	w.buf = w.buf[:0]
	w.sent(n)
	if err != nil {
		return w.fail(err)
	}
	return nil
}

// extendDeadline gives the peer timeout to take the next frame; the timer is
// touched at most each eighth of it.
func (w *frameWriter) extendDeadline() {
	now := time.Now()
	if d := now.Add(w.timeout + w.timeout/8); d.Sub(w.deadline) > w.timeout/8 {
		w.deadline = d
		_ = w.conn.SetWriteDeadline(d) // fails on a closed connection alone, and so will the write
	}
}

// fail makes err the end of the connection: a frame may be cut short, so
// nothing can follow it. Closing wakes the goroutine that reads.
func (w *frameWriter) fail(err error) error {
	w.err = errs.Wrap(&errs.Error{Kind: errs.Unavailable, Err: err}, "send", "")
	_ = w.conn.Close() // the first error is the one that matters
	return w.err
}
