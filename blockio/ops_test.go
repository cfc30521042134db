package blockio

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

// ranges makes Ranges of (offset, length).
func ranges(at ...[2]int) []Range {
	rs := make([]Range, 0, len(at))
	for _, r := range at {
		rs = append(rs, Range{Off: int64(r[0]), Buf: make([]byte, r[1])})
	}
	return rs
}

func TestReadV(t *testing.T) {
	data := pattern(5<<20 + 12345)
	const page = int(block.PageSize)
	many := make([][2]int, 0, 200)
	for i := range 200 { // more than one request
		many = append(many, [2]int{(i * 7919 * 13) % (len(data) - 5000), 1 + i*25%5000})
	}
	for _, tr := range transports() {
		for _, piece := range []int{0, 1000} {
			if tr.disk && piece != 0 {
				continue
			}
			t.Run(tr.name, func(t *testing.T) {
				f := &testFile{data: data, piece: piece}
				if tr.disk {
					f.disk = onDisk(t, data)
				}
				c := startServer(t, tr.network, DefaultServerConfig(), oneFile(f)).dial(t)
				h := mustOpen(t, c, "f", len(data))
				for _, rs := range [][]Range{
					ranges([2]int{5, 10}),
					ranges([2]int{0, 0}, [2]int{len(data), 0}),
					ranges([2]int{1 << 20, 4096}, [2]int{0, 1}, [2]int{7, 0}, [2]int{0, 4096}, [2]int{2, 100_000}),
					ranges([2]int{3 * page, 2 * page}, [2]int{page, page}, [2]int{page, page}, [2]int{page - 1, page + 2}),
					ranges([2]int{len(data) - 12345, 12345}, [2]int{0, len(data)}, [2]int{len(data), 0}),
					ranges(many...),
					nil,
				} {
					want := 0
					for _, r := range rs {
						want += len(r.Buf)
					}
					if n, err := c.ReadV(t.Context(), h, rs, ReadOptions{}); n != want || err != nil {
						t.Fatalf("ReadV: %d, %v, want %d", n, err, want)
					}
					for i, r := range rs {
						if !bytes.Equal(r.Buf, data[r.Off:r.Off+int64(len(r.Buf))]) {
							t.Fatalf("range %d of %d: wrong bytes", i, len(rs))
						}
					}
				}
			})
		}
	}
}

// Ranges of more bytes than one request are several requests, and one that is
// too long by itself is cut.
func TestReadVLong(t *testing.T) {
	data := pattern(3 << 20)
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(&testFile{data: data})).dial(t)
	c.hello.MaxRead = 1 << 20
	h := mustOpen(t, c, "f", len(data))
	rs := ranges([2]int{100, 600_000}, [2]int{7, 600_000}, [2]int{5, 2_500_000}, [2]int{0, 1})
	if n, err := c.ReadV(t.Context(), h, rs, ReadOptions{}); n != 3_700_001 || err != nil {
		t.Fatalf("ReadV: %d, %v", n, err)
	}
	for i, r := range rs {
		if !bytes.Equal(r.Buf, data[r.Off:r.Off+int64(len(r.Buf))]) {
			t.Errorf("range %d: wrong bytes", i)
		}
	}
}

// What a File is asked for, range by range.
func TestReadVRequests(t *testing.T) {
	data := pattern(1000)
	var mu sync.Mutex
	var got []ReadRequest
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		mu.Lock()
		defer mu.Unlock()
		req.Ahead = append([]block.Extent(nil), req.Ahead...)
		got = append(got, req)
		if req.Extent.Offset == 500 {
			return errs.Stale
		}
		return f.serve(req, w)
	}}
	c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	rs := ranges([2]int{5, 10}, [2]int{9, 0}, [2]int{500, 1}, [2]int{3, 3})
	n, err := c.ReadV(t.Context(), h, rs, ReadOptions{Priority: PriorityLoad, CachedOnly: true, TraceID: 3, PlacementEpoch: 4})
	if n > 10 || !errors.Is(err, errs.Stale) {
		t.Errorf("ReadV: %d, %v", n, err)
	}
	base := ReadRequest{Priority: PriorityLoad, CachedOnly: true, TraceID: 3, PlacementEpoch: 4}
	first, second := base, base
	first.Extent, first.Ahead = block.Extent{Offset: 5, Length: 10}, []block.Extent{{Offset: 9}, {Offset: 500, Length: 1}, {Offset: 3, Length: 3}}
	second.Extent = block.Extent{Offset: 500, Length: 1}
	mu.Lock()
	if diff := cmp.Diff([]ReadRequest{first, second}, got); diff != "" {
		t.Error(diff)
	}
	mu.Unlock()
	for _, rs := range [][]Range{ranges([2]int{-1, 1}), ranges([2]int{0, 1}, [2]int{1000, 1}), ranges([2]int{1001, 0})} {
		if n, err := c.ReadV(t.Context(), h, rs, ReadOptions{}); n != 0 || !errors.Is(err, errs.Invalid) {
			t.Errorf("ReadV(%d at %d): %d, %v", len(rs[0].Buf), rs[0].Off, n, err)
		}
	}
	if _, err := c.ReadV(t.Context(), h+1, ranges([2]int{0, 1}), ReadOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("ReadV of a handle that is not open: %v", err)
	}
}

