package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"millrace/test/trial"
)

// mode is what a link does with what it is to carry.
type mode int

const (
	// pass carries everything, after the link's delay.
	pass mode = iota
	// hold keeps everything back until the mode changes.
	hold
	// cut ends every connection and takes no other.
	cut
	// blackHole takes everything and carries nothing. Connections that lost
	// something end when the mode changes.
	blackHole
)

// maxLinkConns bounds the connections of a link; more wait to be taken, which a
// client cannot tell from a server that does not answer. It is more than the
// processes of a run have: each keeps 128 for each under-store mount, and what is
// cut off from the link holds its own until the kernel gives them up.
const maxLinkConns = 8192

// link is a TCP proxy whose connections can be made slow, stopped and cut. It
// is safe for concurrent use.
type link struct {
	ln     net.Listener
	target string
	quit   context.CancelFunc
	wg     sync.WaitGroup
	room   chan struct{} // a token for each connection

	mu      sync.Mutex
	mode    mode
	delay   time.Duration
	changed chan struct{} // closed at the next change
	conns   map[*linkConn]struct{}
}

// linkConn is one connection through a link.
type linkConn struct {
	near, far net.Conn // far is nil until the target answered
	lossy     bool     // it swallowed bytes
}

// newLink carries connections from an address, HOST:0 for any port, to target
// until it is closed.
func newLink(ctx context.Context, address, target string) (*link, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	ctx, quit := context.WithCancel(context.WithoutCancel(ctx))
	l := &link{
		ln: ln, target: target, quit: quit, room: make(chan struct{}, maxLinkConns),
		changed: make(chan struct{}), conns: map[*linkConn]struct{}{},
	}
	l.wg.Go(func() { l.accept(ctx) })
	return l, nil
}

// address is where the link listens.
func (l *link) address() string { return l.ln.Addr().String() }

// set changes what the link does from now on. delay is that of each piece that
// passes, 0 for none.
func (l *link) set(m mode, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode, l.delay = m, delay
	close(l.changed)
	l.changed = make(chan struct{})
	for c := range l.conns {
		if m == cut || c.lossy {
			c.end()
		}
	}
}

func (l *link) close() error {
	err := l.ln.Close()
	l.quit()
	l.mu.Lock()
	for c := range l.conns {
		c.end()
	}
	l.mu.Unlock()
	l.wg.Wait()
	return err
}

func (l *link) accept(ctx context.Context) {
	for {
		select {
		case l.room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		near, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many files, for one: it passes
			<-l.room
			trial.Sleep(ctx, 10*time.Millisecond)
			continue
		}
		l.wg.Go(func() {
			defer func() { <-l.room }()
			l.carry(ctx, &linkConn{near: near})
		})
	}
}

// carry carries one connection until either side ends it.
func (l *link) carry(ctx context.Context, c *linkConn) {
	if !l.enter(ctx, c) {
		c.end()
		return
	}
	defer l.leave(c)
	var d net.Dialer
	far, err := d.DialContext(ctx, "tcp", l.target)
	if err != nil {
		return // near is closed, which tells it
	}
	l.mu.Lock()
	c.far = far
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.copy(ctx, c, far, c.near) })
	both.Go(func() { l.copy(ctx, c, c.near, far) })
	both.Wait()
}

func (l *link) enter(ctx context.Context, c *linkConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mode == cut || ctx.Err() != nil {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *link) leave(c *linkConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	c.end()
}

// end closes both sides; the link's mutex is held, or nobody else knows c.
func (c *linkConn) end() {
	_ = c.near.Close() // nothing is lost that the end does not lose anyway
	if c.far != nil {
		_ = c.far.Close()
	}
}

// copy carries one direction, and ends both with it.
func (l *link) copy(ctx context.Context, c *linkConn, to io.Writer, from io.Reader) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.end()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && l.await(ctx, c) {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// await waits until a piece may pass, and reports whether it may at all.
func (l *link) await(ctx context.Context, c *linkConn) bool {
	for {
		l.mu.Lock()
		m, delay, changed := l.mode, l.delay, l.changed
		if m == blackHole {
			c.lossy = true
		}
		l.mu.Unlock()
		switch {
		case m == blackHole || m == cut:
			return false
		case m == pass && delay == 0:
			return true
		case m == pass:
			return trial.Sleep(ctx, delay)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
