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
	urgentRead  urgency = iota // a reader waits
	urgentAhead                // read-ahead
	urgentLoad                 // a load task
)

// gate is a weighted semaphore that lets the most urgent waiter pass first,
// and equals in the order in which they came. A waiter that is too big for
// what is free holds back all behind it, so that it is not starved.
type gate struct {
	mu      sync.Mutex
	size    int64
	free    int64
	waiters []*gateWaiter
}

type gateWaiter struct {
	n      int64
	urgent *atomic.Int32
	passed chan struct{}
}

func newGate(size int64) *gate { return &gate{size: size, free: size} }

// enter takes n, at most the gate's size, or returns ctx's error. The urgency
// is looked at each time something is freed, so that it may change meanwhile.
func (g *gate) enter(ctx context.Context, n int64, urgent *atomic.Int32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n = min(n, g.size)
	g.mu.Lock()
	if len(g.waiters) == 0 && g.free >= n {
		g.free -= n
		g.mu.Unlock()
		return nil
	}
	w := &gateWaiter{n: n, urgent: urgent, passed: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	g.mu.Unlock()
	select {
	case <-w.passed:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	if i := slices.Index(g.waiters, w); i >= 0 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
		g.admit() // it may have held back smaller ones
		g.mu.Unlock()
		return ctx.Err()
	}
	g.mu.Unlock()
	g.leave(n) // it was let in at the same moment
	return ctx.Err()
}

// leave gives back what enter took for n.
func (g *gate) leave(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free += min(n, g.size)
	g.admit()
}

func (g *gate) admit() {
	for len(g.waiters) > 0 {
		best := 0
		for i, w := range g.waiters {
			if w.urgent.Load() < g.waiters[best].urgent.Load() {
				best = i
			}
		}
		w := g.waiters[best]
		if w.n > g.free {
			return
		}
		g.free -= w.n
		g.waiters = slices.Delete(g.waiters, best, best+1)
		close(w.passed)
	}
}
