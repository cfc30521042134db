// Package wait waits for time to pass, for who can be told to stop waiting.
package wait

import (
	"context"
	"time"
)

// For returns nil when d has passed, or ctx's error when ctx ends first.
func For(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
