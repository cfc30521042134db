package blockio

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// pipeListener accepts the far ends of in-memory connections, so that timers
// run in a synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  atomic.Bool
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	if l.once.CompareAndSwap(false, true) {
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

// pipeServer runs a server on a pipe; stop waits for Serve.
func pipeServer(cfg ServerConfig, h Handler) (l *pipeListener, stop func()) {
	l = newPipeListener()
	s := NewServer(cfg, Identity{WorkerID: "w", BootID: "b"}, h, slog.New(slog.DiscardHandler), nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ctx, l) // nil but for a listener that fails
	}()
	return l, func() {
		cancel()
		<-done
	}
}

func pipeConn(t *testing.T, nc net.Conn) *Conn {
	t.Helper()
	hello, err := shakeHands(t.Context(), nc, DefaultClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	return newConn(nc, "pipe", DefaultClientConfig(), hello)
}

func TestHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := pipeServer(DefaultServerConfig(), oneFile(&testFile{}))
		defer stop()
		nc := l.dial()
		start := time.Now()
		if _, err := nc.Read(make([]byte, 1)); err == nil {
			t.Error("a silent peer got an answer")
		}
		if got, want := time.Since(start), DefaultServerConfig().HandshakeTimeout.Std(); got != want {
			t.Errorf("the connection ended after %v, want %v", got, want)
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultServerConfig()
		cfg.RequestTimeout *= 1000
		idle := cfg.IdleTimeout.Std()
		f := &testFile{data: pattern(10), hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
			time.Sleep(3 * idle)
			return f.serve(req, w)
		}}
		l, stop := pipeServer(cfg, oneFile(f))
		defer stop()
		c := pipeConn(t, l.dial())
		defer c.Close()
		h := mustOpen(t, c, "f", 10)
		// While a request is in flight the connection is not idle.
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), 0, ReadOptions{}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-c.Done()
		if got := time.Since(start); got > idle+idle/4 {
			t.Errorf("the connection ended after %v, want about %v", got, idle)
		}
		synctest.Wait()
		if f.closed.Load() != 1 {
			t.Error("the file of a connection that ended is not closed")
		}
	})
}

func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &testFile{data: pattern(10)}
		l, stop := pipeServer(DefaultServerConfig(), oneFile(f))
		defer stop()
		nc := l.dial()
		defer nc.Close()
		if _, err := shakeHands(t.Context(), nc, DefaultClientConfig()); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(openFrame(t, 1, "f", 10)); err != nil {
			t.Fatal(err)
		}
		// The answer is not read. When the server gave up, writing fails.
		time.Sleep(2 * DefaultServerConfig().WriteTimeout.Std())
		if _, err := nc.Write([]byte{1}); err == nil {
			t.Error("a peer that does not receive was kept")
		}
		synctest.Wait()
		if f.closed.Load() != 1 {
			t.Error("the file of a connection that ended is not closed")
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen time.Duration
		f := &testFile{data: pattern(10), hook: func(ctx context.Context, _ *testFile, _ ReadRequest, _ Responder) error {
			start := time.Now()
			<-ctx.Done()
			seen = time.Since(start)
			return errs.Wrap(ctx.Err(), "wait", "")
		}}
		cfg := DefaultServerConfig()
		l, stop := pipeServer(cfg, oneFile(f))
		defer stop()
		c := pipeConn(t, l.dial())
		defer c.Close()
		h := mustOpen(t, c, "f", 10)

		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := c.ReadAt(ctx, h, make([]byte, 10), 0, ReadOptions{}); !errors.Is(err, errs.Timeout) {
			t.Errorf("ReadAt with a deadline: %v", err)
		}
		synctest.Wait()
		if seen != 1500*time.Millisecond {
			t.Errorf("the server's deadline was %v, want the client's 1.5s", seen)
		}
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), 0, ReadOptions{}); !errors.Is(err, errs.Timeout) {
			t.Errorf("ReadAt without a deadline: %v", err)
		}
		if seen != cfg.RequestTimeout.Std() {
			t.Errorf("a request without a deadline had %v, want %v", seen, cfg.RequestTimeout)
		}
	})
}

// An OPEN whose time is over before its turn came takes no handle's room.
func TestLateOpenTakesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &testHandler{hook: func(_ context.Context, tk *block.Ticket) (File, error) {
			if tk.Path == "slow" {
				time.Sleep(time.Second)
			}
			return &testFile{}, nil
		}}
		cfg := DefaultServerConfig()
		cfg.MaxRequests, cfg.MaxHandles = 1, 3
		l, stop := pipeServer(cfg, h)
		defer stop()
		nc := l.dial()
		defer nc.Close()
		if _, err := shakeHands(t.Context(), nc, DefaultClientConfig()); err != nil {
			t.Fatal(err)
		}
		late := func(id uint64) []byte {
			b := openFrame(t, id, "late", 1)
			h, err := parseHeader(b[:headerSize])
			if err != nil {
				t.Fatal(err)
			}
			h.TimeoutMS = 10
			return append(appendHeader(nil, &h), b[headerSize:]...)
		}
		frames := openFrame(t, 1, "slow", 1)
		frames = append(append(frames, late(2)...), openFrame(t, 3, "slow", 1)...)
		frames = append(append(frames, late(4)...), openFrame(t, 5, "f", 1)...)
		if _, err := nc.Write(frames); err != nil {
			t.Fatal(err)
		}
		for id := uint64(1); id <= 5; id++ {
			e, err := nextEnd(nc, id)
			if err != nil {
				t.Fatal(err)
			}
			if late := id%2 == 0; e.Failed != late || late && e.Kind != errs.Timeout {
				t.Errorf("OPEN %d: %+v", id, e)
			}
		}
	})
}

