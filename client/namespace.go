package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
)

// subtreeTimeout bounds calls that walk a tree, which take longer than others.
const subtreeTimeout = 15 * time.Minute

// clean checks a namespace path.
func clean(op, p string) (string, error) {
	if p == "" || p[0] != '/' {
		return "", errs.E(errs.Invalid, op, p, errors.New("a path of the namespace begins with /"))
	}
	return path.Clean(p), nil
}

// notFound is errs.NotFound with how long that answer may be reused.
type notFound struct {
	error
	until time.Time
}

func (e *notFound) Unwrap() error { return e.error }

// NotFound returns errs.NotFound as an answer that may be used until then.
func NotFound(until time.Time) error { return &notFound{errs.NotFound, until} }

// NotFoundUntil returns until when the answer that a name does not exist may
// be used without asking again; the zero time if it must not be.
func NotFoundUntil(err error) time.Time {
	if nf, ok := errors.AsType[*notFound](err); ok {
		return nf.until
	}
	return time.Time{}
}

// Stat describes a path. It is errs.NotFound if nothing is there.
func (c *Client) Stat(ctx context.Context, p string, o StatOptions) (*Entry, error) {
	p, err := clean("stat", p)
	if err != nil {
		return nil, err
	}
	var e *Entry
	look := c.doubted.Contains(p)
	err = c.masters.call(ctx, "stat", p, func(ctx context.Context, cc *grpc.ClientConn) error {
		asked := time.Now()
		reply, err := api.NewNamespaceServiceClient(cc).Stat(ctx, &api.StatRequest{
			Path: []byte(p), WithTicket: o.WithTicket, WithCached: o.WithCached, SeenIndex: c.masters.seen.Load(), Look: look,
		})
		if err != nil {
			return err
		}
		c.masters.sawIndex(reply.GetAppliedIndex())
		if look {
			c.doubted.Remove(p)
		}
		if reply.GetEntry() == nil {
			return NotFound(validUntil(asked, reply.GetValidMs()))
		}
		e, err = entryOf(reply.GetEntry(), reply.GetValidMs(), asked)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// List streams what is at a path, in bounded memory. It yields an error once
// and ends. A list that is cut by a change of the leader is resumed.
func (c *Client) List(ctx context.Context, p string, o ListOptions) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		p, err := clean("list", p)
		if err != nil {
			yield(nil, err)
			return
		}
		l := lister{c: c, path: p, o: o}
		defer l.close()
		for {
			e, err := l.next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, errs.WrapOnce(err, "list", p))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// lister reads one listing over as many streams as it takes.
type lister struct {
	c    *Client
	path string
	o    ListOptions

	stream grpc.ServerStreamingClient[api.ListReply]
	cancel context.CancelFunc
	idle   *time.Timer // cuts a stream on which nothing comes
	asked  time.Time

	batch  []*api.Entry
	valid  int64
	given  int // entries that were yielded
	skip   int // entries of a new stream that were yielded from an earlier one
	resume string
}

func (l *lister) next(ctx context.Context) (*Entry, error) {
	for {
		for len(l.batch) > 0 {
			first := l.batch[0]
			l.batch = l.batch[1:]
			if l.skip > 0 {
				l.skip--
				continue
			}
			e, err := entryOf(first, l.valid, l.asked)
			if err != nil {
				return nil, err
			}
			l.given++
			l.resume = e.Path
			return e, nil
		}
		if err := l.receive(ctx); err != nil {
			return nil, err
		}
	}
}

// receive gets the next batch, from a new stream if need be.
func (l *lister) receive(ctx context.Context) error {
	if l.stream != nil {
		reply, err := l.recv()
		switch errs.KindOf(err) {
		case errs.Unavailable, errs.NotLeader, errs.Timeout, errs.Canceled:
			if ctx.Err() != nil {
				return err
			}
			l.close()
		default:
			if err != nil {
				return err
			}
			l.take(reply)
			return nil
		}
	}
	return l.c.masters.retry(ctx, always, func(attempt context.Context, cc *grpc.ClientConn) error {
		reply, err := l.open(ctx, attempt, cc)
		if errors.Is(err, io.EOF) {
			return nil // nothing there; recv says so again
		}
		if err != nil {
			l.close()
			return err
		}
		l.take(reply)
		return nil
	})
}

// open starts a stream behind what was yielded, and receives its first batch
// before the attempt ends. The stream itself lives until ctx ends.
func (l *lister) open(ctx, attempt context.Context, cc *grpc.ClientConn) (*api.ListReply, error) {
	l.close()
	ctx, l.cancel = context.WithCancel(ctx)
	defer context.AfterFunc(attempt, l.cancel)()
	l.idle = time.AfterFunc(l.c.cfg.CallTimeout.Std(), l.cancel)
	l.asked = time.Now()
	req := &api.ListRequest{
		Path: []byte(l.path), Recursive: l.o.Recursive, WithTickets: l.o.WithTickets, WithCached: l.o.WithCached,
		SeenIndex: l.c.masters.seen.Load(), StartAfter: []byte(l.o.After),
	}
	switch {
	case l.given == 0:
	case l.o.Recursive:
		req.StartAfter = []byte(l.resume)
	default:
		l.skip = l.given
	}
	stream, err := api.NewNamespaceServiceClient(cc).List(ctx, req)
	if err != nil {
		return nil, err
	}
	l.stream = stream
	return l.recv()
}

func (l *lister) recv() (*api.ListReply, error) {
	l.idle.Reset(l.c.cfg.CallTimeout.Std())
	reply, err := l.stream.Recv()
	if !l.idle.Stop() && err != nil {
		return nil, errs.E(errs.Timeout, "", "", fmt.Errorf("nothing came for %v: %w", l.c.cfg.CallTimeout, err))
	}
	return reply, err
}

func (l *lister) take(r *api.ListReply) {
	l.c.masters.sawIndex(r.GetAppliedIndex())
	l.batch, l.valid = r.GetEntries(), r.GetValidMs()
}

func (l *lister) close() {
	if l.cancel != nil {
		l.idle.Stop()
		l.cancel()
	}
	l.stream, l.cancel, l.batch, l.skip = nil, nil, nil, 0
}

// Locate says which blocks of a file are cached, and where.
func (c *Client) Locate(ctx context.Context, p string) (*Entry, []BlockLocation, error) {
	p, err := clean("locate", p)
	if err != nil {
		return nil, nil, err
	}
	var e *Entry
	var blocks []BlockLocation
	err = c.masters.call(ctx, "locate", p, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewNamespaceServiceClient(cc).Locate(ctx, &api.LocateRequest{Path: []byte(p)})
		if err != nil {
			return err
		}
		if e, err = entryOf(reply.GetEntry(), 0, time.Now()); err != nil {
			return err
		}
		blocks = make([]BlockLocation, 0, len(reply.GetBlocks()))
		for _, b := range reply.GetBlocks() {
			l := BlockLocation{Index: b.GetIndex(), CachedBytes: b.GetCachedBytes(), Workers: b.GetWorkers()}
			if l.Workers == nil {
				l.Workers = []string{}
			}
			blocks = append(blocks, l)
		}
		return nil
	})
	return e, blocks, err
}

// Usage sums what is at and below a path.
func (c *Client) Usage(ctx context.Context, p string) (Usage, error) {
	p, err := clean("usage", p)
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	ctx, cancel := context.WithTimeout(ctx, subtreeTimeout)
	defer cancel()
	err = c.masters.retry(ctx, always, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewNamespaceServiceClient(cc).Usage(ctx, &api.UsageRequest{Path: []byte(p)})
		if err != nil {
			return err
		}
		u = Usage{Path: p, Files: reply.GetFiles(), Bytes: reply.GetBytes(), CachedBytes: reply.GetCachedBytes()}
		return nil
	})
	return u, errs.Wrap(err, "usage", p)
}

// Free drops the cached pages at and below a path from every live worker. It
// is not repeated when its outcome is unknown.
func (c *Client) Free(ctx context.Context, p string) (Freed, error) {
	p, err := clean("free", p)
	if err != nil {
		return Freed{}, err
	}
	var out Freed
	ctx, cancel := context.WithTimeout(ctx, subtreeTimeout)
	defer cancel()
	err = c.masters.retry(ctx, ifRefused, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewNamespaceServiceClient(cc).Free(ctx, &api.FreeRequest{Path: []byte(p)})
		if err != nil {
			return err
		}
		out = Freed{Path: p, Files: reply.GetFiles(), Bytes: reply.GetFreedBytes()}
		return nil
	})
	return out, errs.Wrap(err, "free", p)
}

