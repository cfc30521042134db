package blockio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// promptFile is a testFile that answers at once, unless late is set.
type promptFile struct {
	*testFile
	late            bool
	wrong           uint32 // what is wrong with the checksums of ReadNow
	now, sent, read atomic.Int32
}

func (f *promptFile) ReadNow(_ context.Context, req ReadRequest, p []byte) (uint32, bool) {
	if f.late {
		return 0, false
	}
	f.now.Add(1)
	g := block.Geometry{Length: int64(len(f.data)), BlockSize: block.DefaultBlockSize}
	page := g.Page(req.Extent.Offset / block.PageSize)
	copy(p, f.data[req.Extent.Offset:req.Extent.End()])
	return block.Checksum(f.data[page.Offset:page.End()]) + f.wrong, true
}

func (f *promptFile) SendNow(_ context.Context, req ReadRequest, w Responder) (bool, error) {
	if f.late {
		return false, nil
	}
	f.sent.Add(1)
	return true, f.serve(req, w)
}

func (f *promptFile) Read(ctx context.Context, req ReadRequest, w Responder) error {
	f.read.Add(1)
	return f.testFile.Read(ctx, req, w)
}

func (f *promptFile) handler() *testHandler {
	return &testHandler{hook: func(context.Context, *block.Ticket) (File, error) { return f, nil }}
}

// TestPrompt reads at many places at once: a File is asked the way that a read
// may go, and gives the same bytes whichever it takes.
func TestPrompt(t *testing.T) {
	const length = 3<<20 + 100
	data := pattern(length)
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			for name, tc := range map[string]struct {
				off             int64
				size            int
				late            bool
				now, sent, read int32
			}{
				"small":               {off: 5, size: 4096, now: 40},
				"of one page":         {off: block.PageSize - smallSize, size: smallSize, now: 40},
				"of two pages":        {off: block.PageSize - 1, size: 2, read: 40},
				"the last page":       {off: 3 << 20, size: 100, now: 40},
				"larger":              {off: 5, size: smallSize + 1, sent: 40},
				"one frame":           {off: block.PageSize, size: MaxDataFrame, sent: 40},
				"two frames":          {off: block.PageSize, size: MaxDataFrame + 1, read: 40},
				"small, not at hand":  {off: 5, size: 4096, late: true, read: 40},
				"larger, not at hand": {off: 5, size: MaxDataFrame, late: true, read: 40},
			} {
				t.Run(name, func(t *testing.T) {
					f := &promptFile{testFile: &testFile{data: data}, late: tc.late}
					if tr.disk {
						f.disk = onDisk(t, data)
					}
					c := startServer(t, tr.network, DefaultServerConfig(), f.handler()).dial(t)
					h := mustOpen(t, c, "f", length)
					var wg sync.WaitGroup
					for range 4 {
						wg.Go(func() {
							p := make([]byte, tc.size)
							for range 10 {
								if _, err := c.ReadAt(t.Context(), h, p, tc.off, ReadOptions{}); err != nil || !bytes.Equal(p, data[tc.off:tc.off+int64(tc.size)]) {
									t.Errorf("wrong bytes, or %v", err)
								}
							}
						})
					}
					wg.Wait()
					// While another request sends, reads go the ordinary way.
					if now, sent, read := f.now.Load(), f.sent.Load(), f.read.Load(); now > tc.now || sent > tc.sent || now+sent+read != 40 {
						t.Errorf("%d, %d and %d requests, want %+v", now, sent, read, tc)
					}
				})
			}
		})
	}
}

// TestPromptChecksum: what was read at once is compared, too.
func TestPromptChecksum(t *testing.T) {
	f := &promptFile{testFile: &testFile{data: pattern(1000)}, wrong: 1}
	c := startServer(t, "tcp", DefaultServerConfig(), f.handler()).dial(t)
	h := mustOpen(t, c, "f", 1000)
	var err error
	for err == nil { // while the answer to Open is being sent it goes the ordinary way
		_, err = c.ReadAt(t.Context(), h, make([]byte, 1000), 0, ReadOptions{})
	}
	if !errors.Is(err, errs.Corrupt) {
		t.Errorf("a damaged page: %v", err)
	}
	if _, err := c.ReadAt(t.Context(), h, make([]byte, 999), 0, ReadOptions{}); err != nil {
		t.Errorf("a part of it: %v", err)
	}
}

