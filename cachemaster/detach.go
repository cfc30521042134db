package cachemaster

import (
	"context"
	"sync"
	"time"

	"millrace/internal/errs"
)

// detached runs work that several callers wait for: a caller that gives up
// does not end it, the end of the master does. The zero value is ready.
type detached struct {
	mu      sync.Mutex
	closed  bool
	number  int
	cancels map[int]context.CancelFunc
	wg      sync.WaitGroup
}

// start runs f on a goroutine of its own with the values of ctx, but not its
// end. A timeout of 0 is none. cancel ends f's context; it need not be called.
func (d *detached) start(ctx context.Context, timeout time.Duration, f func(context.Context)) (cancel context.CancelFunc, err error) {
	ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		cancel()
		return nil, errs.E(errs.Unavailable, "", "", errStopping)
	}
	if d.cancels == nil {
		d.cancels = make(map[int]context.CancelFunc)
	}
	d.number++
	number := d.number
	d.cancels[number] = cancel
	d.wg.Go(func() {
		defer func() {
			cancel()
			d.mu.Lock()
			defer d.mu.Unlock()
			delete(d.cancels, number)
		}()
		f(ctx)
	})
	return cancel, nil
}

// close ends all work, waits for it, and starts none any more.
func (d *detached) close() {
	d.mu.Lock()
	d.closed = true
	for _, cancel := range d.cancels {
		cancel()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// flights lets concurrent calls for one key share one answer.
type flights[K comparable, V any] struct {
	detached *detached

	mu    sync.Mutex
	under map[K]*flight[V]
}

type flight[V any] struct {
	done  chan struct{}
	value V
}

// do returns the answer of f, which runs once for all calls with that key
// that overlap. A caller whose ctx ends leaves; the others get their answer.
func (g *flights[K, V]) do(ctx context.Context, key K, timeout time.Duration, f func(context.Context) V) (V, error) {
	g.mu.Lock()
	fl := g.under[key]
	if fl == nil {
		fl = &flight[V]{done: make(chan struct{})}
		_, err := g.detached.start(ctx, timeout, func(ctx context.Context) {
			value := f(ctx)
			g.mu.Lock()
			delete(g.under, key)
			g.mu.Unlock()
			fl.value = value
			close(fl.done)
		})
		if err != nil {
			g.mu.Unlock()
			var zero V
			return zero, err
		}
		if g.under == nil {
			g.under = make(map[K]*flight[V])
		}
		g.under[key] = fl
	}
	g.mu.Unlock()
	select {
	case <-fl.done:
		return fl.value, nil
	case <-ctx.Done():
		var zero V
		return zero, errs.Wrap(ctx.Err(), "", "")
	}
}
