package cacheworker

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// urgency orders who passes a gate first; lower is sooner.
type urgency int32

const (
	urgentRead   urgency = iota // a reader waits
	urgentAhead                 // read-ahead
	urgentLoad                  // a load task
	urgentRepair                // what is done when nothing else is
	urgencies
)

// gate bounds the bytes asked of all under-stores and not yet received. The
// most urgent waiter passes first, and equals in the order in which they came.
//
// Each under-store mount has a share: so many requests, and at most
// shareOfFree times the bytes that are left. A mount whose server is slow or
// frozen thus never holds all of the room, however many of them there are; and
// a mount that has nothing in flight may always send one request, even past
// the bound. Waiters of one share hold each other back, in order, so that big
// ones are not starved by small ones; they hold back nobody else's.
type gate struct {
	mu      sync.Mutex
	size    int64
	free    int64 // below 0 while mounts have their one request past the bound
	waiters []*gateWaiter
	pass    uint64 // of admit, see share.blocked
}

// shareOfFree makes a mount that is alone have 3/4 of the gate.
const shareOfFree = 3

// share is what one under-store mount has of the gate. It is guarded by the
// gate's lock.
type share struct {
	most     int64  // requests
	requests int64  // in flight
	bytes    int64  // in flight
	waiting  int    // waiters of this share
	blocked  uint64 // the pass in which one of its waiters was held back
}

type gateWaiter struct {
	share  *share
	n      int64
	urgent *atomic.Int32
	now    int32 // the urgency in a pass of admit
	passed chan struct{}
}

func newGate(size int64) *gate { return &gate{size: size, free: size} }

// enter takes one request of n bytes, or all of the gate if n is more, or
// returns ctx's error. The urgency is looked at each time something is freed,
// so that it may change meanwhile.
func (g *gate) enter(ctx context.Context, s *share, n int64, urgent *atomic.Int32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n = min(n, g.size)
	g.mu.Lock()
	if s.waiting == 0 && g.fits(s, n) {
		g.take(s, n)
		g.mu.Unlock()
		return nil
	}
	w := &gateWaiter{share: s, n: n, urgent: urgent, passed: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	s.waiting++
	g.mu.Unlock()
	select {
	case <-w.passed:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	if i := slices.Index(g.waiters, w); i >= 0 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
		s.waiting--
		g.admit() // it may have held back smaller ones
		g.mu.Unlock()
		return ctx.Err()
	}
	g.mu.Unlock()
	g.leave(s, n) // it was let in at the same moment
	return ctx.Err()
}

// leave gives back what enter took for n.
func (g *gate) leave(s *share, n int64) {
	n = min(n, g.size)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free += n
	s.requests--
	s.bytes -= n
	g.admit()
}

// fits reports whether a request of n bytes may be sent now.
func (g *gate) fits(s *share, n int64) bool {
	if s.requests == 0 {
		return true
	}
	return s.requests < s.most && s.bytes+n <= shareOfFree*(g.free-n)
}

func (g *gate) take(s *share, n int64) {
	g.free -= n
	s.requests++
	s.bytes += n
}

// admit lets in who fits, the most urgent first.
func (g *gate) admit() {
	if len(g.waiters) == 0 {
		return
	}
	g.pass++
	passed := 0
	for _, w := range g.waiters {
		w.now = w.urgent.Load()
	}
	for u := range int32(urgencies) {
		for i, w := range g.waiters {
			if w == nil || w.now != u || w.share.blocked == g.pass {
				continue
			}
			if !g.fits(w.share, w.n) {
				w.share.blocked = g.pass
				continue
			}
			g.take(w.share, w.n)
			w.share.waiting--
			close(w.passed)
			g.waiters[i] = nil
			passed++
		}
	}
	if passed > 0 {
		g.waiters = slices.DeleteFunc(g.waiters, func(w *gateWaiter) bool { return w == nil })
	}
}
