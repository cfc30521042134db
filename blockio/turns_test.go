package blockio

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

// Whoever waits gets the turn by priority, and nobody is forgotten.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		turns.init()
		turns.take(PriorityLoad)
		var got []Priority
		var wg sync.WaitGroup
		for _, p := range []Priority{PriorityRepair, PriorityLoad, PriorityRead, PriorityRepair, PriorityRead, PriorityLoad, 200} {
			wg.Go(func() {
				turns.take(p)
				got = append(got, p)
				turns.give()
			})
			synctest.Wait()
		}
		turns.give()
		wg.Wait()
		want := []Priority{PriorityRead, PriorityRead, PriorityLoad, PriorityLoad, PriorityRepair, PriorityRepair, 200}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTurnsExclude(t *testing.T) {
	var turns turns
	turns.init()
	var inside atomic.Int32
	var wg sync.WaitGroup
	for g := range 12 {
		wg.Go(func() {
			for range 2000 {
				turns.take(Priority(g % 3))
				if inside.Add(1) != 1 {
					t.Error("two at once")
				}
				inside.Add(-1)
				turns.give()
			}
		})
	}
	wg.Wait()
}

// While the peer takes its time, frames of reads leave before those of loads
// and repairs that came first.
func TestPriorityOfFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100_000 // more than is gathered
		l, stop := pipeServer(DefaultServerConfig(), oneFile(&testFile{data: pattern(n)}))
		defer stop()
		nc := l.dial()
		defer nc.Close()
		if _, err := shakeHands(t.Context(), nc, DefaultClientConfig()); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(openFrame(t, 1, "f", n)); err != nil {
			t.Fatal(err)
		}
		if e, err := nextEnd(nc, 1); err != nil || e.Failed {
			t.Fatal(e, err)
		}
		for id, p := range []Priority{PriorityLoad, PriorityRepair, PriorityLoad, PriorityRead, PriorityRead} {
			if _, err := nc.Write(readFrameOf(uint64(10+id), 1, 0, n, func(h *header) { h.Priority = p })); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // until it waits for its turn; the first one has it
		}
		var got []uint64
		for range 5 {
			h, err := nextHeader(nc)
			if err != nil {
				t.Fatal(err)
			}
			if h.Op != opData {
				got = append(got, 0) // an END does not count
				continue
			}
			got = append(got, h.RequestID)
		}
		if got[0] != 10 || got[1] < 13 || got[2] < 13 && got[2] != 0 {
			t.Errorf("DATA of requests %d came first, want 10, then 13 and 14", got)
		}
	})
}

// nextHeader reads one frame and returns its header.
func nextHeader(r io.Reader) (header, error) {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return header{}, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return header{}, err
	}
	_, err = io.CopyN(io.Discard, r, int64(h.Length))
	return h, err
}

// A deadline counts from the frame's arrival, also while the request waits
// for others to end.
func TestDeadlineCountsWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := map[int64]time.Duration{}
		f := &testFile{data: pattern(100), hook: func(ctx context.Context, f *testFile, req ReadRequest, w Responder) error {
			deadline, _ := ctx.Deadline()
			left[req.Extent.Offset] = time.Until(deadline)
			if req.Extent.Offset == 2 {
				time.Sleep(2 * time.Second)
			} else {
				time.Sleep(500 * time.Millisecond)
			}
			return f.serve(req, w)
		}}
		cfg := DefaultServerConfig()
		cfg.MaxRequests = 1
		l, stop := pipeServer(cfg, oneFile(f))
		defer stop()
		nc := l.dial()
		defer nc.Close()
		if _, err := shakeHands(t.Context(), nc, DefaultClientConfig()); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = nc.Write(openFrame(t, 1, "f", 100))
			for i, timeout := range []uint32{0, 3000, 400} {
				_, _ = nc.Write(readFrameOf(uint64(i+2), 1, uint64(i+2), 1, func(h *header) { h.TimeoutMS = timeout }))
			}
		}()
		for id, want := range []errs.Kind{0, 0, 0, errs.Timeout} {
			if e, err := nextEnd(nc, uint64(id+1)); err != nil || e.Kind != want {
				t.Errorf("request %d: %+v, %v, want kind %v", id+1, e, err, want)
			}
		}
		want := map[int64]time.Duration{2: cfg.RequestTimeout.Std(), 3: time.Second}
		if diff := cmp.Diff(want, left); diff != "" {
			t.Errorf("time left as the read began: %s", diff)
		}
	})
}

// Every op that can wait has a deadline, and the server knows it.
func TestDeadlinesOfOps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := make(chan time.Duration, 1)
		wait := func(ctx context.Context) error {
			start := time.Now()
			<-ctx.Done()
			seen <- time.Since(start)
			return errs.Wrap(ctx.Err(), "wait", "")
		}
		f := &testFile{data: pattern(10), hook: func(ctx context.Context, _ *testFile, req ReadRequest, w Responder) error {
			if req.Extent.Offset == 0 {
				return w.Write([]byte{1})
			}
			return wait(ctx)
		}}
		h := oneFile(f)
		l, stop := pipeServer(DefaultServerConfig(), h)
		defer stop()
		c := pipeConn(t, l.dial())
		defer c.Close()
		handle := mustOpen(t, c, "f", 10)
		for name, do := range map[string]func(ctx context.Context) error{
			"READV": func(ctx context.Context) error {
				_, err := c.ReadV(ctx, handle, ranges([2]int{0, 1}, [2]int{5, 1}, [2]int{0, 1}), ReadOptions{})
				return err
			},
			"OPEN_READ": func(ctx context.Context) error {
				_, err := c.OpenRead(ctx, ticketOf("f", 10), make([]byte, 1), 5, ReadOptions{})
				return err
			},
			"OPEN": func(ctx context.Context) error {
				h.hook = func(ctx context.Context, _ *block.Ticket) (File, error) { return nil, wait(ctx) }
				defer func() { h.hook = nil }()
				_, err := c.Open(ctx, ticketOf("f", 10))
				synctest.Wait()
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			if err := do(ctx); errs.KindOf(err) != errs.Timeout {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
			if got := <-seen; got != 700*time.Millisecond {
				t.Errorf("%s: the server waited for %v, want 700ms", name, got)
			}
		}
		// It goes on.
		if n, err := c.ReadV(t.Context(), handle, ranges([2]int{0, 1}), ReadOptions{}); n != 1 || err != nil {
			t.Errorf("the next request: %d, %v", n, err)
		}
	})
}
