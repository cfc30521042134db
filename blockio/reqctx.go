package blockio

import (
	"context"
	"sync"
	"time"
)

// requestContext is the context of one request on the server. It exists so
// that a read which is answered from the cache costs neither an allocation
// nor a timer: the channel and the timer of the deadline are made when
// somebody first asks for Done. One that was asked is never used again, so
// that contexts derived from it stay right for as long as they live.
type requestContext struct {
	parent context.Context //nolint:containedctx // this is a context; parent answers Value

	mu       sync.Mutex
	deadline time.Time
	err      error
	done     chan struct{}
	timer    *time.Timer
}

// start makes c the context of a request that must end by deadline.
func (c *requestContext) start(parent context.Context, deadline time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parent, c.deadline, c.err = parent, deadline, nil
}

// Deadline implements context.Context.
func (c *requestContext) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline, true
}

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		} else {
			c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.cancel(context.DeadlineExceeded) })
		}
	}
	return c.done
}

// Err implements context.Context.
func (c *requestContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.done == nil && !time.Now().Before(c.deadline) {
		c.err = context.DeadlineExceeded
	}
	return c.err
}

// Value implements context.Context. It is also asked by what was derived with
// WithoutCancel and outlives the request; by then c may be another request's,
// whose values are the same: those of the server.
func (c *requestContext) Value(key any) any {
	c.mu.Lock()
	parent := c.parent
	c.mu.Unlock()
	return parent.Value(key)
}

// cancel ends c with err; only the first call counts.
func (c *requestContext) cancel(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.done != nil {
		close(c.done)
	}
}

// finish ends c and reports whether it may be started again.
func (c *requestContext) finish() (reusable bool) {
	c.cancel(context.Canceled)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done == nil
}