// A server that does not end what was canceled costs the connection.
func TestCancelTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		f := &testFile{data: pattern(10), hook: func(_ context.Context, _ *testFile, _ ReadRequest, _ Responder) error {
			<-free // deaf to its context
			return errs.Canceled
		}}
		l, stop := pipeServer(DefaultServerConfig(), oneFile(f))
		defer stop()
		defer close(free)
		c := pipeConn(t, l.dial())
		defer c.Close()
		h := mustOpen(t, c, "f", 10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.ReadAt(ctx, h, make([]byte, 10), 0, ReadOptions{}); !errors.Is(err, errs.Timeout) {
			t.Fatal(err)
		}
		start := time.Now()
		<-c.Done()
		if got, want := time.Since(start), DefaultClientConfig().CancelTimeout.Std(); got != want {
			t.Errorf("the connection ended after %v, want %v", got, want)
		}
	})
}

func TestDrain(t *testing.T) {
	for name, tt := range map[string]struct {
		takes time.Duration // the read in flight
		want  error
	}{
		"a request in flight ends well":        {takes: 2 * time.Second},
		"a request that takes longer is ended": {takes: time.Hour, want: errs.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := pattern(100)
				f := &testFile{data: data, hook: func(ctx context.Context, f *testFile, req ReadRequest, w Responder) error {
					select {
					case <-time.After(tt.takes):
						return f.serve(req, w)
					case <-ctx.Done():
						return ctx.Err()
					}
				}}
				l, stop := pipeServer(DefaultServerConfig(), oneFile(f))
				c := pipeConn(t, l.dial())
				defer c.Close()
				idle := pipeConn(t, l.dial())
				defer idle.Close()
				h := mustOpen(t, c, "f", len(data))
				result := make(chan error, 1)
				p := make([]byte, len(data))
				go func() {
					_, err := c.ReadAt(t.Context(), h, p, 0, ReadOptions{})
					result <- err
				}()
				synctest.Wait()
				start := time.Now()
				go func() {
					<-idle.Done()
					if got := time.Since(start); got != 0 {
						t.Errorf("an idle connection ended after %v", got)
					}
				}()
				stop()
				if got, want := time.Since(start), min(tt.takes, DefaultServerConfig().DrainTimeout.Std()); got != want {
					t.Errorf("Serve returned after %v, want %v", got, want)
				}
				err := <-result
				if !errors.Is(err, tt.want) || tt.want == nil && !bytes.Equal(p, data) {
					t.Errorf("the read in flight: %v, want %v", err, tt.want)
				}
				if f.closed.Load() != 1 {
					t.Error("Serve returned before the file was closed")
				}
			})
		})
	}
}

// openFrame is an OPEN as bytes.
func openFrame(t testing.TB, id uint64, path string, length int64) []byte {
	t.Helper()
	ticket, err := ticketOf(path, length).AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := header{Op: opOpen, RequestID: id, Block: noBlock, Length: uint32(len(ticket))}
	return append(appendHeader(nil, &h), ticket...)
}

// readFrameOf is a READ as bytes.
func readFrameOf(id uint64, handle uint32, off uint64, n uint32, change func(*header)) []byte {
	h := header{Op: opRead, RequestID: id, Handle: handle, Block: noBlock, Length: readPayloadSize}
	if change != nil {
		change(&h)
	}
	return appendReadPayload(appendHeader(nil, &h), readPayload{Offset: off, Length: n})
}

// readVFrame is a READV of ranges of (offset, length) as bytes.
func readVFrame(id uint64, handle uint32, change func(*header), ranges ...[2]int64) []byte {
	h := header{Op: opReadV, RequestID: id, Handle: handle, Block: noBlock, Length: uint32(len(ranges) * readPayloadSize)}
	if change != nil {
		change(&h)
	}
	b := appendHeader(nil, &h)
	for _, r := range ranges {
		b = appendReadPayload(b, readPayload{Offset: uint64(r[0]), Length: uint32(r[1])})
	}
	return b
}

// openReadFrame is an OPEN_READ as bytes.
func openReadFrame(t testing.TB, id uint64, path string, length, off, n int64) []byte {
	t.Helper()
	payload, err := ticketOf(path, length).AppendBinary(appendReadPayload(nil, readPayload{Offset: uint64(off), Length: uint32(n)}))
	if err != nil {
		t.Fatal(err)
	}
	h := header{Op: opOpenRead, RequestID: id, Block: noBlock, Length: uint32(len(payload))}
	return append(appendHeader(nil, &h), payload...)
}
