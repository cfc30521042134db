package blockio

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/errs"
	"millrace/internal/wait"
)

// copySize is the piece in which files are copied where sendfile cannot be used.
const copySize = 256 << 10

// Server serves a Handler to any number of connections. It is safe for
// concurrent use.
type Server struct {
	cfg      ServerConfig
	id       Identity
	handler  Handler
	toucher  Toucher  // the handler, if it is one
	recaller Recaller // the same
	log      *slog.Logger
	metrics  *serverMetrics

	epoch    atomic.Uint64
	conns    chan struct{} // one element per connection
	requests sync.Pool     // *request
	buffers  sync.Pool     // *[copySize]byte
}

// NewServer makes a server of h; cfg must be valid. It starts nothing.
func NewServer(cfg ServerConfig, id Identity, h Handler, log *slog.Logger, reg prometheus.Registerer) *Server {
	toucher, _ := h.(Toucher) // nil if it is none
	recaller, _ := h.(Recaller)
	return &Server{
		cfg: cfg, id: id, handler: h, toucher: toucher, recaller: recaller, log: log, metrics: newServerMetrics(reg),
		conns:    make(chan struct{}, cfg.MaxConnections),
		requests: sync.Pool{New: func() any { return newRequest() }},
		buffers:  sync.Pool{New: func() any { return new([copySize]byte) }},
	}
}

// SetPlacementEpoch makes epoch the one that every answer tells from now on,
// so that clients with an older one learn of it.
func (s *Server) SetPlacementEpoch(epoch uint64) { s.epoch.Store(epoch) }

// Serve accepts connections from l until ctx ends, and closes l. It may be
// called for several listeners. When ctx ends, requests in flight have
// DrainTimeout to end; Serve returns, with nil, when all its connections have
// ended and their files are closed. An error is the listener's, or
// errs.Invalid for a congestion control that cannot be had.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	congestion, err := congestionControl(l, s.cfg.CongestionControl)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait: connections end with the listener
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer func() {
		stop()
		_ = l.Close() // a connection that came last may have ended Accept before; its socket's name is free then
	}()
	pause := 5 * time.Millisecond
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close() // came too late
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return errs.E(errs.Internal, "accept", l.Addr().String(), err)
		case err != nil: // out of descriptors, or a peer that was gone at once
			s.log.Warn("a connection could not be accepted", "address", l.Addr().String(), "error", err)
			_ = wait.For(ctx, pause) // the next Accept tells that it is over
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		select {
		case s.conns <- struct{}{}:
			wg.Go(func() {
				defer func() { <-s.conns }()
				setCongestionControl(nc, congestion)
				s.serveConn(ctx, nc)
			})
		default:
			s.turnAway(nc)
		}
	}
}

// unixSendBuffer is the room that the kernel is asked for in bytes on their
// way to a peer on this host: some frames. With its default, of less than one
// page of a file, sender and receiver wake each other for every part of a
// page. TCP finds its room by itself.
const unixSendBuffer = 4 << 20

func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(unixSendBuffer) // less than that is slower, no more
	}
	s.metrics.connections.Inc()
	defer s.metrics.connections.Dec()
	c := &serverConn{
		srv: s, nc: nc,
		out:      newFrameWriter(nc, s.cfg.WriteTimeout.Std(), s.metrics.sent),
		slots:    make(chan struct{}, s.cfg.MaxRequests),
		next:     make(chan *request),
		requests: map[uint64]*request{},
		files:    map[uint32]*openFile{},
	}
	c.in = bufio.NewReaderSize(newSource(nc, c.push), readBufferSize)
	if err := c.serve(ctx); err != nil {
		s.metrics.broken.Inc()
		s.log.Debug("a data connection ended", "peer", peerName(nc), "error", err)
	}
}

// turnAway tells a peer that there are too many, without waiting for it.
func (s *Server) turnAway(nc net.Conn) {
	s.metrics.refused.Inc()
	answer := refusal(errs.Throttled, "too many connections")
	_ = nc.SetDeadline(time.Now().Add(100 * time.Millisecond)) // a new socket has room for a hello
	_, _ = nc.Write(encodeServerHello(&answer))                // a courtesy
	_ = nc.Close()
}

// hello is the answer to a client with whom features are shared.
func (s *Server) hello(features uint64) serverHello {
	return serverHello{Hello: Hello{
		Version: Version, Features: features,
		WorkerID: s.id.WorkerID, BootID: s.id.BootID,
		MaxRequests: uint32(s.cfg.MaxRequests),
		MaxHandles:  uint32(s.cfg.MaxHandles),
		MaxRead:     MaxReadLength,
	}}
}

func refusal(kind errs.Kind, text string) serverHello {
	return serverHello{Hello: Hello{Version: Version}, Failed: true, Kind: kind, Text: text}
}

// peerName names the other side in the log; a Unix socket's peer has no name.
func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "local"
}
