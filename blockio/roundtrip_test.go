package blockio

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// transport is one way of a read.
type transport struct {
	name, network string
	disk          bool // the file has a descriptor
}

// transports are the ways that all round trips are done on.
func transports() []transport {
	return []transport{
		{"tcp/copy", "tcp", false},
		{"tcp/sendfile", "tcp", true},
		{"unix/copy", "unix", false},
		{"unix/sendfile", "unix", true},
	}
}

func TestReadEverySize(t *testing.T) {
	data := pattern(5<<20 + 12345)
	const page = int(block.PageSize)
	reads := []struct{ off, n int }{
		{0, 1},
		{0, 0},
		{17, 4096},
		{0, smallSize},
		{1, smallSize + 1},
		{5, 64 << 10},
		{0, page},
		{page, page},
		{page - 1, page + 2},
		{0, MaxDataFrame},
		{3, MaxDataFrame + 1},
		{0, len(data)},
		{len(data) - 1, 1},
		{len(data), 0},
		{len(data) - 12345, 12345},
		{len(data) - page, page},
	}
	for _, tr := range transports() {
		for _, piece := range []int{0, 1000, 100_000} {
			if tr.disk && piece != 0 {
				continue
			}
			t.Run(tr.name, func(t *testing.T) {
				f := &testFile{data: data, piece: piece}
				if tr.disk {
					f.disk = onDisk(t, data)
				}
				s := startServer(t, tr.network, DefaultServerConfig(), oneFile(f))
				c := s.dial(t)
				h := mustOpen(t, c, "f", len(data))
				for _, r := range reads {
					p := make([]byte, r.n)
					n, err := c.ReadAt(t.Context(), h, p, int64(r.off), ReadOptions{})
					if n != r.n || err != nil {
						t.Fatalf("ReadAt(%d at %d): %d, %v", r.n, r.off, n, err)
					}
					if !bytes.Equal(p, data[r.off:r.off+r.n]) {
						t.Fatalf("ReadAt(%d at %d): wrong bytes", r.n, r.off)
					}
				}
			})
		}
	}
}

func TestInterleavedReads(t *testing.T) {
	data := pattern(3<<20 + 99)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f := &testFile{data: data}
			if tr.disk {
				f.disk = onDisk(t, data)
			}
			cfg := DefaultServerConfig()
			cfg.MaxRequests = 16
			s := startServer(t, tr.network, cfg, oneFile(f))
			c := s.dial(t)
			h := mustOpen(t, c, "f", len(data))
			var wg sync.WaitGroup
			for g := range 24 { // more than may be in flight
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(1, uint64(g)))
					buf := make([]byte, 1<<20+4096)
					for range 30 {
						n := rng.IntN(8000) + 1
						if rng.IntN(4) == 0 {
							n = rng.IntN(len(buf)) + 1
						}
						off := rng.IntN(len(data) - n)
						p := buf[:n]
						if got, err := c.ReadAt(t.Context(), h, p, int64(off), ReadOptions{}); got != n || err != nil {
							t.Errorf("ReadAt(%d at %d): %d, %v", n, off, got, err)
							return
						}
						if !bytes.Equal(p, data[off:off+n]) {
							t.Errorf("ReadAt(%d at %d): wrong bytes", n, off)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestHello(t *testing.T) {
	for network, features := range map[string]uint64{
		"tcp":  FeatureReadV | FeatureOpenRead | FeatureTouch,
		"unix": FeatureReadV | FeatureOpenRead | FeatureTouch | FeatureFD | FeatureRecalls | FeatureInPlace,
	} {
		s := startServer(t, network, DefaultServerConfig(), oneFile(&testFile{}))
		got := s.dial(t).Hello()
		want := Hello{Version: 1, Features: features, WorkerID: "w1", BootID: "b1", MaxRequests: 256, MaxHandles: 16384, MaxRead: MaxReadLength}
		if got != want {
			t.Errorf("%s: Hello() = %+v, want %+v", network, got, want)
		}
	}
}

func TestReadErrors(t *testing.T) {
	data := pattern(1000)
	f := &testFile{data: data}
	s := startServer(t, "tcp", DefaultServerConfig(), oneFile(f))
	c := s.dial(t)
	if _, err := c.Open(t.Context(), ticketOf("g", 10)); !errors.Is(err, errs.NotFound) {
		t.Errorf("Open of an unknown path: %v", err)
	}
	bad := ticketOf("f", 10)
	bad.Tag = "other"
	if _, err := c.Open(t.Context(), bad); !errors.Is(err, errs.Invalid) {
		t.Errorf("Open with an ID that is not the ticket's: %v", err)
	}
	h := mustOpen(t, c, "f", len(data))
	for _, r := range []struct{ off, n int64 }{{-1, 1}, {1000, 1}, {999, 2}, {1001, 0}, {1 << 62, 1}} {
		if n, err := c.ReadAt(t.Context(), h, make([]byte, r.n), r.off, ReadOptions{}); n != 0 || !errors.Is(err, errs.Invalid) {
			t.Errorf("ReadAt(%d at %d): %d, %v", r.n, r.off, n, err)
		}
	}
	if _, err := c.ReadAt(t.Context(), h+1, make([]byte, 1), 0, ReadOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("ReadAt of a handle that is not open: %v", err)
	}
	c.CloseHandle(h)
	c.CloseHandle(h) // no harm
	if _, err := c.ReadAt(t.Context(), h, make([]byte, 1), 0, ReadOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("ReadAt of a closed handle: %v", err)
	}
	h = mustOpen(t, c, "f", len(data)) // behind the CLOSE on the same connection
	if n, err := c.ReadAt(t.Context(), h, make([]byte, 10), 5, ReadOptions{}); n != 10 || err != nil {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	s.stop()
	if got := f.closed.Load(); got != 2 {
		t.Errorf("%d files were closed, want 2", got)
	}
	<-c.Done()
	if _, err := c.ReadAt(t.Context(), h, make([]byte, 1), 0, ReadOptions{}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("ReadAt on a lost connection: %v", err)
	}
	if _, err := c.Open(t.Context(), ticketOf("f", 10)); !errors.Is(err, errs.Unavailable) {
		t.Errorf("Open on a lost connection: %v", err)
	}
}

// What goes with a request arrives.
func TestReadOptions(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) { testReadOptions(t, network, network == "unix") })
	}
}

func testReadOptions(t *testing.T, network string, local bool) {
	t.Helper()
	data := pattern(1000)
	got := make(chan ReadRequest, 1)
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		got <- req
		if req.CachedOnly {
			return errs.NotCached
		}
		return f.serve(req, w)
	}}
	s := startServer(t, network, DefaultServerConfig(), oneFile(f))
	c := s.dial(t)
	h := mustOpen(t, c, "f", len(data))
	if c.PlacementEpoch() != 0 {
		t.Errorf("an epoch of %d from a server that knows none", c.PlacementEpoch())
	}
	s.SetPlacementEpoch(9)
	for _, tt := range []struct {
		o    ReadOptions
		want ReadRequest
		err  error
	}{
		{want: ReadRequest{Extent: block.Extent{Offset: 3, Length: 10}}},
		{
			o:    ReadOptions{Priority: PriorityRepair, PlacementEpoch: 8, TraceID: 1<<64 - 1, CachedOnly: true},
			want: ReadRequest{Extent: block.Extent{Offset: 3, Length: 10}, Priority: PriorityRepair, PlacementEpoch: 8, TraceID: 1<<64 - 1, CachedOnly: true},
			err:  errs.NotCached,
		},
		{o: ReadOptions{Replica: true}, want: ReadRequest{Extent: block.Extent{Offset: 3, Length: 10}, Replica: true}},
		{o: ReadOptions{ReadThrough: true}, want: ReadRequest{Extent: block.Extent{Offset: 3, Length: 10}, ReadThrough: true}},
	} {
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), 3, tt.o); !errors.Is(err, tt.err) {
			t.Errorf("ReadAt: %v, want %v", err, tt.err)
		}
		tt.want.Local = local
		if diff := cmp.Diff(tt.want, <-got); diff != "" {
			t.Error(diff)
		}
	}
	if c.PlacementEpoch() != 9 {
		t.Errorf("epoch %d, want 9", c.PlacementEpoch())
	}
}

