package blockio

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
)

const testMark = 0x1122334455667788

// placedFile is a promptFile of which the bytes before there are in place.
type placedFile struct {
	*promptFile
	there       atomic.Int64 // now
	comes       int64        // while a read waits
	failsAt     int64        // where a read fails; 0 is nowhere
	mark        uint64
	placed, own atomic.Int32 // reads that were told of, at once and later
}

func (f *placedFile) PartialDescriptor(ctx context.Context) (fd *os.File, base, length int64, mark uint64, err error) {
	if f.give == nil {
		return nil, 0, 0, 0, errs.E(errs.NotCached, "pass a descriptor", "", nil)
	}
	fd, base, length, err = f.give(ctx)
	return fd, base, length, f.mark, err
}

func (f *placedFile) PlaceNow(_ context.Context, req ReadRequest, mark uint64) bool {
	if mark != testMark || req.Extent.End() > f.there.Load() {
		return false
	}
	f.placed.Add(1)
	return true
}

func (f *placedFile) Place(_ context.Context, req ReadRequest, mark uint64) (bool, error) {
	switch {
	case f.failsAt != 0 && req.Extent.Offset == f.failsAt:
		return false, errs.E(errs.Stale, "read", "f", nil)
	case mark != testMark || req.Extent.End() > f.comes:
		return false, nil
	}
	f.own.Add(1)
	return true, nil
}

func startPlaced(t *testing.T, f *placedFile) *server {
	t.Helper()
	return startServer(t, "unix", DefaultServerConfig(), &testHandler{hook: func(context.Context, *block.Ticket) (File, error) { return f, nil }})
}

