// Package doubt remembers of somebody on the network whether asking is worth
// the wait. One that failed is left alone for a while, and for longer each time
// that it fails again; then one request tries it, and only when that is
// answered do the others come back.
package doubt

import (
	"sync"
	"sync/atomic"
	"time"
)

// One that failed is in doubt for Least, and for twice as long each time that it
// fails again, up to Most.
const (
	Least = time.Second
	Most  = 10 * time.Second
)

// LostInARow is how many requests one may lose to others, without an answer in
// between, before it counts as failed.
const LostInARow = 3

// Doubt is what is remembered of one. The zero value is trust. It is safe for
// concurrent use, and costs who asks one that answers two loads.
type Doubt struct {
	until atomic.Pointer[time.Time] // nil: there is none; a jump of the clock does not move it
	lost  atomic.Int32              // requests lost in a row

	mu    sync.Mutex
	pause time.Duration // the last one; 0: it answered since
	trial bool          // somebody tries it
}

// Now reports whether others are to be asked first.
func (d *Doubt) Now() bool {
	until := d.until.Load()
	return until != nil && time.Now().Before(*until)
}

// Try reports whether to ask. Of those who come after a pause one is told so;
// the others when that one had its answer, or one of them after Least.
func (d *Doubt) Try() bool {
	if d.until.Load() == nil {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.until.Load() == nil:
		return true
	case d.Now():
		return false
	}
	d.trial = true
	d.pauseFor(Least)
	return true
}

// Answered ends the doubt.
func (d *Doubt) Answered() {
	if d.until.Load() == nil && d.lost.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause, d.trial = 0, false
	d.until.Store(nil)
	d.lost.Store(0)
}

// Failed begins or prolongs the doubt. Failures within a pause are of requests
// that were under way.
func (d *Doubt) Failed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Now() && !d.trial {
		return
	}
	d.pause, d.trial = min(max(2*d.pause, Least), Most), false
	d.pauseFor(d.pause)
}

func (d *Doubt) pauseFor(t time.Duration) {
	until := time.Now().Add(t)
	d.until.Store(&until)
}

// Outrun notes that another one answered sooner, though it was asked later. One
// that was in doubt before has no more than one try.
func (d *Doubt) Outrun() {
	if d.lost.Add(1) >= LostInARow || d.until.Load() != nil {
		d.Failed()
	}
}
