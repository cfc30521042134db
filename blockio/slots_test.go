package blockio

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// Steady reads let a frame of a load pass now and then.
func TestTurnsHavePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		turns.init()
		var wg sync.WaitGroup
		reads := map[Priority]int{} // turns of reads before the others'
		n := 0
		turns.take(PriorityRead)
		for _, p := range []Priority{PriorityLoad, PriorityRepair} {
			wg.Go(func() {
				turns.take(p)
				reads[p] = n
				turns.give()
			})
		}
		synctest.Wait()
		for range 3 * patience { // always one that waits while another has its turn
			wg.Go(func() {
				turns.take(PriorityRead)
				n++
				turns.give()
			})
			synctest.Wait()
		}
		turns.give()
		wg.Wait()
		if reads[PriorityLoad] != patience || reads[PriorityRepair] != patience && reads[PriorityRepair] != patience+1 {
			t.Errorf("turns of reads before others' had theirs: %v, want %d", reads, patience)
		}
	})
}

// stuck is a file whose first page never comes and whose others are there.
func stuck(t *testing.T, data []byte) (f *testFile, inside func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	return &testFile{data: data, hook: func(ctx context.Context, f *testFile, req ReadRequest, w Responder) error {
		if req.Extent.Offset >= block.PageSize {
			return f.serve(req, w)
		}
		mu.Lock()
		n++
		mu.Unlock()
		<-ctx.Done()
		return errs.Wrap(ctx.Err(), "wait", "")
	}}, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// Many reads that wait for an under-store that does not answer leave room on
// their connection for those that the cache can answer.
func TestStuckReadsLeaveRoom(t *testing.T) {
	data := pattern(2 * int(block.PageSize))
	f, inside := stuck(t, data)
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const many = 200
	for range many {
		wg.Go(func() {
			if _, err := c.ReadAt(ctx, h, make([]byte, 10), 0, ReadOptions{}); !errors.Is(err, errs.Canceled) {
				t.Errorf("a stuck read ended with %v", err)
			}
		})
	}
	await(t, func() bool { return inside() == many })
	if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), block.PageSize, ReadOptions{}); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	await(t, func() bool { return len(c.slots.all) == 0 })
}

// Loads never have all of the requests that a connection may have in flight.
func TestLoadsLeaveRoomForReads(t *testing.T) {
	data := pattern(2 * int(block.PageSize))
	f, inside := stuck(t, data)
	cfg := DefaultClientConfig()
	cfg.MaxRequests = 8
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dialWith(t, cfg)
	h := mustOpen(t, c, "f", len(data))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := c.ReadAt(ctx, h, make([]byte, 10), 0, ReadOptions{Priority: Priority(1 + i%2)})
			if !errors.Is(err, errs.Canceled) {
				t.Errorf("a load ended with %v", err)
			}
		})
	}
	await(t, func() bool { return inside() == cfg.MaxRequests/2 })
	for range 10 {
		if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), block.PageSize, ReadOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := inside(); n != cfg.MaxRequests/2 {
		t.Errorf("%d loads are in flight, want %d", n, cfg.MaxRequests/2)
	}
	cancel()
	wg.Wait()
	await(t, func() bool { return len(c.slots.all)+len(c.slots.background) == 0 })
}

// await waits until cond holds, which it does soon if the code is right.
func await(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what the test waits for does not happen")
		}
	}
}
