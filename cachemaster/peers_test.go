package cachemaster

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/rpcconn"
)

// forgetful is a listener whose connections end without a word when bytes come
// and it has forgotten them.
type forgetful struct {
	net.Listener

	forget atomic.Bool
}

type forgottenConn struct {
	*net.TCPConn

	l *forgetful
}

func (l *forgetful) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &forgottenConn{TCPConn: c.(*net.TCPConn), l: l}, nil
}

func (c *forgottenConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 && c.l.forget.CompareAndSwap(true, false) {
		_ = c.SetLinger(0)
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// TestForgottenConnection: a worker that has lost its end of a connection, as
// when the network was cut, is asked on another one.
func TestForgottenConnection(t *testing.T) {
	l := &forgetful{Listener: listen(t)}
	s := grpc.NewServer(rpcconn.ServerOptions()...)
	api.RegisterWorkerServiceServer(s, &fakeWorker{cached: map[string]int64{}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	p := newPeers()
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}()
	workers := []peer{{id: "w1", address: l.Addr().String()}}
	for range 2 {
		if _, err := p.cached(t.Context(), workers, 10*time.Second, [][]byte{make([]byte, 16)}); err != nil {
			t.Fatal(err)
		}
		l.forget.Store(true)
	}
}