// promptFrames is a request that a promptFile answers at once, waitingFrames one
// that it does not, for its bytes are in two pages.
func promptFrames(id uint64) []byte {
	return append(appendHeader(nil, &header{Op: opRead, RequestID: id, Handle: 1, Block: noBlock, Length: readPayloadSize}),
		appendReadPayload(nil, readPayload{Offset: 5, Length: 4096})...)
}

func waitingFrames(id uint64) []byte {
	return append(appendHeader(nil, &header{Op: opRead, RequestID: id, Handle: 1, Block: noBlock, Length: readPayloadSize}),
		appendReadPayload(nil, readPayload{Offset: uint64(block.PageSize) - 5, Length: 10})...)
}

// shakeAndOpen is the beginning of a client by hand, with a file as handle 1.
func shakeAndOpen(t *testing.T, nc net.Conn, length int64) {
	t.Helper()
	if _, err := nc.Write(encodeClientHello(&clientHello{Least: Version, Most: Version, Features: ourFeatures})); err != nil {
		t.Fatal(err)
	}
	if _, err := readServerHello(nc); err != nil {
		t.Fatal(err)
	}
	ticket, err := appendTicket(nil, ticketOf("f", length))
	if err != nil {
		t.Fatal(err)
	}
	head := appendHeader(nil, &header{Op: opOpen, RequestID: 1, Block: noBlock, Length: uint32(len(ticket))})
	if _, err := nc.Write(append(head, ticket...)); err != nil {
		t.Fatal(err)
	}
	if e, err := nextEnd(nc, 1); err != nil || e.Failed {
		t.Fatalf("%+v, %v", e, err)
	}
}

// TestPromptAnswersLeave: an answer that waits for others leaves when the
// server begins to wait, whatever it waits for.
func TestPromptAnswersLeave(t *testing.T) {
	for name, tc := range map[string]struct {
		before, behind []byte
	}{
		"for a frame":          {},
		"for half a header":    {nil, promptFrames(3)[:30]},
		"for a payload":        {nil, promptFrames(3)[:headerSize]},
		"for a request to end": {waitingFrames(4), append(waitingFrames(5), waitingFrames(6)...)},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			f := &promptFile{testFile: &testFile{data: pattern(1 << 20)}}
			f.hook = func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
				if req.Extent.Length == 10 {
					<-release
				}
				return f.serve(req, w)
			}
			cfg := DefaultServerConfig()
			cfg.MaxRequests = 2
			s := startServer(t, "tcp", cfg, f.handler())
			defer close(release)
			nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil { // of a test that fails
				t.Fatal(err)
			}
			shakeAndOpen(t, nc, 1<<20)
			all := append(append(bytes.Clone(tc.before), promptFrames(2)...), tc.behind...)
			if _, err := nc.Write(all); err != nil {
				t.Fatal(err)
			}
			if e, err := nextEnd(nc, 2); err != nil || e.Failed {
				t.Fatalf("%+v, %v", e, err)
			}
		})
	}
}

// TestPromptPeerDoesNotReceive: a server whose reader waits for a peer ends
// within its time, and while it sends nothing else goes the short way.
func TestPromptPeerDoesNotReceive(t *testing.T) {
	for _, waits := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &promptFile{testFile: &testFile{data: pattern(1 << 20)}}
			cfg := DefaultServerConfig()
			l, stop := pipeServer(cfg, f.handler())
			nc := l.dial()
			defer nc.Close()
			shakeAndOpen(t, nc, 1<<20)
			synctest.Wait()
			if waits {
				if _, err := nc.Write(waitingFrames(2)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			if _, err := nc.Write(promptFrames(3)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if now, read := f.now.Load(), f.read.Load(); waits && (now != 0 || read != 2) || !waits && now != 1 {
				t.Errorf("%d and %d requests", now, read)
			}
			begin := time.Now()
			stop()
			if d := time.Since(begin); d > cfg.DrainTimeout.Std() {
				t.Errorf("it ended after %v", d)
			}
			_, _ = io.Copy(io.Discard, nc)
		})
	}
}