// AddUFS binds a path of the namespace to an under-store.
func (c *Client) AddUFS(ctx context.Context, p, uri string, options map[string]string) (UFSMount, error) {
	p, err := clean("add under-store", p)
	if err != nil {
		return UFSMount{}, err
	}
	var out UFSMount
	req := &api.AddUFSRequest{Path: []byte(p), Uri: uri, Options: options, IdempotencyKey: rand.Text()}
	err = c.masters.call(ctx, "add under-store", p, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewUFSServiceClient(cc).AddUFS(ctx, req)
		if err == nil {
			out = mountOf(reply.GetMount())
		}
		return err
	})
	return out, err
}

// ListUFS returns the under-store mounts.
func (c *Client) ListUFS(ctx context.Context) ([]UFSMount, error) {
	var out []UFSMount
	err := c.masters.call(ctx, "list under-stores", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewUFSServiceClient(cc).ListUFS(ctx, &api.ListUFSRequest{})
		if err == nil {
			out = mountsOf(reply.GetMounts())
		}
		return err
	})
	return out, err
}

// RemoveUFS ends the binding of a path to its under-store.
func (c *Client) RemoveUFS(ctx context.Context, p string) error {
	p, err := clean("remove under-store", p)
	if err != nil {
		return err
	}
	req := &api.RemoveUFSRequest{Path: []byte(p), IdempotencyKey: rand.Text()}
	return c.masters.call(ctx, "remove under-store", p, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := api.NewUFSServiceClient(cc).RemoveUFS(ctx, req)
		return err
	})
}

// Status tells the state of the cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out *Status
	err := c.masters.call(ctx, "status", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewClusterServiceClient(cc).Status(ctx, &api.StatusRequest{})
		if err == nil {
			out = statusOf(reply)
		}
		return err
	})
	return out, err
}
