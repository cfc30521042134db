package blockio

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"millrace/internal/errs"
)

// Conn is one connection to a server. It is safe for concurrent use: requests
// of many goroutines are in flight at once.
type Conn struct {
	cfg   ClientConfig
	nc    net.Conn
	addr  string
	hello Hello
	slots slots
	out   sendQueue
	done  chan struct{} // closed when the connection is over
	wg    sync.WaitGroup
	calls sync.Pool     // *call
	epoch atomic.Uint64 // highest placement epoch that was answered

	mu      sync.Mutex
	err     error            // why it is over
	pending map[uint64]*call // in flight, by request ID; nil when the reader has ended
	lastID  uint64
	lengths map[uint32]int64 // of the open files, by handle

	watch chan struct{} // a call was abandoned
}

// Dial connects to a server and shakes hands. network is "tcp" or "unix". The
// error's kind is errs.Unavailable if the server cannot be reached or does
// not speak the protocol, errs.Timeout or errs.Canceled as ctx ended, and
// what the server says if it refuses.
func Dial(ctx context.Context, network, addr string, cfg ClientConfig) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, errs.E(errs.Invalid, "connect to", addr, err)
	}
	within, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout.Std())
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(within, network, addr)
	if err != nil {
		return nil, errs.E(dialKind(ctx), "connect to", addr, err)
	}
	hello, err := shakeHands(within, nc, cfg)
	if err != nil {
		_ = nc.Close() // the handshake's error says more
		kind := dialKind(ctx)
		if refusal, ok := errors.AsType[*errs.Error](err); ok {
			kind = refusal.Kind
		}
		return nil, errs.E(kind, "shake hands with", addr, err)
	}
	if cfg.Peer != "" {
		addr = cfg.Peer
	}
	return newConn(nc, addr, cfg, hello), nil
}

// shakeHands says hello and returns the server's answer. A refusal is an
// *errs.Error of the server's kind; other errors have no kind.
func shakeHands(ctx context.Context, nc net.Conn, cfg ClientConfig) (Hello, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	hello := clientHello{Least: Version, Most: Version, Features: ourFeatures, BootID: cfg.BootID, WorkerID: cfg.WorkerID, Token: cfg.Token}
	if _, err := nc.Write(encodeClientHello(&hello)); err != nil {
		stop()
		return Hello{}, err
	}
	answer, err := readServerHello(nc)
	inTime := stop()
	switch {
	case err != nil:
		return Hello{}, noEOF(err)
	case answer.Failed:
		return Hello{}, errs.E(answer.Kind, "", "", errors.New(answer.Text))
	case answer.Version != Version:
		return Hello{}, fmt.Errorf("%w: the server chose version %d", errProtocol, answer.Version)
	case !inTime: // the deadline is set, or will be
		return Hello{}, ctx.Err()
	}
	return answer.Hello, nil
}

// newConn starts a connection's goroutines behind the handshake.
func newConn(nc net.Conn, addr string, cfg ClientConfig, hello Hello) *Conn {
	c := &Conn{
		cfg: cfg, nc: nc, addr: addr, hello: hello,
		slots:   newSlots(int(min(uint32(cfg.MaxRequests), hello.MaxRequests))),
		done:    make(chan struct{}),
		watch:   make(chan struct{}, 1),
		calls:   sync.Pool{New: func() any { return newCall() }},
		pending: map[uint64]*call{},
		lengths: map[uint32]int64{},
	}
	c.out.init(nc, c.slots.busy)
	c.wg.Go(c.readFrames)
	c.wg.Go(c.writeFrames)
	return c
}

// dialKind is the kind of a failure to connect.
func dialKind(ctx context.Context) errs.Kind {
	if err := ctx.Err(); err != nil {
		return errs.KindOf(err)
	}
	return errs.Unavailable
}

// Hello returns what the server said about itself.
func (c *Conn) Hello() Hello { return c.hello }

// PlacementEpoch returns the highest placement epoch that the server's
// answers told; 0 before the first.
func (c *Conn) PlacementEpoch() uint64 { return c.epoch.Load() }

// Done is closed when the connection is over; every request fails then with
// errs.Unavailable.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection and returns when its goroutines have ended.
// Requests in flight fail with errs.Unavailable.
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	c.wg.Wait()
	return nil
}

// do sends a request and waits for its END. If it returns nil, k holds the
// outcome and is the caller's to recycle; otherwise k is no longer the
// caller's.
func (c *Conn) do(ctx context.Context, op string, k *call, head *header, payload []byte) error {
	if err := c.takeSlot(ctx, op, head.Priority); err != nil {
		c.recycle(k)
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			c.slots.give(head.Priority)
			c.recycle(k)
			return errs.E(errs.Timeout, op, c.addr, context.DeadlineExceeded)
		}
		head.TimeoutMS = uint32(min((left+time.Millisecond-1)/time.Millisecond, math.MaxUint32))
	}
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		c.slots.give(head.Priority)
		c.recycle(k)
		return err
	}
	c.lastID++
	k.id, head.RequestID, k.priority = c.lastID, c.lastID, head.Priority
	c.pending[k.id] = k
	c.mu.Unlock()
	c.out.send(head, payload)
	select {
	case <-k.done:
	case <-ctx.Done():
		id := k.id
		if k.abandon(time.Now()) {
			// From here on k is the reader's.
			c.out.send(&header{Op: opCancel, RequestID: id, Block: noBlock}, nil)
			select {
			case c.watch <- struct{}{}:
			default:
			}
			return errs.E(errs.KindOf(ctx.Err()), op, c.addr, ctx.Err())
		}
		<-k.done // it ended at the same moment
	}
	return k.err
}

// fail ends the connection because of err; only the first call counts. The
// reader ends what is in flight.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = errs.E(errs.Unavailable, "use the connection to", c.addr, err)
	close(c.done)
	_ = c.nc.Close() // the first error is the one that matters
}

// over returns why the connection is over, nil if it is not.
func (c *Conn) over() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