// A File that writes more or less than one range asks for fails the request,
// though the sum may be right.
func TestReadVHandlerDefects(t *testing.T) {
	data := pattern(1000)
	for name, more := range map[string]int{"too many": 1, "too few": -1} {
		f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
			return w.Write(f.data[:int(req.Extent.Length)+more])
		}}
		c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
		h := mustOpen(t, c, "f", len(data))
		if _, err := c.ReadV(t.Context(), h, ranges([2]int{0, 100}, [2]int{200, 100}), ReadOptions{}); !errors.Is(err, errs.Internal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A damaged page is found wherever it is among the ranges.
func TestReadVCorruptPage(t *testing.T) {
	data := pattern(4*int(block.PageSize) + 100)
	const page = int(block.PageSize)
	bad := bytes.Clone(data)
	bad[2*page+5] ^= 1
	f := &testFile{data: data, hook: func(_ context.Context, _ *testFile, req ReadRequest, w Responder) error {
		g := block.Geometry{Length: int64(len(data)), BlockSize: block.DefaultBlockSize}
		for p := range g.Pages() {
			e := g.Page(p)
			w.PageCRC(p, block.Checksum(data[e.Offset:e.End()]))
		}
		return w.Write(bad[req.Extent.Offset:req.Extent.End()])
	}}
	c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	for _, tt := range []struct {
		ranges []Range
		want   error
	}{
		{ranges([2]int{3 * page, page}, [2]int{0, 2 * page}, [2]int{4 * page, 100}), nil},
		{ranges([2]int{2*page + 1, page}), nil}, // not whole
		{ranges([2]int{3 * page, page}, [2]int{1, page}, [2]int{page, 2 * page}), errs.Corrupt},
		{ranges([2]int{2 * page, page}, [2]int{0, page}), errs.Corrupt},
		{ranges([2]int{0, page}, [2]int{5, 0}, [2]int{2*page - 1, 2 * page}), errs.Corrupt},
	} {
		if _, err := c.ReadV(t.Context(), h, tt.ranges, ReadOptions{}); !errors.Is(err, tt.want) {
			t.Errorf("ReadV: %v, want %v", err, tt.want)
		}
	}
	p := make([]byte, page)
	if handle, err := c.OpenRead(t.Context(), ticketOf("f", int64(len(data))), p, int64(2*page), ReadOptions{}); handle != 0 || !errors.Is(err, errs.Corrupt) {
		t.Errorf("OpenRead: handle %d, %v", handle, err)
	}
}

// A caller that gave up has all its buffers back, and the slice of them.
func TestCanceledReadV(t *testing.T) {
	data := pattern(8 << 20)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f := &testFile{data: data, piece: 64 << 10}
			if tr.disk {
				f.disk = onDisk(t, data)
			}
			started := f.tellStarts()
			c := startServer(t, tr.network, DefaultServerConfig(), oneFile(f)).dial(t)
			h := mustOpen(t, c, "f", len(data))
			rs := make([]Range, MaxRanges)
			bufs := make([]byte, len(data))
			n := len(data) / len(rs)
			for range 10 {
				for i := range rs {
					rs[i] = Range{Off: int64(i * n), Buf: bufs[i*n : (i+1)*n]}
				}
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					<-started
					cancel()
				}()
				_, err := c.ReadV(ctx, h, rs, ReadOptions{})
				cancel()
				if err != nil && !errors.Is(err, errs.Canceled) {
					t.Fatal(err)
				}
				clear(rs) // the race detector tells of anyone else
				clear(bufs)
				q := make([]byte, 100_000)
				if n, err := c.ReadAt(t.Context(), h, q, 777, ReadOptions{}); err != nil || !bytes.Equal(q, data[777:777+len(q)]) {
					t.Fatalf("the next read: %d, %v", n, err)
				}
				if !bytes.Equal(bufs, make([]byte, len(bufs))) {
					t.Fatal("a buffer was written to after ReadV returned")
				}
				select { // of the second read
				case <-started:
				default:
				}
			}
		})
	}
}

