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
	replica    bool         // for pages that another worker owns
	urgent     atomic.Int32 // of the most urgent who waits; an urgency
	cancel     context.CancelFunc

	mu      sync.Mutex
	next    int64 // pages before it are in the tier
	ended   bool
	err     error         // why it ended before its end
	changed chan struct{} // closed when wanted arrives, or the flight ends; nil while nobody waits
	wanted  int64         // the first page that somebody waits for
}

func newFlight(first, end int64, u urgency, cancel context.CancelFunc) *flight {
	fl := &flight{first: first, end: end, next: first, cancel: cancel}
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
	if next > fl.wanted {
		fl.wake()
	}
}

// land ends the flight.
func (fl *flight) land(err error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.ended, fl.err = true, err
	fl.wake()
}

// wake tells those who wait of a change. mu is held.
func (fl *flight) wake() {
	if fl.changed != nil {
		close(fl.changed)
		fl.changed = nil
	}
}

// wait returns nil when the page has arrived, or why it will not, or ctx's
// error.
func (fl *flight) wait(ctx context.Context, page int64) error {
	for {
		fl.mu.Lock()
		if page < fl.next || fl.ended {
			arrived, err := page < fl.next, fl.err
			fl.mu.Unlock()
			if arrived {
				return nil
			}
			return err
		}
		if fl.changed == nil {
			fl.changed, fl.wanted = make(chan struct{}), page
		}
		fl.wanted = min(fl.wanted, page)
		changed := fl.changed
		fl.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
