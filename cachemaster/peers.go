package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
)

// maxAsked bounds the workers that one call asks at a time.
const maxAsked = 16

// peers holds one gRPC connection to each worker that was asked for
// something. It is safe for concurrent use.
type peers struct {
	mu     sync.Mutex
	conns  map[string]*peerConn // by worker ID
	closed bool
}

type peerConn struct {
	address string
	conn    *grpc.ClientConn
}

func newPeers() *peers { return &peers{conns: make(map[string]*peerConn)} }

// client returns a client of the worker. A connection to an address that the
// worker has left is closed, which breaks off what still uses it.
func (p *peers) client(w peer) (api.WorkerServiceClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errs.E(errs.Unavailable, "connect", w.address, errStopping)
	}
	c := p.conns[w.id]
	if c != nil && c.address == w.address {
		return api.NewWorkerServiceClient(c.conn), nil
	}
	conn, err := rpcconn.Dial(w.address)
	if err != nil {
		return nil, err
	}
	if c != nil {
		// It fails only if it was closed before.
		_ = c.conn.Close()
	}
	p.conns[w.id] = &peerConn{address: w.address, conn: conn}
	return api.NewWorkerServiceClient(conn), nil
}

// close closes all connections.
func (p *peers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var found []error
	for _, c := range p.conns {
		found = append(found, c.conn.Close())
	}
	return errors.Join(found...)
}

// each asks every one of the workers, a bounded number at a time. The errors
// of all of them are joined, each naming its worker.
func (p *peers) each(ctx context.Context, workers []peer, timeout time.Duration, ask func(context.Context, peer, api.WorkerServiceClient) error) error {
	var g errgroup.Group
	g.SetLimit(maxAsked)
	found := make([]error, len(workers))
	for i, w := range workers {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			c, err := p.client(w)
			if err == nil {
				err = ask(ctx, w, c)
			}
			found[i] = errs.Wrap(err, "ask worker", w.id+" at "+w.address)
			return nil
		})
	}
	_ = g.Wait() // its functions return no error
	return errors.Join(found...)
}

// twice asks a worker once more when it could not be reached: the connection may
// have lost its other end with the network, long before, and ended under the
// question. What is asked may be answered twice.
func twice[R any](ctx context.Context, ask func() (R, error)) (R, error) {
	reply, err := ask()
	if errs.KindOf(err) == errs.Unavailable && ctx.Err() == nil {
		return ask()
	}
	return reply, err
}

// cachedBlocks says how much of a file's blocks is cached, and where.
type cachedBlocks struct {
	blocks map[uint32]*api.BlockLocation
}

// sum returns the bytes of the file that are cached somewhere, each once.
func (c *cachedBlocks) sum() int64 {
	var n int64
	for _, b := range c.blocks {
		n += b.GetCachedBytes()
	}
	return n
}

// cached asks the workers how much of each file they have. A worker that
// does not answer counts as one that has nothing, since the answer is of a
// moment anyway; its error is returned beside it.
func (p *peers) cached(ctx context.Context, workers []peer, timeout time.Duration, ids [][]byte) ([]cachedBlocks, error) {
	files := make([]cachedBlocks, len(ids))
	if len(ids) == 0 {
		return files, nil
	}
	var mu sync.Mutex
	err := p.each(ctx, workers, timeout, func(ctx context.Context, w peer, c api.WorkerServiceClient) error {
		reply, err := twice(ctx, func() (*api.CachedReply, error) { return c.Cached(ctx, &api.CachedRequest{FileIds: ids}) })
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for i, f := range reply.GetFiles()[:min(len(reply.GetFiles()), len(files))] {
			files[i].add(w.id, f)
		}
		return nil
	})
	return files, err
}

func (c *cachedBlocks) add(worker string, f *api.CachedFile) {
	for _, b := range f.GetBlocks() {
		if b.GetBytes() <= 0 {
			continue
		}
		if c.blocks == nil {
			c.blocks = make(map[uint32]*api.BlockLocation)
		}
		l := c.blocks[b.GetIndex()]
		if l == nil {
			l = &api.BlockLocation{Index: b.GetIndex()}
			c.blocks[b.GetIndex()] = l
		}
		// Replicas hold the same pages, mostly: the sum would count them twice.
		l.CachedBytes = max(l.CachedBytes, b.GetBytes())
		l.Workers = append(l.Workers, worker)
	}
}

// sorted returns the blocks in order.
func (c *cachedBlocks) sorted() []*api.BlockLocation {
	return slices.SortedFunc(maps.Values(c.blocks), func(a, b *api.BlockLocation) int {
		return cmp.Compare(a.GetIndex(), b.GetIndex())
	})
}

// cachedSum adds up what workers say.
type cachedSum struct {
	mu           sync.Mutex
	files, bytes int64
}

func (s *cachedSum) add(files, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files += files
	s.bytes += bytes
}

func (s *cachedSum) get() (files, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files, s.bytes
}
