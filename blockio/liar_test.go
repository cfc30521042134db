package blockio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"millrace/internal/errs"
)

// allocated returns the bytes that do allocates, in all goroutines.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// maxLieCost bounds what a lie may make the other side allocate, a new
// connection's buffers included.
const maxLieCost = 2 << 20

// A client that lies loses its connection, and nobody else notices.
func TestLyingClient(t *testing.T) {
	data := pattern(1 << 20)
	hello := encodeClientHello(&clientHello{Least: 1, Most: 1})
	broken := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	read := readFrameOf(2, 1, 0, 100, nil)
	raw := func(change func(*header)) []byte { return readFrameOf(2, 1, 0, 100, change) }
	open := openFrame(t, 1, "f", int64(len(data)))
	tests := []struct {
		name string
		send [][]byte
		end  bool // the lie is that nothing follows
	}{
		{name: "wrong magic", send: [][]byte{broken(hello, 0)}},
		{name: "http", send: [][]byte{[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")}},
		{name: "hello of 4 GiB", send: [][]byte{append([]byte(magic), 1, 0, 1, 0, 255, 255, 255, 255)}},
		{name: "hello with a wrong checksum", send: [][]byte{broken(hello, len(hello)-1)}},
		{name: "hello with a text of 4 GiB", send: [][]byte{helloWith(append(make([]byte, 8), 255, 255, 255, 255))}},
		{name: "hello of another version", send: [][]byte{encodeClientHello(&clientHello{Least: 2, Most: 9})}},
		{name: "truncated hello", send: [][]byte{hello[:20]}, end: true},
		{name: "header with a wrong checksum", send: [][]byte{hello, open, broken(read, 70-16)}},
		{name: "unknown op", send: [][]byte{hello, open, raw(func(h *header) { h.Op = 77 })}},
		{name: "an op of servers", send: [][]byte{hello, open, raw(func(h *header) { h.Op = opData })}},
		{name: "payload of 4 GiB", send: [][]byte{hello, open, raw(func(h *header) { h.Length = 1<<32 - 1 })}},
		{name: "ticket of 4 GiB", send: [][]byte{hello, raw(func(h *header) { h.Op, h.Length = opOpen, 1<<32-1 })}},
		{name: "truncated header", send: [][]byte{hello, open, read[:40]}, end: true},
		{name: "truncated payload", send: [][]byte{hello, open, read[:70]}, end: true},
		{name: "truncated ticket", send: [][]byte{hello, open[:100]}, end: true},
		{name: "request ID 0", send: [][]byte{hello, open, readFrameOf(0, 1, 0, 1, nil)}},
	}
	for _, network := range []string{"tcp", "unix"} {
		s := startServer(t, network, DefaultServerConfig(), oneFile(&testFile{data: data}))
		good := s.dial(t)
		h := mustOpen(t, good, "f", len(data))
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				cost := allocated(func() {
					var d net.Dialer
					nc, err := d.DialContext(t.Context(), network, s.addr)
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					for _, b := range tt.send {
						_, _ = nc.Write(b) // may fail: the server may be gone already
					}
					if tt.end {
						closeWrite(t, nc)
					}
					if err := nc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("the connection was kept")
					}
				})
				if cost > maxLieCost {
					t.Errorf("%d bytes were allocated", cost)
				}
				p := make([]byte, 100)
				if _, err := good.ReadAt(t.Context(), h, p, 50, ReadOptions{}); err != nil || !bytes.Equal(p, data[50:150]) {
					t.Errorf("another connection: %v", err)
				}
			})
		}
	}
}

// helloWith makes a client's hello of a body.
func helloWith(body []byte) []byte {
	b := append([]byte(magic), 1, 0, 1, 0, 0, 0, 0, 0)
	return closeHello(append(b, body...))
}

func closeWrite(t *testing.T, nc net.Conn) {
	t.Helper()
	if err := nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("closing one way: %v", err) // the server may be gone already
	}
}

