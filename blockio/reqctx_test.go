package blockio

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type ctxKey struct{}

func TestRequestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent := context.WithValue(t.Context(), ctxKey{}, "v")
		var c requestContext
		if c.finish(); !c.finish() {
			t.Error("a context that was never started cannot be used")
		}

		// Nobody asked for Done: usable again, and Err knows the time.
		c.start(parent, time.Now().Add(time.Second))
		if c.Value(ctxKey{}) != "v" || c.Err() != nil {
			t.Errorf("value %v, err %v", c.Value(ctxKey{}), c.Err())
		}
		time.Sleep(time.Second)
		if !errors.Is(c.Err(), context.DeadlineExceeded) {
			t.Errorf("after the deadline: %v", c.Err())
		}
		if !c.finish() {
			t.Error("not usable again")
		}

		// Someone did: what was derived ends, and it is not used again.
		c.start(parent, time.Now().Add(time.Minute))
		child, cancel := context.WithCancel(&c)
		defer cancel()
		detached := context.WithoutCancel(&c)
		if c.finish() {
			t.Error("usable again though others have its channel")
		}
		<-child.Done()
		if !errors.Is(child.Err(), context.Canceled) || detached.Err() != nil {
			t.Errorf("derived: %v, detached: %v", child.Err(), detached.Err())
		}

		// The deadline ends it for who waits.
		d := requestContext{}
		start := time.Now()
		d.start(parent, start.Add(time.Hour))
		<-d.Done()
		if got := time.Since(start); got != time.Hour || !errors.Is(d.Err(), context.DeadlineExceeded) {
			t.Errorf("ended after %v with %v", got, d.Err())
		}
		d.cancel(context.Canceled)
		if !errors.Is(d.Err(), context.DeadlineExceeded) {
			t.Error("a second end counted")
		}

		// Canceled before anyone asked.
		e := requestContext{}
		e.start(parent, start.Add(time.Hour))
		e.cancel(context.Canceled)
		<-e.Done()
	})
}

// What a request left behind may ask for values while its context is another
// request's.
func TestRequestContextIsAskedLater(t *testing.T) {
	parent := context.WithValue(t.Context(), ctxKey{}, "v")
	var c requestContext
	c.start(parent, time.Now().Add(time.Minute))
	left := context.WithoutCancel(&c)
	if !c.finish() {
		t.Fatal("not usable again")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 1000 {
			if left.Value(ctxKey{}) != "v" {
				t.Error("the value is gone")
			}
		}
	}()
	for range 1000 {
		c.start(parent, time.Now().Add(time.Minute))
		c.finish()
	}
	<-done
}