func TestOpenRead(t *testing.T) {
	data := pattern(100_000)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f, empty := &testFile{data: data}, &testFile{}
			if tr.disk {
				f.disk = onDisk(t, data)
			}
			h := &testHandler{files: map[string]*testFile{"f": f, "empty": empty}}
			s := startServer(t, tr.network, DefaultServerConfig(), h)
			c := s.dial(t)
			seen := map[uint32]bool{}
			for _, r := range [][2]int{{0, len(data)}, {0, 1}, {99_000, 1000}, {17, 0}, {1000, 20_000}} {
				p := make([]byte, r[1])
				h, err := c.OpenRead(t.Context(), ticketOf("f", int64(len(data))), p, int64(r[0]), ReadOptions{})
				if err != nil || h == 0 || seen[h] || !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
					t.Fatalf("OpenRead(%d at %d): handle %d, %v", r[1], r[0], h, err)
				}
				seen[h] = true
				if _, err := c.ReadAt(t.Context(), h, p, int64(r[0]), ReadOptions{}); err != nil || !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
					t.Errorf("ReadAt with its handle: %v", err)
				}
			}
			if h, err := c.OpenRead(t.Context(), ticketOf("empty", 0), nil, 0, ReadOptions{}); err != nil || h == 0 {
				t.Errorf("OpenRead of an empty file: %d, %v", h, err)
			}
			for h := range seen {
				c.CloseHandle(h)
			}
			s.stop()
			if got := f.closed.Load(); int(got) != len(seen) || empty.closed.Load() != 1 {
				t.Errorf("%d and %d files were closed, want %d and 1", got, empty.closed.Load(), len(seen))
			}
		})
	}
}

// TestCheckedReads: a checked read wants the checksum of every page.
func TestCheckedReads(t *testing.T) {
	data := pattern(2*int(block.PageSize) + 100)
	var told atomic.Int64 // checksums that the server tells
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		g := block.Geometry{Length: int64(len(data)), BlockSize: block.DefaultBlockSize}
		for p := range told.Load() {
			w.PageCRC(p, block.Checksum(data[g.Page(p).Offset:g.Page(p).End()]))
		}
		return w.Write(data[req.Extent.Offset:req.Extent.End()])
	}}
	c := startServer(t, "tcp", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	p := make([]byte, len(data))
	for n := range int64(4) {
		told.Store(n)
		var want error
		if n < 3 {
			want = errs.Corrupt
		}
		check := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("%s with %d of 3 checksums: %v, want %v", what, n, err, want)
			}
		}
		_, err := c.ReadAt(t.Context(), h, p, 0, ReadOptions{Checked: true})
		check("ReadAt", err)
		_, err = c.ReadV(t.Context(), h, []Range{{Buf: p}}, ReadOptions{Checked: true})
		check("ReadV", err)
		_, err = c.OpenRead(t.Context(), ticketOf("f", int64(len(data))), p, 0, ReadOptions{Checked: true})
		check("OpenRead", err)
		if _, err = c.ReadAt(t.Context(), h, p, 0, ReadOptions{}); err != nil {
			t.Errorf("an unchecked read with %d of 3 checksums: %v", n, err)
		}
	}
}

