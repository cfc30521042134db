package client

import (
	"context"
	"sync"
	"time"
)

// attempts makes the contexts of single attempts at a worker, and uses them
// again: a read that succeeds at once, as nearly all do, costs none.
type attempts struct{ pool sync.Pool }

// attempt is a context with a deadline that ends with its parent.
type attempt struct {
	of       *attempts
	parent   context.Context //nolint:containedctx // an attempt is a context itself
	deadline time.Time
	timer    *time.Timer
	parted   func() // what the parent's end calls, made once
	hedge    hedge
	used     bool // it must not be used again

	mu   sync.Mutex
	done chan struct{}
	err  error
	stop func() bool // of the hook at the parent; nil if it never ends
}

// begin returns a context that ends with parent or at the deadline. Its end
// must be called when the attempt is over, after which nobody may use it.
func (a *attempts) begin(parent context.Context, deadline time.Time) *attempt {
	t, ok := a.pool.Get().(*attempt)
	if !ok {
		t = &attempt{of: a, done: make(chan struct{})}
		t.parted = func() { t.cancel(t.parent.Err()) }
	}
	t.parent, t.deadline = parent, deadline
	left := time.Until(deadline)
	if t.timer == nil {
		t.timer = time.AfterFunc(left, func() { t.cancel(context.DeadlineExceeded) })
	} else {
		t.timer.Reset(left)
	}
	if parent.Done() != nil {
		t.stop = onEnd(parent, t.parted)
	}
	return t
}

// onEnd is context.AfterFunc, at no cost where the context offers it itself.
func onEnd(ctx context.Context, f func()) (stop func() bool) {
	if own, ok := ctx.(interface {
		AfterFunc(func()) func() bool
	}); ok {
		return own.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

func (t *attempt) cancel(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
		close(t.done)
	}
}

// end says that the attempt is over. One that nothing has canceled or is
// about to is used again.
func (t *attempt) end() {
	quiet := t.timer.Stop()
	if t.stop != nil {
		quiet = t.stop() && quiet
		t.stop = nil
	}
	if quiet && !t.used && t.Err() == nil {
		t.hedge.read, t.hedge.rivals = hedgedRead{}, nil
		t.parent = nil
		t.of.pool.Put(t)
		return
	}
	t.cancel(context.Canceled)
}

// Deadline implements context.Context.
func (t *attempt) Deadline() (time.Time, bool) { return t.deadline, true }

// Done implements context.Context.
func (t *attempt) Done() <-chan struct{} { return t.done }

// Err implements context.Context.
func (t *attempt) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Value implements context.Context.
func (t *attempt) Value(key any) any { return t.parent.Value(key) }
