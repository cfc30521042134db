package cacheworker

import (
	"context"
	"sync"
	"sync/atomic"
)

// flight is one fetch of a run of adjacent pages of one file, shared by all
// who wait for any of them. Pages arrive in ascending order.
type flight struct {
	first, end int64        // pages
	urgent     atomic.Int32 // of the most urgent who waits; an urgency
	cancel     context.CancelFunc

	mu      sync.Mutex
	next    int64 // pages before it are in the tier
	ended   bool
	err     error         // why it ended before its end
	changed chan struct{} // closed and replaced at each change
}

func newFlight(first, end int64, u urgency, cancel context.CancelFunc) *flight {
	fl := &flight{first: first, end: end, next: first, cancel: cancel, changed: make(chan struct{})}
	fl.urgent.Store(int32(u))
	return fl
}

// hurry raises the flight's urgency to u.
func (fl *flight) hurry(u urgency) {
	for {
		now := fl.urgent.Load()
		if now <= int32(u) || fl.urgent.CompareAndSwap(now, int32(u)) {
			return
		}
	}
}

// publish says that all pages before next are in the tier.
func (fl *flight) publish(next int64) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.next = next
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// land ends the flight.
func (fl *flight) land(err error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.ended, fl.err = true, err
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// wait returns nil when the page has arrived, or why it will not, or ctx's
// error.
func (fl *flight) wait(ctx context.Context, page int64) error {
	for {
		fl.mu.Lock()
		arrived, ended, err, changed := page < fl.next, fl.ended, fl.err, fl.changed
		fl.mu.Unlock()
		switch {
		case arrived:
			return nil
		case ended:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
