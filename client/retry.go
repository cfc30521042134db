package client

import (
	"context"
	"math/rand/v2"
	"time"
)

// pause waits between attempts: longer each time, never in step with others.
type pause struct {
	next time.Duration
}

const (
	firstPause = 20 * time.Millisecond
	maxPause   = time.Second
)

// wait returns early when again is closed or has a value. It reports false
// when ctx ended.
func (p *pause) wait(ctx context.Context, again <-chan struct{}) bool {
	if p.next == 0 {
		p.next = firstPause
	}
	timer := time.NewTimer(p.next/2 + rand.N(p.next))
	defer timer.Stop()
	p.next = min(2*p.next, maxPause)
	select {
	case <-timer.C:
	case <-again:
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

func (p *pause) reset() { p.next = 0 }
