package blockio

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"millrace/block"
	"millrace/internal/errs"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *serveFor != "" { // the other process of a benchmark
		if err := serveAlone(*serveFor, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// testFile is a File over bytes in memory, or on disk when sendfile is wanted.
type testFile struct {
	data   []byte
	disk   *os.File
	piece  int // bytes per Write; 0 is all at once
	closed atomic.Int32
	// give is what Descriptor does; without it the file has none.
	give func(ctx context.Context) (*os.File, int64, int64, error)
	// want is what the last question for a descriptor wanted.
	want atomic.Pointer[DescriptorOptions]
	// hook replaces Read where a test wants something else.
	hook readHook
}

type readHook func(ctx context.Context, f *testFile, req ReadRequest, w Responder) error

// tellStarts has the file tell of reads that begin, of one until it is heard.
func (f *testFile) tellStarts() <-chan struct{} {
	started := make(chan struct{}, 1)
	f.hook = func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		select {
		case started <- struct{}{}:
		default:
		}
		return f.serve(req, w)
	}
	return started
}

func (f *testFile) Read(ctx context.Context, req ReadRequest, w Responder) error {
	if f.hook != nil {
		return f.hook(ctx, f, req, w)
	}
	return f.serve(req, w)
}

func (f *testFile) serve(req ReadRequest, w Responder) error {
	e := req.Extent
	g := block.Geometry{Length: int64(len(f.data)), BlockSize: block.DefaultBlockSize}
	first, end := g.PageRange(e)
	if e.Length >= block.PageSize || e.End() == g.Length {
		for p := first; p < end; p++ {
			page := g.Page(p)
			w.PageCRC(p, block.Checksum(f.data[page.Offset:page.End()]))
		}
	}
	if f.disk != nil {
		return w.SendFile(f.disk, e.Offset, e.Length)
	}
	b := f.data[e.Offset:e.End()]
	for len(b) > 0 {
		n := len(b)
		if f.piece > 0 {
			n = min(n, f.piece)
		}
		if err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (f *testFile) Descriptor(ctx context.Context, o DescriptorOptions) (fd *os.File, base, length int64, err error) {
	f.want.Store(&o)
	if f.give == nil {
		return nil, 0, 0, errs.E(errs.NotCached, "pass a descriptor", "", nil)
	}
	return f.give(ctx)
}

func (f *testFile) Close() error {
	f.closed.Add(1)
	return nil
}

// testHandler opens testFiles by the ticket's path.
type testHandler struct {
	mu    sync.Mutex
	files map[string]*testFile
	hook  func(ctx context.Context, t *block.Ticket) (File, error)

	touched map[block.FileID]int
	touch   error

	recalls  Recalls
	recallsE error
	since    uint64
}

func (h *testHandler) Touch(_ context.Context, touches []Touch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.touched == nil {
		h.touched = map[block.FileID]int{}
	}
	for _, t := range touches {
		h.touched[t.FileID] += int(t.Count)
	}
	return h.touch
}

func (h *testHandler) Recalls(_ context.Context, since uint64) (Recalls, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since = since
	return h.recalls, h.recallsE
}

func (h *testHandler) Open(ctx context.Context, t *block.Ticket) (File, error) {
	if h.hook != nil {
		return h.hook(ctx, t)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files[t.Path]
	if f == nil {
		return nil, errs.E(errs.NotFound, "open", t.Path, nil)
	}
	return f, nil
}

func oneFile(f *testFile) *testHandler {
	return &testHandler{files: map[string]*testFile{"f": f}}
}

func ticketOf(path string, length int64) *block.Ticket {
	t := &block.Ticket{MountID: 1, Path: path, Tag: "t", Length: length, BlockSize: block.DefaultBlockSize}
	t.FileID = t.Derive()
	return t
}

// pattern returns n bytes that differ by position.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func onDisk(t testing.TB, data []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

// server is a Server under test on one listener.
type server struct {
	*Server
	network, addr string
	stop          func() // ends Serve and waits for it; idempotent
}

func startServer(t testing.TB, network string, cfg ServerConfig, h Handler) *server {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, NewServer(cfg, Identity{WorkerID: "w1", BootID: "b1"}, h, discard(), nil), network, l)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func serveOn(t testing.TB, srv *Server, network string, l net.Listener) *server {
	t.Helper()
	s := &server{Server: srv, network: network, addr: l.Addr().String()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// raw is a connection after the handshake, for frames that a Conn would not
// send.
func (s *server) raw(t testing.TB) net.Conn {
	t.Helper()
	var d net.Dialer
	nc, err := d.DialContext(t.Context(), s.network, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := shakeHands(t.Context(), nc, DefaultClientConfig()); err != nil {
		t.Fatal(err)
	}
	return nc
}

// rawOpen opens the file f of 1000 bytes, as handle 1.
func rawOpen(t testing.TB, nc net.Conn) {
	t.Helper()
	if _, err := nc.Write(openFrame(t, 1, "f", 1000)); err != nil {
		t.Fatal(err)
	}
	if e, err := nextEnd(nc, 1); err != nil || e.Failed {
		t.Fatal(e, err)
	}
}

func (s *server) dial(t testing.TB) *Conn {
	t.Helper()
	return s.dialWith(t, DefaultClientConfig())
}

func (s *server) dialWith(t testing.TB, cfg ClientConfig) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), s.network, s.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func mustOpen(t testing.TB, c *Conn, path string, length int) uint32 {
	t.Helper()
	h, err := c.Open(t.Context(), ticketOf(path, int64(length)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}