// Requests that are wrong but well-formed are refused one by one.
func TestRefusedRequests(t *testing.T) {
	data := pattern(1000)
	f := &testFile{data: data}
	cfg := DefaultServerConfig()
	cfg.MaxHandles = 2
	s := startServer(t, "tcp", cfg, oneFile(f))
	nc := s.raw(t)
	plain := func(o op, n int) []byte {
		h := header{Op: o, RequestID: 9, Handle: 1, Length: uint32(n)}
		return append(appendHeader(nil, &h), make([]byte, n)...)
	}
	badTicket := header{Op: opOpen, RequestID: 9, Length: 70_00}
	for _, tt := range []struct {
		name string
		send []byte
		kind errs.Kind
		ok   bool
	}{
		{name: "open", send: openFrame(t, 9, "f", 1000), ok: true},
		{name: "second open", send: openFrame(t, 9, "f", 1000), ok: true},
		{name: "too many handles", send: openFrame(t, 9, "f", 1000), kind: errs.Busy},
		{name: "no ticket", send: append(appendHeader(nil, &badTicket), make([]byte, 7000)...), kind: errs.Invalid},
		{name: "unknown critical flag", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Flags = 1 << 31 }), kind: errs.Unsupported},
		{name: "unknown optional flag", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Flags = 1 << 15 }), ok: true},
		{name: "unknown handle", send: readFrameOf(9, 7, 0, 10, nil), kind: errs.Invalid},
		{name: "behind the end", send: readFrameOf(9, 1, 991, 10, nil), kind: errs.Invalid},
		{name: "offset out of range", send: readFrameOf(9, 1, 1<<63, 10, nil), kind: errs.Invalid},
		{name: "4 GiB", send: readFrameOf(9, 1, 0, 1<<32-1, nil), kind: errs.Invalid},
		{name: "a block", send: readFrameOf(9, 1, 10, 10, func(h *header) { h.Block = 0 }), ok: true},
		{name: "no such block", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Block = 1 }), kind: errs.Invalid},
		{name: "a shard", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Shard = 1 }), kind: errs.Unsupported},
		{name: "an unknown priority", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Priority = 3 }), kind: errs.Unsupported},
		{name: "READV of nothing", send: plain(opReadV, 32), ok: true},
		{name: "READV of one and a half ranges", send: plain(opReadV, 24), kind: errs.Invalid},
		{name: "READV of an unknown handle", send: readVFrame(9, 7, nil, [2]int64{0, 1}), kind: errs.Invalid},
		{name: "READV behind the end", send: readVFrame(9, 1, nil, [2]int64{0, 10}, [2]int64{991, 10}), kind: errs.Invalid},
		{name: "READV of 4 GiB", send: readVFrame(9, 1, nil, [2]int64{0, 10}, [2]int64{0, 1<<32 - 1}), kind: errs.Invalid},
		{name: "READV", send: readVFrame(9, 1, nil, [2]int64{990, 10}, [2]int64{0, 1}, [2]int64{1000, 0}), ok: true},
		{name: "OPEN_READ without a ticket", send: plain(opOpenRead, 500), kind: errs.Invalid},
		{name: "OPEN_READ with too many handles", send: openReadFrame(t, 9, "f", 1000, 0, 1000), kind: errs.Busy},
		{name: "close", send: append(appendHeader(nil, &header{Op: opClose, Handle: 2}), openReadFrame(t, 9, "f", 1000, 1, 1000)...), kind: errs.Invalid},
		{name: "OPEN_READ", send: openReadFrame(t, 9, "f", 1000, 1, 999), ok: true},
		{name: "FD on TCP", send: plain(opFD, 0), kind: errs.Unsupported},
		{name: "FD in place on TCP", send: appendHeader(nil, &header{Op: opFD, RequestID: 9, Handle: 1, Flags: flagInPlace}), kind: errs.Unsupported},
		{name: "READ in place on TCP", send: readFrameOf(9, 1, 0, 10, func(h *header) { h.Flags = flagInPlace }), kind: errs.Unsupported},
		{name: "READ with a mark", send: plain(opRead, 24), kind: errs.Invalid},
		{name: "TOUCH", send: plain(opTouch, 48), ok: true},
		{name: "TOUCH of one and a half", send: plain(opTouch, 36), kind: errs.Invalid},
		{name: "RECALLS on TCP", send: plain(opRecalls, 8), kind: errs.Unsupported},
		{name: "WRITE", send: plain(opWrite, MaxDataFrame), kind: errs.Unsupported},
		{name: "cancel of nothing, then read", send: append(plain(opCancel, 0), readFrameOf(9, 1, 0, 10, nil)...), ok: true},
		{name: "close of nothing, then read", send: append(appendHeader(nil, &header{Op: opClose, Handle: 99}), readFrameOf(9, 1, 0, 10, nil)...), ok: true},
	} {
		if _, err := nc.Write(tt.send); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		e, err := nextEnd(nc, 9)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if e.Failed == tt.ok || e.Kind != tt.kind {
			t.Errorf("%s: END %+v, want kind %v", tt.name, e, tt.kind)
		}
	}
}

