package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
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
	for {
		leader, alive := m.look(ctx, addr)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the attempt is over
		}
		switch {
		case leader != "" && leader != addr && how == always:
			return &rpcerr.NotLeader{Leader: leader}
		case leader != "" && leader != addr, !alive && budget.Err() != nil:
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("master %s has not answered for %v", addr, m.cfg.MasterSilence))
		}
		t := time.NewTimer(m.cfg.MasterSilence.Std())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// look asks all masters who leads. It returns the address of one that says so
// of itself, or else of one that another names; and whether the master at addr
// answered.
func (m *masters) look(ctx context.Context, addr string) (leader string, alive bool) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.MasterSilence.Std())
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
	var named string
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
				leader, alive = a, alive || a == addr
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
	if leader == "" {
		leader = named
	}
	return leader, alive
}
