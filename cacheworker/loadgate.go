package cacheworker

import (
	"context"
	"sync"
)

// loadGate bounds the items of load tasks that are under way, in number and
// in bytes: those of one under-store mount, and those of all mounts together
// to twice as much. So a mount whose under-store hangs leaves room for the
// others; and of what becomes free, the mount that has the fewest items gets
// the next. It is safe for concurrent use.
type loadGate struct {
	items int   // of one mount
	bytes int64 // likewise

	mu     sync.Mutex
	held   loadHeld
	mounts map[uint64]*loadMount
	last   uint64 // number of the waiter that came last
}

// gateMounts is for how many mounts at their bounds there is room.
const gateMounts = 2

type loadHeld struct {
	items int
	bytes int64
}

// loadMount is what a gate knows of a mount that holds or waits for something.
type loadMount struct {
	held    loadHeld
	waiting []*loadWaiter // the one that came first in front
}

type loadWaiter struct {
	number  uint64
	bytes   int64
	granted chan struct{}
}

func newLoadGate(items int, bytes int64) *loadGate {
	return &loadGate{items: items, bytes: bytes, mounts: make(map[uint64]*loadMount)}
}

// acquire waits until an item of a mount may begin, and returns what must be
// called at its end. An item of more bytes than the bound counts as the bound.
func (g *loadGate) acquire(ctx context.Context, mount uint64, bytes int64) (release func(), err error) {
	w := &loadWaiter{bytes: min(bytes, g.bytes), granted: make(chan struct{})}
	g.mu.Lock()
	m := g.mounts[mount]
	if m == nil {
		m = &loadMount{}
		g.mounts[mount] = m
	}
	g.last++
	w.number = g.last
	m.waiting = append(m.waiting, w)
	g.grant()
	g.mu.Unlock()
	select {
	case <-w.granted:
	case <-ctx.Done():
		if g.leave(mount, w) {
			return nil, ctx.Err()
		}
		// It was granted meanwhile; its work ends by the same context.
	}
	return func() { g.release(mount, w.bytes) }, nil
}

// leave takes back a waiter; it reports false if that was granted.
func (g *loadGate) leave(mount uint64, w *loadWaiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.mounts[mount]
	for i := range m.waiting {
		if m.waiting[i] == w {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
			g.tidy(mount, m)
			g.grant() // it may have been in front
			return true
		}
	}
	return false
}

func (g *loadGate) release(mount uint64, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.mounts[mount]
	m.held.items--
	m.held.bytes -= bytes
	g.held.items--
	g.held.bytes -= bytes
	g.tidy(mount, m)
	g.grant()
}

// tidy forgets a mount that has nothing any more. The lock is held.
func (g *loadGate) tidy(mount uint64, m *loadMount) {
	if m.held.items == 0 && len(m.waiting) == 0 {
		delete(g.mounts, mount)
	}
}

// grant lets begin what may. The lock is held.
func (g *loadGate) grant() {
	for {
		m := g.next()
		if m == nil {
			return
		}
		w := m.waiting[0]
		// Nobody passes who is next: smaller items would do so for ever.
		if g.held.items >= gateMounts*g.items || g.held.bytes+w.bytes > gateMounts*g.bytes {
			return
		}
		m.waiting = m.waiting[1:]
		m.held.items++
		m.held.bytes += w.bytes
		g.held.items++
		g.held.bytes += w.bytes
		close(w.granted)
	}
}

// next returns, of the mounts that wait and are below their bounds, the one
// with the fewest items; of several, the one that waits longest.
func (g *loadGate) next() *loadMount {
	var best *loadMount
	for _, m := range g.mounts {
		if len(m.waiting) == 0 || m.held.items >= g.items || m.held.bytes+m.waiting[0].bytes > g.bytes {
			continue
		}
		if best == nil || m.held.items < best.held.items ||
			m.held.items == best.held.items && m.waiting[0].number < best.waiting[0].number {
			best = m
		}
	}
	return best
}
