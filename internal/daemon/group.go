package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// ErrDone is returned by a role that has ended well and wants the others to
// stop: no failure of the group.
var ErrDone = errors.New("done")

// errEnded is the failure of a role that ended without being asked to.
var errEnded = errors.New("ended by itself")

// Group runs roles that depend on each other in the order of their start.
// Start and Wait are called from one goroutine, the rest from any.
type Group struct {
	log   *slog.Logger
	roles []*role

	mu      sync.Mutex
	stopped chan struct{} // closed when a role has ended or Fail was called
	cause   error         // why; set before stopped is closed
	failed  error         // all failures
	bound   map[*context.CancelCauseFunc]struct{}
}

type role struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// NewGroup makes an empty group.
func NewGroup(log *slog.Logger) *Group {
	return &Group{log: log, stopped: make(chan struct{}), bound: map[*context.CancelCauseFunc]struct{}{}}
}

// Start runs a role in a goroutine of its own until Wait stops it. run blocks,
// ends soon after its context does, and has then ended all that it started.
// Its context has the values of ctx, but not its end: roles stop one after the
// other. A run that returns before it is asked to, even without an error, is a
// failure of the group, except for ErrDone.
func (g *Group) Start(ctx context.Context, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &role{name: name, cancel: cancel, done: make(chan struct{})}
	g.roles = append(g.roles, r)
	g.log.DebugContext(ctx, "role starts", "role", name)
	go func() {
		defer close(r.done)
		err := run(ctx)
		g.ended(name, err, ctx.Err() != nil)
	}()
}

func (g *Group) ended(name string, err error, asked bool) {
	switch {
	case asked && (err == nil || errors.Is(err, context.Canceled)):
	case errors.Is(err, ErrDone):
		g.stop(err)
	case err == nil:
		g.Fail(fmt.Errorf("%s: %w", name, errEnded))
	default:
		g.Fail(fmt.Errorf("%s: %w", name, err))
	}
}

// Fail stops the group, as if a role had ended with err.
func (g *Group) Fail(err error) {
	g.mu.Lock()
	g.failed = errors.Join(g.failed, err)
	g.mu.Unlock()
	g.stop(err)
}

func (g *Group) stop(cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cause != nil {
		return
	}
	g.cause = cause
	close(g.stopped)
	for cancel := range g.bound {
		(*cancel)(cause)
	}
}

// Bound returns a context that ends with ctx or when a role has ended, with
// that as its cause. What is done between two starts, such as waiting for a
// role to be ready, uses it. The returned function must be called.
func (g *Group) Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cause != nil {
		cancel(g.cause)
	}
	g.bound[&cancel] = struct{}{}
	return ctx, func() {
		g.mu.Lock()
		delete(g.bound, &cancel)
		g.mu.Unlock()
		cancel(nil)
	}
}

// Wait blocks until ctx ends or a role does, stops all roles in the reverse of
// their start, and returns what failed: nil when the stop was asked for and
// went well.
func (g *Group) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-g.stopped:
	}
	for _, r := range slices.Backward(g.roles) {
		g.log.DebugContext(ctx, "role stops", "role", r.name)
		r.cancel()
		<-r.done
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}
