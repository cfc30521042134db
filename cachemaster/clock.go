package cachemaster

import (
	"context"
	"time"
)

// clock tells the time, and waits by it.
type clock interface {
	Now() time.Time
	// After returns a channel that gets the time once d has passed. stop frees
	// what waits, and may be called at any time.
	After(d time.Duration) (passed <-chan time.Time, stop func())
}

// systemClock is the machine's.
type systemClock struct{}

// Now implements clock.
func (systemClock) Now() time.Time { return time.Now() }

// After implements clock.
func (systemClock) After(d time.Duration) (passed <-chan time.Time, stop func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// sleep waits for d, or for the end of ctx.
func sleep(ctx context.Context, c clock, d time.Duration) error {
	passed, stop := c.After(d)
	defer stop()
	select {
	case <-passed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
