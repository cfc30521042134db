package blockio

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/errs"
)

// The decoders accept any bytes, and what they accept encodes to the same.

func FuzzHeader(f *testing.F) {
	v := loadVectors(f)
	for _, c := range v.Frames {
		f.Add(unhex(f, c.Hex)[:headerSize])
	}
	for _, c := range v.Refused {
		f.Add(unhex(f, c.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		b = bytes.Clone(b[:headerSize])
		clear(b[56:60]) // reserved
		fixCRC(b)
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if got := appendHeader(nil, &h); !bytes.Equal(got, b) {
			t.Errorf("%x encodes to %x", b, got)
		}
		if least, most, known := h.Op.bounds(); !known || h.Length < least || h.Length > most {
			t.Errorf("accepted %+v", h)
		}
	})
}

// fixCRC gives a header the right checksum, so that fuzzing comes past it.
func fixCRC(b []byte) {
	crc := block.Checksum(b[:headerSize-4])
	b[60], b[61], b[62], b[63] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
}

func FuzzEnd(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		if c.End != nil {
			f.Add(unhex(f, c.Hex)[headerSize:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnd(b, nil)
		if err != nil {
			return
		}
		if len(e.Text) > 3*maxEndText || len(e.CRCs) > maxPageCRCs { // a wrong byte becomes 3
			t.Errorf("accepted %d bytes of text, %d checksums", len(e.Text), len(e.CRCs))
		}
		p := make([]byte, 1<<20)
		for _, ranges := range [][]Range{
			{{Off: 1 << 18, Buf: p}},
			{{Off: 1, Buf: p[:1<<19]}, {Off: 0, Buf: p[:1<<18]}, {Off: 5, Buf: nil}, {Off: 1<<20 + 1<<18, Buf: p[:5]}},
		} {
			var s pageSums
			s.arrived(block.Geometry{Length: 1<<20 + 1<<18 + 5, BlockSize: block.DefaultBlockSize}, ranges, len(ranges), 0)
			wrong, known := s.compare(e.CRCs)
			for _, c := range e.CRCs {
				if i := slices.IndexFunc(s.sums, func(have pageCRC) bool { return have.Page == c.Page }); known && wrong == nil && (i < 0 || s.sums[i] != c) {
					t.Errorf("accepted %+v, have %+v", c, s.sums)
				}
			}
		}
		again, err := parseEnd(appendEnd(nil, &e), nil)
		if err != nil && len(e.Text) <= maxEndText {
			t.Errorf("%+v: %v", again, err)
		}
	})
}

func FuzzReadPayload(f *testing.F) {
	f.Add(make([]byte, readPayloadSize), int64(100), block.DefaultBlockSize, uint32(noBlock))
	f.Add(bytes.Repeat([]byte{255}, readPayloadSize), int64(1<<60), int64(1<<18), uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, length, blockSize int64, index uint32) {
		g := block.Geometry{Length: length, BlockSize: blockSize}
		if len(b) < readPayloadSize || g.Validate() != nil {
			return
		}
		e, err := parseReadPayload(b).extent(g, index)
		if err == nil && (e.Offset < 0 || e.Length < 0 || e.Length > MaxReadLength || e.End() > length) {
			t.Errorf("accepted %v of %+v", e, g)
		}
	})
}

func FuzzHello(f *testing.F) {
	v := loadVectors(f)
	for _, c := range v.ClientHellos {
		f.Add(unhex(f, c.Hex))
	}
	for _, c := range v.ServerHellos {
		f.Add(unhex(f, c.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := readClientHello(bytes.NewReader(b)); err == nil {
			if _, err := readClientHello(bytes.NewReader(encodeClientHello(&c))); err != nil {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if s, err := readServerHello(bytes.NewReader(b)); err == nil {
			if _, err := readServerHello(bytes.NewReader(encodeServerHello(&s))); err != nil {
				t.Errorf("%+v: %v", s, err)
			}
		}
	})
}

// fixFrames gives the headers in a stream of frames right checksums, as far
// as their lengths lead to the next.
func fixFrames(b []byte) []byte {
	b = bytes.Clone(b)
	for rest := b; len(rest) >= headerSize; {
		fixCRC(rest)
		h, err := parseHeader(rest)
		if err != nil || int(h.Length) > len(rest)-headerSize {
			break
		}
		rest = rest[headerSize+int(h.Length):]
	}
	return b
}

// FuzzServerConn feeds a whole connection of a server. Whatever comes, it ends
// when the peer does, and every file is closed once.
func FuzzServerConn(f *testing.F) {
	v := loadVectors(f)
	hello := unhex(f, v.ClientHellos[0].Hex)
	var all []byte
	for _, c := range v.Frames {
		b := unhex(f, c.Hex)
		f.Add(false, append(bytes.Clone(hello), b...))
		all = append(all, b...)
	}
	f.Add(false, append(bytes.Clone(hello), all...))
	f.Add(true, all)
	session := openFrame(f, 1, "f", 1<<20)
	session = append(session, readFrameOf(2, 1, 0, 1<<20, nil)...)
	session = append(session, readFrameOf(3, 1, 5, 10, func(h *header) { h.TimeoutMS = 1 })...)
	session = append(session, appendHeader(nil, &header{Op: opCancel, RequestID: 2})...)
	session = append(session, appendHeader(nil, &header{Op: opClose, Handle: 1})...)
	session = append(session, readFrameOf(4, 1, 5, 10, nil)...)
	f.Add(true, session)
	ops := openReadFrame(f, 1, "f", 1<<20, 5, 100_000)
	ops = append(ops, readVFrame(2, 1, nil, [2]int64{1 << 19, 1 << 18}, [2]int64{0, 0}, [2]int64{3, 20_000})...)
	ops = append(ops, appendHeader(nil, &header{Op: opFD, RequestID: 3, Handle: 1})...)
	ops = append(ops, appendTouch(appendHeader(nil, &header{Op: opTouch, RequestID: 4, Length: touchSize}), &Touch{Count: 9})...)
	ops = append(ops, readVFrame(5, 1, func(h *header) { h.Priority = PriorityRepair }, [2]int64{0, 1})...)
	f.Add(true, ops)
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))
	data := pattern(1 << 20)
	disk := onDisk(f, data)
	f.Fuzz(func(t *testing.T, greeted bool, b []byte) {
		if greeted {
			b = append(bytes.Clone(hello), fixFrames(b)...)
		}
		file := &testFile{data: data, give: reopened(disk, 0, int64(len(data)))}
		var opened atomic.Int32
		h := &testHandler{hook: func(_ context.Context, t *block.Ticket) (File, error) {
			if t.Length > int64(len(data)) {
				return nil, errs.NotFound
			}
			opened.Add(1)
			return file, nil
		}}
		s := NewServer(DefaultServerConfig(), Identity{}, h, slog.New(slog.DiscardHandler), nil)
		near, far := socketPair(t)
		defer near.Close()
		var wg sync.WaitGroup
		wg.Go(func() { s.serveConn(t.Context(), far) })
		wg.Go(func() {
			_, _ = near.Write(b) // the server may hang up first
			_ = near.CloseWrite()
		})
		_, _ = io.Copy(io.Discard, near)
		wg.Wait()
		if file.closed.Load() != opened.Load() {
			t.Errorf("%d files were opened, %d closed", opened.Load(), file.closed.Load())
		}
		noneLeft(t, disk)
	})
}

// socketPair returns both ends of a connection.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil { // FileConn has its own
			t.Fatal(err)
		}
		ends[i] = nc.(*net.UnixConn) //nolint:forcetypeassert // it is a Unix socket
	}
	return ends[0], ends[1]
}

