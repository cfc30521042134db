package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
	"millrace/internal/wait"
)

// attempt runs f against one master. An attempt that takes long is looked
// after: it ends as soon as another master leads, or, once the retry budget is
// spent, when the master does not even say that it is there. One at a leader
// that is alive and works may take as long as f allows.
func (m *masters) attempt(ctx, budget context.Context, how repeatable, addr string, cc *grpc.ClientConn, f func(context.Context, *grpc.ClientConn) error) error {
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	var given error // why the attempt was abandoned
	watched := make(chan struct{})
	timer := time.AfterFunc(m.cfg.MasterSilence.Std(), func() {
		defer close(watched)
		if given = m.watch(ctx, budget, how, addr); given != nil {
			abandon(given)
		}
	})
	err := f(ctx, cc)
	if timer.Stop() {
		return err
	}
	abandon(nil) // which ends the watch, too
	<-watched
	if err != nil && given != nil {
		return given
	}
	return err
}

// watch asks who leads until ctx ends, and returns why the attempt at addr is
// to be given up.
func (m *masters) watch(ctx, budget context.Context, how repeatable, addr string) error {
	for silent := time.Now(); ; {
		leads, named, alive := m.look(ctx, addr)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the attempt is over
		}
		leader, pause := cmp.Or(leads, named), maxLeaderPause
		if alive {
			silent, pause = time.Now(), m.cfg.MasterSilence.Std() // it works on it
		}
		moved := leader != "" && leader != addr
		switch {
		case moved && how == always:
			return &rpcerr.NotLeader{Leader: leader}
		case moved, budget.Err() != nil && time.Since(silent) >= m.cfg.MasterSilence.Std():
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("master %s has not answered for %v", addr, m.cfg.MasterSilence))
		}
		if wait.For(ctx, min(pause, m.cfg.MasterSilence.Std())) != nil {
			return nil //nolint:nilerr // the attempt is over
		}
	}
}

// untilSilent returns when the master at cc does not say any more that it is
// there, or ctx ends.
func (m *masters) untilSilent(ctx context.Context, cc *grpc.ClientConn) {
	silence := m.cfg.MasterSilence.Std()
	for wait.For(ctx, 2*silence) == nil {
		within, cancel := context.WithTimeout(ctx, silence)
		_, err := api.NewGroupServiceClient(cc).Leader(within, &api.LeaderRequest{})
		cancel()
		if err != nil && !errors.Is(err, errs.Unsupported) {
			return
		}
	}
}

// find asks all masters who leads and remembers one that says so of itself.
// Those who come while that is under way wait for its end.
func (m *masters) find(ctx context.Context) {
	m.mu.Lock()
	if search := m.search; search != nil {
		m.mu.Unlock()
		select {
		case <-search:
		case <-ctx.Done():
		}
		return
	}
	search := make(chan struct{})
	m.search = search
	m.mu.Unlock()
	// Whom others name may be the one that has just died.
	if leads, _, _ := m.look(ctx, ""); leads != "" {
		m.answered(leads)
	}
	m.mu.Lock()
	m.search = nil
	m.mu.Unlock()
	close(search)
}

// look asks all masters who leads, for a moment. It returns the address of one
// that says so of itself, and of one, not that at addr, that another names;
// alive says whether the one at addr answered.
func (m *masters) look(ctx context.Context, addr string) (leads, named string, alive bool) {
	ctx, cancel := context.WithTimeout(ctx, min(maxLeaderPause, m.cfg.MasterSilence.Std()))
	defer cancel()
	m.mu.Lock()
	conns := map[string]*grpc.ClientConn{}
	for _, a := range m.addrs {
		if cc, err := m.conn(a); err == nil {
			conns[a] = cc
		}
	}
	m.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for a, cc := range conns {
		wg.Go(func() {
			reply, err := api.NewGroupServiceClient(cc).Leader(ctx, &api.LeaderRequest{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				// One that does not know the question answers, too.
				alive = alive || a == addr && errors.Is(err, errs.Unsupported)
			case reply.GetLeads():
				leads, alive = a, alive || a == addr
				if a != addr {
					cancel() // that will do; the others may be silent, too
				}
			default:
				alive = alive || a == addr
				if reply.GetAddress() != addr {
					named = reply.GetAddress()
				}
			}
		})
	}
	wg.Wait()
	return leads, named, alive
}
