package blockio

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sendRounds is how often one caller sends what others queued meanwhile,
	// before it leaves the rest to the connection's goroutine.
	sendRounds = 4
	// keepBuffer is the largest buffer that is kept for later.
	keepBuffer = 64 << 10
)

// sendQueue is the sending half of a client's connection. Frames are gathered
// in a buffer; whoever finds nobody sending tries to send it himself, without
// ever waiting for the peer. What the kernel does not take at once is left to
// the connection's goroutine, so that no caller hangs behind a peer that does
// not receive. The buffer is bounded by the requests in flight.
type sendQueue struct {
	raw  syscall.RawConn // nil where the connection has no descriptor
	kick chan struct{}   // tells the goroutine that sending is its turn
	busy func() bool     // whether other requests are in flight

	mu      sync.Mutex
	buf     []byte // frames that nobody sends yet
	spare   []byte // room for the next buf
	sending bool   // by a caller or by the goroutine
	closed  bool

	// Of whoever is sending.
	rest []byte
	try  func(fd uintptr) bool
}

func (q *sendQueue) init(nc net.Conn, busy func() bool) {
	q.raw = rawConn(nc)
	q.busy = busy
	q.kick = make(chan struct{}, 1)
	q.try = func(fd uintptr) bool {
		for len(q.rest) > 0 {
			n, err := unix.SendmsgN(int(fd), q.rest, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return true // the goroutine waits, or meets the error again
			}
			q.rest = q.rest[max(n, 0):]
		}
		return true
	}
}

// send queues one frame and sees to it that it is sent.
func (q *sendQueue) send(h *header, payload []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.buf = appendHeader(q.buf, h)
	q.buf = append(q.buf, payload...)
	if q.sending {
		return
	}
	q.sending = true
	if q.busy() {
		// Others are likely to send too as soon as they run; together it is
		// one system call. Halves the processor time of small reads.
		q.mu.Unlock()
		runtime.Gosched()
		q.mu.Lock()
	}
	for round := 0; len(q.buf) > 0; round++ {
		if q.raw == nil || round == sendRounds {
			q.kick <- struct{}{} // has room: one turn at a time
			return
		}
		out := q.take()
		q.mu.Unlock()
		q.rest = out
		_ = q.raw.Write(q.try) // what it could not do is in rest
		q.mu.Lock()
		if len(q.rest) > 0 {
			q.kick <- struct{}{}
			return
		}
		q.give(out)
	}
	q.sending = false
}

// take returns the frames that nobody sends yet. Called with the lock.
func (q *sendQueue) take() []byte {
	out := q.buf
	q.buf, q.spare = q.spare[:0], nil
	return out
}

// give returns a buffer. Called with the lock.
func (q *sendQueue) give(out []byte) {
	if cap(out) <= keepBuffer {
		q.spare = out[:0]
	}
}

// drain sends all there is, waiting for the peer: the goroutine's turn.
func (q *sendQueue) drain(nc net.Conn, timeout time.Duration) error {
	for {
		if len(q.rest) > 0 {
			if err := nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
				return err
			}
			if _, err := nc.Write(q.rest); err != nil {
				return err
			}
			q.rest = nil
		}
		q.mu.Lock()
		if len(q.buf) == 0 {
			q.sending = false
			err := nc.SetWriteDeadline(time.Time{}) // callers try without one
			q.mu.Unlock()
			return err
		}
		q.rest = q.take()
		q.mu.Unlock()
	}
}

// close makes send do nothing from now on.
func (q *sendQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.buf = nil
}

// writeFrames is the goroutine that sends what callers could not, and that
// ends a connection whose server does not end canceled requests.
func (c *Conn) writeFrames() {
	defer c.out.close()
	timeout := c.cfg.CancelTimeout.Std()
	var late <-chan time.Time // nil while nothing is watched
	for {
		select {
		case <-c.done:
			return
		case <-c.out.kick:
			if err := c.out.drain(c.nc, c.cfg.WriteTimeout.Std()); err != nil {
				c.fail(err)
				return
			}
		case <-c.watch:
			if late == nil {
				late = time.After(timeout)
			}
		case now := <-late:
			late = nil
			oldest := c.oldestAbandoned()
			switch {
			case oldest.IsZero():
			case now.Sub(oldest) >= timeout:
				c.fail(errors.New("the server does not end canceled requests"))
				return
			default:
				late = time.After(timeout - now.Sub(oldest))
			}
		}
	}
}

// oldestAbandoned returns when the call was abandoned that is in flight
// longest since then; zero if there is none.
func (c *Conn) oldestAbandoned() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oldest time.Time
	for _, k := range c.pending {
		if t := k.abandonedAt(); !t.IsZero() && (oldest.IsZero() || t.Before(oldest)) {
			oldest = t
		}
	}
	return oldest
}
