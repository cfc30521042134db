package blockio

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// A caller that gave up has its buffer back at once, while the server goes on
// to send what the caller asked for.
func TestCanceledReadLeavesBufferAlone(t *testing.T) {
	data := pattern(16 << 20)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f := &testFile{data: data, piece: 64 << 10}
			if tr.disk {
				f.disk = onDisk(t, data)
			}
			started := f.tellStarts()
			c := startServer(t, tr.network, DefaultServerConfig(), oneFile(f)).dial(t)
			h := mustOpen(t, c, "f", len(data))
			p, zeros := make([]byte, len(data)), make([]byte, len(data))
			for range 10 {
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					<-started
					cancel()
				}()
				n, err := c.ReadAt(ctx, h, p, 0, ReadOptions{})
				cancel()
				if err != nil && !errors.Is(err, errs.Canceled) {
					t.Fatalf("ReadAt: %d, %v", n, err)
				}
				// Written without a lock: the race detector tells of anyone else.
				clear(p)
				q := make([]byte, 100_000)
				if n, err := c.ReadAt(t.Context(), h, q, 777, ReadOptions{}); err != nil || !bytes.Equal(q, data[777:777+len(q)]) {
					t.Fatalf("the next read: %d, %v", n, err)
				}
				if !bytes.Equal(p, zeros) {
					t.Fatal("the buffer was written to after ReadAt returned")
				}
				select { // of the second read
				case <-started:
				default:
				}
			}
		})
	}
}

// CANCEL ends the context of the right request, and only of that.
func TestCancelReachesServer(t *testing.T) {
	data := pattern(100)
	var mu sync.Mutex
	ended := map[int64]error{}
	arrived, left := make(chan struct{}, 2), make(chan struct{}, 2)
	free := make(chan struct{})
	f := &testFile{data: data, hook: func(ctx context.Context, f *testFile, req ReadRequest, w Responder) error {
		arrived <- struct{}{}
		defer func() { left <- struct{}{} }()
		select {
		case <-ctx.Done():
			mu.Lock()
			defer mu.Unlock()
			ended[req.Extent.Offset] = ctx.Err()
			return ctx.Err()
		case <-free:
			return f.serve(req, w)
		}
	}}
	c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() {
		_, err := c.ReadAt(ctx, h, make([]byte, 10), 10, ReadOptions{})
		results <- err
	}()
	other := make(chan error, 1)
	go func() {
		p := make([]byte, 10)
		_, err := c.ReadAt(t.Context(), h, p, 20, ReadOptions{})
		if !bytes.Equal(p, data[20:30]) {
			t.Error("wrong bytes")
		}
		other <- err
	}()
	<-arrived
	<-arrived
	cancel()
	if err := <-results; !errors.Is(err, errs.Canceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("the canceled read: %v", err)
	}
	<-left
	close(free)
	if err := <-other; err != nil {
		t.Errorf("the other read: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ended) != 1 || !errors.Is(ended[10], context.Canceled) {
		t.Errorf("requests ended early: %v", ended)
	}
}

// The handle of an OPEN that nobody waited for is given back.
func TestCanceledOpenClosesFile(t *testing.T) {
	opening, free := make(chan struct{}), make(chan struct{})
	f := &closeFile{closed: make(chan struct{})}
	h := &testHandler{hook: func(context.Context, *block.Ticket) (File, error) {
		close(opening)
		<-free
		return f, nil
	}}
	c := startServer(t, "unix", DefaultServerConfig(), h).dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-opening
		cancel()
	}()
	if _, err := c.Open(ctx, ticketOf("f", 1)); !errors.Is(err, errs.Canceled) {
		t.Errorf("Open: %v", err)
	}
	close(free)
	<-f.closed
}

type closeFile struct {
	testFile
	closed chan struct{}
}

func (f *closeFile) Close() error {
	close(f.closed)
	return nil
}