// FuzzClientConn feeds a client that waits for an OPEN and for READs.
func FuzzClientConn(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		f.Add(unhex(f, c.Hex))
	}
	answer := func(id uint64, n int) []byte {
		b := appendHeader(nil, &header{Op: opData, RequestID: id, Length: uint32(n)})
		b = append(b, make([]byte, n)...)
		b = appendHeader(b, &header{Op: opEnd, RequestID: id, Length: endFixed})
		return appendEnd(b, &endPayload{})
	}
	f.Add(append(answer(2, 10), answer(3, 9000)...))
	f.Add(append(answer(3, 9000), answer(2, 10)[:90]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := socketPair(t)
		var served sync.WaitGroup
		served.Go(func() {
			defer far.Close()
			if err := lie(far, fixFrames(b)); err == nil {
				_ = far.CloseWrite()
				_, _ = io.Copy(io.Discard, far) // until the client has enough
			}
		})
		hello, err := shakeHands(t.Context(), near, DefaultClientConfig())
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(near, "pipe", DefaultClientConfig(), hello)
		h := mustOpen(t, c, "f", 10_000)
		results := make(chan int, 2)
		for _, n := range []int{10, 9000} {
			go func() {
				got, err := c.ReadAt(t.Context(), h, make([]byte, n), 0, ReadOptions{})
				if err == nil && got != n {
					t.Errorf("%d of %d bytes without an error", got, n)
				}
				results <- got
			}()
		}
		<-results
		<-results
		_ = c.Close()
		served.Wait()
	})
}