// nextEnd reads frames up to the END of a request.
func nextEnd(r io.Reader, id uint64) (endPayload, error) {
	for {
		b := make([]byte, headerSize)
		if _, err := io.ReadFull(r, b); err != nil {
			return endPayload{}, err
		}
		h, err := parseHeader(b)
		if err != nil {
			return endPayload{}, err
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(r, p); err != nil {
			return endPayload{}, err
		}
		if h.RequestID != id {
			return endPayload{}, fmt.Errorf("a frame of request %d", h.RequestID)
		}
		if h.Op == opEnd {
			return parseEnd(p, nil)
		}
	}
}

// Requests with the ID of one in flight end the connection.
func TestDuplicateRequestID(t *testing.T) {
	f := &testFile{data: pattern(1000)}
	f.hook = func(ctx context.Context, _ *testFile, _ ReadRequest, _ Responder) error {
		<-ctx.Done()
		return ctx.Err()
	}
	s := startServer(t, "tcp", DefaultServerConfig(), oneFile(f))
	nc := s.raw(t)
	rawOpen(t, nc)
	two := append(readFrameOf(5, 1, 0, 10, nil), readFrameOf(5, 1, 0, 10, nil)...)
	if _, err := nc.Write(two); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestTooManyConnections(t *testing.T) {
	cfg := DefaultServerConfig()
	cfg.MaxConnections = 1
	s := startServer(t, "tcp", cfg, oneFile(&testFile{}))
	c := s.dial(t)
	if _, err := Dial(t.Context(), s.network, s.addr, DefaultClientConfig()); !errors.Is(err, errs.Throttled) && !errors.Is(err, errs.Unavailable) {
		t.Errorf("a second connection: %v", err)
	}
	if err := c.over(); err != nil {
		t.Errorf("the first connection: %v", err)
	}
}

// A server that lies loses its connection: every request of it fails, and
// nothing that was not sent is taken for the file's bytes.
func TestLyingServer(t *testing.T) {
	frame := func(h header, payload []byte) []byte {
		h.Length = uint32(len(payload))
		return append(appendHeader(nil, &h), payload...)
	}
	end := func(id uint64, e endPayload) []byte {
		return frame(header{Op: opEnd, RequestID: id, Handle: 1}, appendEnd(nil, &e))
	}
	data := func(id uint64, n int) []byte { return frame(header{Op: opData, RequestID: id}, make([]byte, n)) }
	const asked = 1000
	broken := data(2, 10)
	broken[30] ^= 1
	huge := appendHeader(nil, &header{Op: opData, RequestID: 2, Length: 1<<32 - 1})
	manyCRCs := appendEnd(nil, &endPayload{CRCs: make([]pageCRC, 2)})
	manyCRCs[8] = 255
	for _, tt := range []struct {
		name string
		send []byte
	}{
		{"END before all bytes", append(data(2, asked-1), end(2, endPayload{})...)},
		{"END before any byte", end(2, endPayload{})},
		{"DATA beyond the asked length", data(2, asked+1)},
		{"more DATA than asked in two frames", append(data(2, asked), data(2, 1)...)},
		{"wrong checksum", broken},
		{"huge length", huge},
		{"unknown request", data(3, 10)},
		{"END of an unknown request", end(77, endPayload{})},
		{"END twice", append(append(data(2, asked), end(2, endPayload{})...), end(2, endPayload{})...)},
		{"unknown critical flag", frame(header{Op: opData, RequestID: 2, Flags: 1 << 20}, make([]byte, 10))},
		{"an op of clients", frame(header{Op: opCancel, RequestID: 2}, nil)},
		{"cut in a header", data(2, 10)[:50]},
		{"cut in a payload", data(2, 100)[:100]},
		{"cut in END", append(data(2, asked), end(2, endPayload{})[:70]...)},
		{"more checksums than bytes", append(data(2, asked), frame(header{Op: opEnd, RequestID: 2}, manyCRCs)...)},
		{"a checksum of a page that was not read", append(data(2, asked), end(2, endPayload{CRCs: []pageCRC{{Page: 1}}})...)},
		{"a checksum far away", append(data(2, asked), end(2, endPayload{CRCs: []pageCRC{{Page: 1<<32 - 1}}})...)},
		{"hung up", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := net.Pipe()
			served := make(chan struct{})
			go func() {
				defer close(served)
				defer far.Close()
				if err := lie(far, tt.send); err != nil {
					t.Error(err)
				}
			}()
			hello, err := shakeHands(t.Context(), near, DefaultClientConfig())
			if err != nil {
				t.Fatal(err)
			}
			c := newConn(near, "pipe", DefaultClientConfig(), hello)
			defer func() { <-served }()
			defer c.Close()
			h := mustOpen(t, c, "f", 2000)
			cost := allocated(func() {
				_, err = c.ReadAt(t.Context(), h, make([]byte, asked), 0, ReadOptions{})
			})
			if tt.name == "END twice" {
				<-c.Done()
				_, err = c.ReadAt(t.Context(), h, make([]byte, asked), 0, ReadOptions{})
			}
			if !errors.Is(err, errs.Unavailable) {
				t.Errorf("ReadAt: %v", err)
			}
			if cost > maxLieCost {
				t.Errorf("%d bytes were allocated", cost)
			}
			<-c.Done()
		})
	}
}

// lie is a server's side: it greets, answers one OPEN, and answers a READ with
// what it was told.
func lie(nc net.Conn, answer []byte) error {
	if err := greet(nc); err != nil {
		return err
	}
	b := make([]byte, headerSize)
	for _, send := range [][]byte{openedFrame(1), answer} {
		if _, err := io.ReadFull(nc, b); err != nil {
			return err
		}
		h, err := parseHeader(b)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, nc, int64(h.Length)); err != nil {
			return err
		}
		if _, err := nc.Write(send); err != nil && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, syscall.EPIPE) {
			return err
		}
	}
	return nil
}

// openedFrame is the END of an OPEN with request ID 1.
func openedFrame(handle uint32) []byte {
	h := header{Op: opEnd, RequestID: 1, Handle: handle, Length: endFixed}
	return appendEnd(appendHeader(nil, &h), &endPayload{})
}
