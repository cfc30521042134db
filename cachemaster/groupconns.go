package cachemaster

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/internal/rpcerr"
)

// groupConns holds one gRPC connection to each other master that was asked
// something. It is safe for concurrent use.
type groupConns struct {
	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn // by address
	closed bool
}

func newGroupConns() *groupConns { return &groupConns{conns: make(map[string]*grpc.ClientConn)} }

func (g *groupConns) client(address string) (api.GroupServiceClient, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errs.E(errs.Unavailable, "connect", address, errStopping)
	}
	conn := g.conns[address]
	if conn == nil {
		var err error
		if conn, err = rpcconn.Dial(address); err != nil {
			return nil, err
		}
		g.conns[address] = conn
	}
	return api.NewGroupServiceClient(conn), nil
}

// close closes all connections.
func (g *groupConns) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	var found []error
	for _, c := range g.conns {
		found = append(found, c.Close())
	}
	return errors.Join(found...)
}

// ask asks the master at an address, which has groupTimeout to answer.
func ask[R any](ctx context.Context, g *groupConns, address string, f func(context.Context, api.GroupServiceClient) (R, error)) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	c, err := g.client(address)
	if err != nil {
		var none R
		return none, err
	}
	return f(ctx, c)
}

// askAll asks the masters at the addresses at once, and returns the answers of
// those that gave one.
func (g *groupConns) askAll(ctx context.Context, addresses []string, f func(context.Context, api.GroupServiceClient) (*api.FoundReply, error)) []*api.FoundReply {
	replies := make([]*api.FoundReply, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() {
			if r, err := ask(ctx, g, a, f); err == nil {
				replies[i] = r
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(replies, func(r *api.FoundReply) bool { return r == nil })
}

// askLeader asks the masters at the addresses one after the other, and whom
// they name as the leader, until one answers as the leader does.
func askLeader[R any](ctx context.Context, g *groupConns, addresses []string, f func(context.Context, api.GroupServiceClient) (R, error)) (r R, err error) {
	err = errs.E(errs.Unavailable, "ask the leader", "", errors.New("no other master is known"))
	asked := map[string]bool{}
	for len(addresses) > 0 && ctx.Err() == nil {
		a := addresses[0]
		addresses = addresses[1:]
		if asked[a] {
			continue
		}
		asked[a] = true
		if r, err = ask(ctx, g, a, f); err == nil {
			return r, nil
		}
		if nl, ok := errors.AsType[*rpcerr.NotLeader](err); ok && nl.Leader != "" {
			addresses = append([]string{nl.Leader}, addresses...)
		}
	}
	return r, err
}