// A reader that a handler canceled mid-way, an error in mid-stream: one
// request fails, with the right kind, the others do not notice.
func TestErrorInMidStream(t *testing.T) {
	data := pattern(4 << 20)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f := &testFile{data: data}
			if tr.disk {
				f.disk = onDisk(t, data)
			}
			f.hook = func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
				if req.Extent.Offset != 1 {
					return f.serve(req, w)
				}
				part := req
				part.Extent.Length /= 2
				if err := f.serve(part, w); err != nil {
					return err
				}
				return errs.E(errs.Stale, "fetch", "s3://bucket/f", nil)
			}
			c := startServer(t, tr.network, DefaultServerConfig(), oneFile(f)).dial(t)
			h := mustOpen(t, c, "f", len(data))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for range 5 {
						p := make([]byte, 2<<20)
						_, err := c.ReadAt(t.Context(), h, p, int64(i), ReadOptions{})
						if i == 1 {
							var e *errs.Error
							if !errors.As(err, &e) || e.Kind != errs.Stale || !strings.Contains(err.Error(), "fetch s3://bucket/f: object has changed") {
								t.Errorf("the failed read: %v", err)
							}
							continue
						}
						if err != nil || !bytes.Equal(p, data[i:i+len(p)]) {
							t.Errorf("another read: %v", err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// A file that is shorter than its length when it is sent by descriptor fails
// the request, and the frame that was begun is completed.
func TestSendFileCutShort(t *testing.T) {
	data := pattern(3 << 20)
	for _, network := range []string{"tcp", "unix"} {
		f := &testFile{data: data, disk: onDisk(t, data[:1<<20+5])}
		c := startServer(t, network, DefaultServerConfig(), oneFile(f)).dial(t)
		h := mustOpen(t, c, "f", len(data))
		if _, err := c.ReadAt(t.Context(), h, make([]byte, len(data)), 0, ReadOptions{}); err == nil {
			t.Error("a read behind the end of the backing file succeeded")
		}
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 100), 1<<20+1000, ReadOptions{}); err == nil {
			t.Error("a small read behind the end of the backing file succeeded")
		}
		p := make([]byte, 1<<20)
		if _, err := c.ReadAt(t.Context(), h, p, 5, ReadOptions{}); err != nil || !bytes.Equal(p, data[5:5+1<<20]) {
			t.Errorf("the next read: %v", err)
		}
	}
}

// What a handler does wrong fails its request.
func TestHandlerDefects(t *testing.T) {
	data := pattern(100_000)
	for name, hook := range map[string]readHook{
		"nothing":  func(context.Context, *testFile, ReadRequest, Responder) error { return nil },
		"too few":  func(_ context.Context, f *testFile, _ ReadRequest, w Responder) error { return w.Write(f.data[:10]) },
		"too many": func(_ context.Context, f *testFile, _ ReadRequest, w Responder) error { return w.Write(f.data) },
	} {
		f := &testFile{data: data, hook: hook}
		c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
		h := mustOpen(t, c, "f", len(data))
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 1000), 0, ReadOptions{}); !errors.Is(err, errs.Internal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Pages that do not match their checksum are told, and only they are.
func TestCorruptPage(t *testing.T) {
	data := pattern(3*int(block.PageSize) + 100)
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		bad := bytes.Clone(f.data)
		bad[len(bad)-1] ^= 1 // in the short last page
		for p := range int64(4) {
			e := (block.Geometry{Length: int64(len(data)), BlockSize: block.DefaultBlockSize}).Page(p)
			w.PageCRC(p, block.Checksum(f.data[e.Offset:e.End()]))
		}
		return w.Write(bad[req.Extent.Offset:req.Extent.End()])
	}}
	c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	p := make([]byte, len(data))
	if n, err := c.ReadAt(t.Context(), h, p, 0, ReadOptions{}); n != 0 || !errors.Is(err, errs.Corrupt) {
		t.Errorf("a read with a damaged page: %d, %v", n, err)
	}
	if _, err := c.ReadAt(t.Context(), h, p[:len(p)-1], 0, ReadOptions{}); err != nil {
		t.Errorf("a read that covers the damaged page in part: %v", err)
	}
	if _, err := c.ReadAt(t.Context(), h, p[:3*block.PageSize], 0, ReadOptions{}); err != nil {
		t.Errorf("a read of the other pages: %v", err)
	}
	if err := c.over(); err != nil {
		t.Errorf("the connection: %v", err)
	}
}

// A peer that does not receive holds no caller up.
func TestCallersDoNotHangBehindSilentServer(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
		} else if err := greet(nc); err != nil {
			t.Error(err)
		}
		accepted <- nc // and is never read again
	}()
	c, err := Dial(t.Context(), "tcp", l.Addr().String(), DefaultClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer func() { (<-accepted).Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 200 { // 64 in flight with 64 KiB each fill the socket's buffers
		wg.Go(func() {
			if _, err := c.Open(ctx, ticketOf(strings.Repeat("x", block.MaxPathLength), 1)); !errors.Is(err, errs.Timeout) {
				t.Errorf("Open: %v", err)
			}
		})
	}
	wg.Wait()
}

// greet does a server's part of the handshake.
func greet(nc net.Conn) error {
	if _, err := readClientHello(nc); err != nil {
		return err
	}
	h := serverHello{Hello: Hello{Version: 1, MaxRequests: 64, MaxHandles: 10, MaxRead: MaxReadLength}}
	_, err := nc.Write(encodeServerHello(&h))
	return err
}

func TestConcurrentOpenClose(t *testing.T) {
	data := pattern(10_000)
	f := &testFile{data: data}
	s := startServer(t, "unix", DefaultServerConfig(), oneFile(f))
	c := s.dial(t)
	var wg sync.WaitGroup
	const goroutines, rounds = 8, 50
	for range goroutines {
		wg.Go(func() {
			p := make([]byte, 5000)
			for range rounds {
				h, err := c.Open(t.Context(), ticketOf("f", int64(len(data))))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.ReadAt(t.Context(), h, p, 100, ReadOptions{}); err != nil || !bytes.Equal(p, data[100:5100]) {
					t.Errorf("ReadAt: %v", err)
				}
				c.CloseHandle(h)
			}
		})
	}
	wg.Wait()
	s.stop()
	if got := f.closed.Load(); got != goroutines*rounds {
		t.Errorf("%d files were closed, want %d", got, goroutines*rounds)
	}
}