// An OPEN_READ that fails leaves nothing open, wherever it fails.
func TestOpenReadErrors(t *testing.T) {
	data := pattern(100_000)
	f := &testFile{data: data, hook: func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		switch {
		case req.CachedOnly:
			return errs.NotCached
		case req.Extent.Offset == 7: // in mid-stream
			if err := w.Write(f.data[:50_000]); err != nil {
				return err
			}
			return errs.E(errs.Stale, "fetch", "x", nil)
		}
		return f.serve(req, w)
	}}
	cfg := DefaultServerConfig()
	cfg.MaxHandles = 1
	s := startServer(t, "tcp", cfg, oneFile(f))
	c := s.dial(t)
	for _, tt := range []struct {
		path   string
		length int
		off, n int
		o      ReadOptions
		want   error
	}{
		{path: "g", length: len(data), n: 10, want: errs.NotFound},
		{path: "f", length: len(data), n: 10, o: ReadOptions{CachedOnly: true}, want: errs.NotCached},
		{path: "f", length: len(data), off: 7, n: 60_000, want: errs.Stale},
		{path: "f", length: len(data), off: 99_999, n: 2, want: errs.Invalid},
		{path: "f", length: len(data), off: -1, n: 2, want: errs.Invalid},
		{path: "f", length: len(data), n: 10},
		{path: "f", length: len(data), n: 10, want: errs.Busy}, // after those that failed, one
	} {
		h, err := c.OpenRead(t.Context(), ticketOf(tt.path, int64(tt.length)), make([]byte, tt.n), int64(tt.off), tt.o)
		if !errors.Is(err, tt.want) || (h == 0) != (tt.want != nil) {
			t.Errorf("OpenRead(%s, %d at %d): handle %d, %v, want %v", tt.path, tt.n, tt.off, h, err, tt.want)
		}
	}
	if got := f.closed.Load(); got != 2 {
		t.Errorf("%d files were closed, want the 2 whose read failed", got)
	}
	c.hello.MaxRead = 9
	if _, err := c.OpenRead(t.Context(), ticketOf("f", int64(len(data))), make([]byte, 10), 0, ReadOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("OpenRead of more than a request can have: %v", err)
	}
}

// The handle of an OPEN_READ that nobody waited for is given back.
func TestCanceledOpenReadClosesFile(t *testing.T) {
	reading, free := make(chan struct{}), make(chan struct{})
	f := &closeFile{closed: make(chan struct{}), testFile: testFile{data: pattern(100)}}
	f.hook = func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		if err := w.Write(f.data[req.Extent.Offset:req.Extent.End()]); err != nil {
			return err
		}
		close(reading)
		<-free // deaf to its context: it succeeds
		return nil
	}
	h := &testHandler{hook: func(context.Context, *block.Ticket) (File, error) { return f, nil }}
	c := startServer(t, "unix", DefaultServerConfig(), h).dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reading
		cancel()
	}()
	if _, err := c.OpenRead(ctx, ticketOf("f", 100), make([]byte, 100), 0, ReadOptions{}); !errors.Is(err, errs.Canceled) {
		t.Errorf("OpenRead: %v", err)
	}
	close(free)
	<-f.closed
}

func TestTouch(t *testing.T) {
	h := oneFile(&testFile{})
	c := startServer(t, "unix", DefaultServerConfig(), h).dial(t)
	want := map[block.FileID]int{}
	touches := make([]Touch, 0, 3*maxTouches/2)
	for i := range cap(touches) {
		id := block.MintFileID([16]byte{byte(i), byte(i >> 8 & 1)})
		touches = append(touches, Touch{FileID: id, Count: uint32(i)})
		want[id] += i
	}
	if err := c.Touch(t.Context(), touches); err != nil {
		t.Fatal(err)
	}
	if err := c.Touch(t.Context(), nil); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	if diff := cmp.Diff(want, h.touched); diff != "" {
		t.Error(diff)
	}
	h.touch = errs.Throttled
	h.mu.Unlock()
	if err := c.Touch(t.Context(), touches[:1]); !errors.Is(err, errs.Throttled) {
		t.Errorf("Touch: %v", err)
	}
}

func TestRecalls(t *testing.T) {
	h := oneFile(&testFile{})
	c := startServer(t, "unix", DefaultServerConfig(), h).dial(t)
	many := make([]block.FileID, MaxRecalls)
	for i := range many {
		many[i] = block.MintFileID([16]byte{byte(i), byte(i >> 8)})
	}
	for _, want := range []Recalls{
		{Position: 1, Idle: AnyTime},
		{Position: 1 << 63, Idle: 5 * time.Second, Files: many[:1]},
		{Position: 3, Files: many},
	} {
		h.mu.Lock()
		h.recalls = want
		h.mu.Unlock()
		got, err := c.Recalls(t.Context(), want.Position-1)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v, %s", err, diff)
		}
		h.mu.Lock()
		if h.since != want.Position-1 {
			t.Errorf("the server was asked from %d, want %d", h.since, want.Position-1)
		}
		h.mu.Unlock()
	}
	h.mu.Lock()
	h.recalls.Files = make([]block.FileID, MaxRecalls+1)
	h.mu.Unlock()
	if _, err := c.Recalls(t.Context(), 1); !errors.Is(err, errs.Internal) {
		t.Errorf("too many files: %v", err)
	}
	h.mu.Lock()
	h.recallsE = errs.Throttled
	h.mu.Unlock()
	if _, err := c.Recalls(t.Context(), 1); !errors.Is(err, errs.Throttled) {
		t.Errorf("Recalls: %v", err)
	}
}