// Reads in place are told of bytes that are there or come, and get all others.
func TestReadInPlace(t *testing.T) {
	const length = 3 << 20
	data := pattern(length)
	disk := onDisk(t, data)
	f := &placedFile{
		promptFile: &promptFile{testFile: &testFile{data: data, give: reopened(disk, 0, length)}, late: true},
		mark:       testMark, comes: 2 << 20, failsAt: 2<<20 + 99,
	}
	f.there.Store(1 << 20)
	c := startPlaced(t, f).dial(t)
	h := mustOpen(t, c, "f", length)
	fd, base, mark, err := c.PartialDescriptor(t.Context(), h)
	if err != nil || base != 0 || mark != testMark {
		t.Fatalf("PartialDescriptor: base %d, mark %#x, %v", base, mark, err)
	}
	defer fd.Close()
	for _, tt := range []struct {
		name    string
		off, n  int
		mark    uint64
		inPlace bool
	}{
		{"there", 0, 1 << 20, mark, true},
		{"there, few bytes", 5, 10, mark, true},
		{"comes", 1 << 20, 1 << 20, mark, true},
		{"more than one frame has", 0, 2 << 20, mark, true},
		{"neither", 2 << 20, 1 << 20, mark, false},
		{"neither, few bytes", 2<<20 + 5, 10, mark, false},
		{"another file", 0, 1 << 20, mark + 1, false},
	} {
		p := make([]byte, tt.n)
		inPlace, err := c.ReadInPlace(t.Context(), h, p, int64(tt.off), tt.mark, ReadOptions{})
		if err != nil || inPlace != tt.inPlace {
			t.Fatalf("%s: in place %t, %v", tt.name, inPlace, err)
		}
		want := data[tt.off : tt.off+tt.n]
		if inPlace {
			want = make([]byte, tt.n)
		}
		if !bytes.Equal(p, want) {
			t.Errorf("%s: wrong bytes", tt.name)
		}
	}
	if now, later := f.placed.Load(), f.own.Load(); now+later != 4 || later < 2 {
		t.Errorf("%d reads were told at once, %d later", now, later)
	}
	if inPlace, err := c.ReadInPlace(t.Context(), h, make([]byte, 10), f.failsAt, mark, ReadOptions{}); inPlace || !errors.Is(err, errs.Stale) {
		t.Errorf("a failure: in place %t, %v", inPlace, err)
	}
	if n, err := c.ReadInPlace(t.Context(), h, nil, 0, mark, ReadOptions{}); n || err != nil {
		t.Errorf("a read of nothing: %t, %v", n, err)
	}
	for name, read := range map[string]func() error{
		"no mark": func() error { _, err := c.ReadInPlace(t.Context(), h, data[:10], 0, 0, ReadOptions{}); return err },
		"behind end": func() error {
			_, err := c.ReadInPlace(t.Context(), h, data[:10], length, mark, ReadOptions{})
			return err
		},
		"checked": func() error {
			_, err := c.ReadInPlace(t.Context(), h, make([]byte, 10), 0, mark, ReadOptions{Checked: true})
			return err
		},
	} {
		if err := read(); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A File that cannot is read as ever, and has no partial descriptor; one that
// gives no mark is at fault.
func TestNotInPlace(t *testing.T) {
	data := pattern(5000)
	disk := onDisk(t, data)
	whole := &testFile{data: data, give: reopened(disk, 0, int64(len(data)))}
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(whole)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	if _, _, _, err := c.PartialDescriptor(t.Context(), h); !errors.Is(err, errs.Unsupported) {
		t.Errorf("PartialDescriptor: %v", err)
	}
	p := make([]byte, len(data))
	if inPlace, err := c.ReadInPlace(t.Context(), h, p, 0, 1, ReadOptions{}); inPlace || err != nil || !bytes.Equal(p, data) {
		t.Errorf("in place %t, %v", inPlace, err)
	}

	f := &placedFile{promptFile: &promptFile{testFile: whole}}
	c = startPlaced(t, f).dial(t)
	h = mustOpen(t, c, "f", len(data))
	if _, _, _, err := c.PartialDescriptor(t.Context(), h); !errors.Is(err, errs.Internal) {
		t.Errorf("without a mark: %v", err)
	}
	c = startPlaced(t, &placedFile{promptFile: &promptFile{testFile: &testFile{data: data}}}).dial(t)
	h = mustOpen(t, c, "f", len(data))
	if _, _, _, err := c.PartialDescriptor(t.Context(), h); !errors.Is(err, errs.NotCached) {
		t.Errorf("without a descriptor: %v", err)
	}
	c = startServer(t, "tcp", DefaultServerConfig(), oneFile(whole)).dial(t)
	h = mustOpen(t, c, "f", len(data))
	if _, _, _, err := c.PartialDescriptor(t.Context(), h); !errors.Is(err, errs.Unsupported) {
		t.Errorf("on TCP: %v", err)
	}
	if _, err := c.ReadInPlace(t.Context(), h, p, 0, 1, ReadOptions{}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("on TCP: %v", err)
	}
	noneLeft(t, disk)
}

// What a server may not answer to a read in place.
func TestLyingInPlace(t *testing.T) {
	frame := func(op op, payload []byte) []byte {
		return append(appendHeader(nil, &header{Op: op, RequestID: 2, Handle: 1, Length: uint32(len(payload))}), payload...)
	}
	end := frame(opEnd, appendEnd(nil, &endPayload{}))
	for _, tt := range []struct {
		name    string
		send    []byte
		inPlace bool
		want    error
	}{
		{"no lie", end, true, nil},
		{"bytes", append(frame(opData, make([]byte, 1000)), end...), false, nil},
		{"some bytes", append(frame(opData, make([]byte, 999)), end...), false, errs.Unavailable},
		{"a checksum", frame(opEnd, appendEnd(nil, &endPayload{CRCs: make([]pageCRC, 1)})), false, errs.Unavailable},
		{"a failure", frame(opEnd, appendEnd(nil, &endPayload{Failed: true, Kind: errs.Busy})), false, errs.Busy},
		{"hung up", nil, false, errs.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := net.Pipe()
			var served sync.WaitGroup
			served.Go(func() {
				defer far.Close()
				if err := lie(far, tt.send); err != nil {
					t.Error(err)
				}
			})
			c := trusting(t, near)
			defer served.Wait()
			defer c.Close()
			h := mustOpen(t, c, "f", 2000)
			inPlace, err := c.ReadInPlace(t.Context(), h, make([]byte, 1000), 0, testMark, ReadOptions{})
			if inPlace != tt.inPlace || !errors.Is(err, tt.want) {
				t.Errorf("in place %t, %v", inPlace, err)
			}
		})
	}
}

// A descriptor to be read in place comes with a mark, or the connection ends.
func TestLyingPartialDescriptor(t *testing.T) {
	disk := onDisk(t, pattern(1000))
	for _, tt := range []struct {
		name string
		d    descriptorPayload
		want error
	}{
		{"no lie", descriptorPayload{Length: 1000, Mark: 5}, nil},
		{"no mark", descriptorPayload{Length: 1000}, errs.Unavailable},
		{"wrong length", descriptorPayload{Length: 999, Mark: 5}, errs.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := socketPair(t)
			var served sync.WaitGroup
			served.Go(func() {
				defer far.Close()
				if err := lieUntil(far, openedFrame(1)); err != nil {
					t.Error(err)
					return
				}
				passing(t, far, descriptorFrames(tt.d, &endPayload{}), disk)
			})
			c := trusting(t, near)
			h := mustOpen(t, c, "f", 1000)
			fd, _, mark, err := c.PartialDescriptor(t.Context(), h)
			if !errors.Is(err, tt.want) || (fd == nil) != (tt.want != nil) || (mark == 0) != (tt.want != nil) {
				t.Errorf("%v, mark %d, %v", fd, mark, err)
			}
			if fd != nil {
				fd.Close()
			}
			c.Close()
			served.Wait()
			noneLeft(t, disk)
		})
	}
}