// A read longer than the server takes at once is done in pieces, whose pages
// are checked.
func TestLongRead(t *testing.T) {
	data := pattern(3 << 20)
	var mu sync.Mutex
	var pieces []block.Extent
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		mu.Lock()
		defer mu.Unlock()
		pieces = append(pieces, req.Extent)
		return f.serve(req, w)
	}}
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dial(t)
	c.hello.MaxRead = 1<<20 + 7
	h := mustOpen(t, c, "f", len(data))
	p := make([]byte, 2<<20+100)
	if n, err := c.ReadAt(t.Context(), h, p, 1000, ReadOptions{}); n != len(p) || err != nil || !bytes.Equal(p, data[1000:1000+len(p)]) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	want := []block.Extent{{Offset: 1000, Length: 1<<20 - 1000}, {Offset: 1 << 20, Length: 1 << 20}, {Offset: 2 << 20, Length: 1100}}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, pieces); diff != "" {
		t.Error(diff)
	}
}

func TestConfigs(t *testing.T) {
	if err := DefaultServerConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := DefaultClientConfig().Validate(); err != nil {
		t.Error(err)
	}
	var s ServerConfig
	var c ClientConfig
	for err, field := range map[error]string{s.Validate(): "max_connections", c.Validate(): "cancel_timeout"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not name %s", err, field)
		}
	}
	if _, err := Dial(t.Context(), "tcp", "127.0.0.1:1", c); !errors.Is(err, errs.Invalid) {
		t.Errorf("Dial with an empty configuration: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	if _, err := Dial(t.Context(), "unix", filepath.Join(t.TempDir(), "none"), DefaultClientConfig()); !errors.Is(err, errs.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := DefaultClientConfig()
	cfg.HandshakeTimeout = size.Duration(20 * time.Millisecond)
	if _, err := Dial(t.Context(), "tcp", l.Addr().String(), cfg); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a silent server: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, "tcp", l.Addr().String(), DefaultClientConfig()); !errors.Is(err, errs.Timeout) {
		t.Errorf("a deadline of the caller: %v", err)
	}
}
