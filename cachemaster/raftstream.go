package cachemaster

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// streamLayer is Raft's transport over a listener that is given. It knows its
// connections, since the library leaves open those that others made to us.
type streamLayer struct {
	net.Listener
	advertise net.Addr

	mu     sync.Mutex
	conns  map[*streamConn]struct{}
	closed bool
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func newStreamLayer(l net.Listener, advertise net.Addr) *streamLayer {
	return &streamLayer{Listener: l, advertise: advertise, conns: make(map[*streamConn]struct{})}
}

// streamConn is one connection that a streamLayer knows.
type streamConn struct {
	net.Conn
	layer *streamLayer
}

// Close closes the connection.
func (c *streamConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// Accept takes a connection of another master.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.enter(c)
}

// Dial connects to another master.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(context.Background(), "tcp", string(address))
	if err != nil {
		return nil, err
	}
	return s.enter(c)
}

func (s *streamLayer) enter(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	sc := &streamConn{Conn: c, layer: s}
	s.conns[sc] = struct{}{}
	return sc, nil
}

// closeConns closes all connections and admits none any more.
func (s *streamLayer) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Conn.Close() // it is given up; there is nothing to do about an error
	}
	clear(s.conns)
}

// Addr returns the address that the other masters are told.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// namedAddr is an address that may hold a host's name.
type namedAddr string

// Network returns "tcp".
func (a namedAddr) Network() string { return "tcp" }

// String returns host:port.
func (a namedAddr) String() string { return string(a) }