// What is wanted of a descriptor arrives.
func TestDescriptorOptions(t *testing.T) {
	f := &testFile{data: pattern(100)}
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dial(t)
	handle := mustOpen(t, c, "f", 100)
	for _, want := range []DescriptorOptions{{}, {Fill: true}, {Fill: true, Priority: PriorityLoad}, {Priority: PriorityRepair}} {
		if _, _, err := c.Descriptor(t.Context(), handle, want); !errors.Is(err, errs.NotCached) {
			t.Error(err)
		}
		if got := *f.want.Load(); got != want {
			t.Errorf("%+v arrives as %+v", want, got)
		}
	}
}

// plainHandler is a Handler and nothing else.
type plainHandler struct{ Handler }

// plainFile is a File and nothing else.
type plainFile struct{ File }

// What the server does not offer is Unsupported, and costs no round trip.
func TestUnsupported(t *testing.T) {
	data := pattern(100)
	for _, network := range []string{"tcp", "unix"} {
		h := &testHandler{hook: func(context.Context, *block.Ticket) (File, error) {
			return plainFile{&testFile{data: data}}, nil
		}}
		c := startServer(t, network, DefaultServerConfig(), plainHandler{h}).dial(t)
		handle := mustOpen(t, c, "f", len(data))
		if err := c.Touch(t.Context(), []Touch{{}}); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: Touch: %v", network, err)
		}
		if _, _, err := c.Descriptor(t.Context(), handle, DescriptorOptions{}); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: Descriptor: %v", network, err)
		}
		if _, err := c.Recalls(t.Context(), 0); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: Recalls: %v", network, err)
		}
		c.hello.Features = 0
		if _, err := c.ReadV(t.Context(), handle, ranges([2]int{0, 1}), ReadOptions{}); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: ReadV: %v", network, err)
		}
		if _, err := c.OpenRead(t.Context(), ticketOf("f", 100), nil, 0, ReadOptions{}); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: OpenRead: %v", network, err)
		}
	}
}

// All ops at once on one connection.
func TestInterleavedOps(t *testing.T) {
	data := pattern(1<<20 + 99)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			f := &testFile{data: data}
			disk := onDisk(t, data)
			if tr.disk {
				f.disk = disk
			}
			f.give = reopened(disk, 0, int64(len(data)))
			cfg := DefaultServerConfig()
			cfg.MaxRequests = 8
			s := startServer(t, tr.network, cfg, oneFile(f))
			c := s.dial(t)
			h := mustOpen(t, c, "f", len(data))
			var wg sync.WaitGroup
			for g := range 16 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(2, uint64(g)))
					for range 10 {
						if err := oneOp(t, c, h, data, rng, tr.network); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// oneOp does one random request and checks what it yields.
func oneOp(t *testing.T, c *Conn, h uint32, data []byte, rng *rand.Rand, network string) error {
	t.Helper()
	some := func(most int) Range {
		n := rng.IntN(most) + 1
		return Range{Off: rng.Int64N(int64(len(data) - n)), Buf: make([]byte, n)}
	}
	rs := []Range{some(len(data) - 1)}
	var err error
	switch op := rng.IntN(5); {
	case op == 0:
		_, err = c.ReadAt(t.Context(), h, rs[0].Buf, rs[0].Off, ReadOptions{Priority: Priority(rng.IntN(3))})
	case op == 1:
		for range rng.IntN(100) {
			rs = append(rs, some(20_000))
		}
		_, err = c.ReadV(t.Context(), h, rs, ReadOptions{Priority: Priority(rng.IntN(3))})
	case op == 2:
		var handle uint32
		handle, err = c.OpenRead(t.Context(), ticketOf("f", int64(len(data))), rs[0].Buf, rs[0].Off, ReadOptions{})
		c.CloseHandle(handle)
	case op == 3 && network == "unix":
		f, base, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.ReadAt(rs[0].Buf, base+rs[0].Off); err != nil {
			return err
		}
	default:
		return c.Touch(t.Context(), []Touch{{Count: 1}})
	}
	for _, r := range rs {
		if err == nil && !bytes.Equal(r.Buf, data[r.Off:r.Off+int64(len(r.Buf))]) {
			err = errs.Corrupt
		}
	}
	return err
}
