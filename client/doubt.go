package client

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A worker that failed is tried last for doubtLeast, and for twice as long
	// each time that it fails again, up to doubtMost.
	doubtLeast = time.Second
	doubtMost  = 10 * time.Second
	// lostInARow is how many reads a worker may lose to others, without an
	// answer in between, before it counts as failed.
	lostInARow = 3
)

// doubt is whether a worker is worth asking. It is safe for concurrent use,
// and costs who reads from a worker that answers two loads.
type doubt struct {
	until atomic.Int64 // Unix ns; 0: there is none
	lost  atomic.Int32 // reads lost in a row

	mu    sync.Mutex
	pause time.Duration // the last one; 0: it answered since
}

// now reports whether others are to be asked first.
func (d *doubt) now() bool {
	until := d.until.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// answered ends the doubt.
func (d *doubt) answered() {
	if d.until.Load() == 0 && d.lost.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause = 0
	d.until.Store(0)
	d.lost.Store(0)
}

// failed begins or prolongs the doubt. Failures within it are of requests that
// were under way.
func (d *doubt) failed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now() {
		return
	}
	d.pause = min(max(2*d.pause, doubtLeast), doubtMost)
	d.until.Store(time.Now().Add(d.pause).UnixNano())
}

// outrun notes that another worker answered sooner, though it was asked later.
// One that was in doubt before has no more than one try.
func (d *doubt) outrun() {
	if d.lost.Add(1) >= lostInARow || d.until.Load() != 0 {
		d.failed()
	}
}
