package cachemaster

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/ufs"
)

// listBatch bounds the entries of one message of a listing, and of one
// question to workers about what they have of files.
const listBatch = 1000

// batchTarget is after how many bytes of paths and tags a message of a listing
// is sent, so that a batch of long paths stays below rpcconn.MaxMessage.
const batchTarget = 1 << 20

// namespaceService answers what is where.
type namespaceService struct {
	api.UnimplementedNamespaceServiceServer

	m *Master
}

// begin makes sure that this master may answer a client that saw the state at
// an index.
func (m *Master) begin(ctx context.Context, seen uint64) (index uint64, err error) {
	if err := m.lead(ctx); err != nil {
		return 0, err
	}
	index = m.store.State().Index
	if index < seen {
		return 0, errs.E(errs.Unavailable, "", "", fmt.Errorf("the state machine is at %d and has not caught up with %d", index, seen))
	}
	return index, nil
}

// Stat implements api.NamespaceServiceServer. That nothing is there is an
// answer too, which may be used for as long as another.
func (s *namespaceService) Stat(ctx context.Context, r *api.StatRequest) (*api.StatReply, error) {
	index, err := s.m.begin(ctx, r.GetSeenIndex())
	if err != nil {
		return nil, err
	}
	f, err := s.m.ns.stat(ctx, string(r.GetPath()), r.GetLook())
	if gone, ok := errors.AsType[*missingError](err); ok {
		return &api.StatReply{ValidMs: gone.valid.Milliseconds(), AppliedIndex: index}, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := s.m.ns.entry(&f, r.GetWithTicket())
	if err != nil {
		return nil, err
	}
	if r.GetWithCached() {
		if err := s.m.fillCached(ctx, []*api.Entry{e}); err != nil {
			return nil, err
		}
	}
	return &api.StatReply{Entry: e, ValidMs: f.valid.Milliseconds(), AppliedIndex: index}, nil
}

// fillCached enters into files how much of them is cached. Workers that do
// not answer count as having nothing.
func (m *Master) fillCached(ctx context.Context, entries []*api.Entry) error {
	var ids [][]byte
	var files []*api.Entry
	for _, e := range entries {
		if e.GetType() == api.FileType_FILE_TYPE_FILE && e.GetSize() > 0 {
			ids, files = append(ids, e.GetFileId()), append(files, e)
		}
	}
	cached, err := m.peers.cached(ctx, m.members.reachable(true), m.cfg.WorkerTimeout.Std(), ids)
	if err != nil {
		m.log.Debug("a worker did not say what it has", "error", err)
	}
	for i, e := range files {
		e.CachedBytes = min(cached[i].sum(), e.GetSize())
	}
	return ctx.Err()
}

// List implements api.NamespaceServiceServer.
func (s *namespaceService) List(r *api.ListRequest, stream grpc.ServerStreamingServer[api.ListReply]) error {
	ctx := stream.Context()
	index, err := s.m.begin(ctx, r.GetSeenIndex())
	if err != nil {
		return err
	}
	b := listBatcher{s: s, r: r, index: index, stream: stream}
	p := string(r.GetPath())
	files := s.m.ns.children(ctx, p)
	if r.GetRecursive() {
		files = s.m.ns.files(ctx, p, string(r.GetStartAfter()))
	} else if len(r.GetStartAfter()) > 0 {
		return errs.E(errs.Invalid, "list", p, errors.New("start_after is for recursive lists"))
	}
	for f, err := range files {
		if err != nil {
			return err
		}
		if err := b.add(&f); err != nil {
			return err
		}
	}
	return b.flush()
}

// listBatcher gathers the entries of a listing into messages.
type listBatcher struct {
	s      *namespaceService
	r      *api.ListRequest
	index  uint64
	stream grpc.ServerStreamingServer[api.ListReply]

	entries []*api.Entry
	bytes   int
	valid   time.Duration
}

func (b *listBatcher) add(f *file) error {
	e, err := b.s.m.ns.entry(f, b.r.GetWithTickets())
	if err != nil {
		return err
	}
	if len(b.entries) == 0 {
		b.valid = f.valid
	}
	b.valid = min(b.valid, f.valid)
	b.entries = append(b.entries, e)
	b.bytes += len(e.GetPath()) + len(e.GetTag()) + len(e.GetTicket())
	if len(b.entries) >= listBatch || b.bytes >= batchTarget {
		return b.flush()
	}
	return nil
}

func (b *listBatcher) flush() error {
	if len(b.entries) == 0 {
		return nil
	}
	if b.r.GetWithCached() {
		if err := b.s.m.fillCached(b.stream.Context(), b.entries); err != nil {
			return err
		}
	}
	err := b.stream.Send(&api.ListReply{Entries: b.entries, ValidMs: b.valid.Milliseconds(), AppliedIndex: b.index})
	b.entries, b.bytes = nil, 0
	return err
}

// Locate implements api.NamespaceServiceServer.
func (s *namespaceService) Locate(ctx context.Context, r *api.LocateRequest) (*api.LocateReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	f, err := s.m.ns.stat(ctx, string(r.GetPath()), false)
	if err != nil {
		return nil, err
	}
	e, err := s.m.ns.entry(&f, false)
	if err != nil {
		return nil, err
	}
	reply := &api.LocateReply{Entry: e}
	if f.info.Type == ufs.Dir {
		return reply, nil
	}
	cached, err := s.m.peers.cached(ctx, s.m.members.reachable(true), s.m.cfg.WorkerTimeout.Std(), [][]byte{e.GetFileId()})
	if err != nil {
		s.m.log.Debug("a worker did not say what it has", "error", err)
	}
	e.CachedBytes = min(cached[0].sum(), e.GetSize())
	reply.Blocks = cached[0].sorted()
	return reply, ctx.Err()
}

// Usage implements api.NamespaceServiceServer.
func (s *namespaceService) Usage(ctx context.Context, r *api.UsageRequest) (*api.UsageReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	p := string(r.GetPath())
	reply := &api.UsageReply{}
	for f, err := range s.m.filesAt(ctx, p, "", false) {
		if err != nil {
			return nil, err
		}
		reply.Files++
		reply.Bytes += f.info.Size
	}
	var sum cachedSum
	err := s.m.eachPlace(ctx, p, s.m.members.reachable(true), func(ctx context.Context, c api.WorkerServiceClient, at place) error {
		u, err := twice(ctx, func() (*api.CachedUsageReply, error) {
			return c.CachedUsage(ctx, &api.CachedUsageRequest{MountId: at.mount.ID, Path: []byte(at.path)})
		})
		sum.add(u.GetFiles(), u.GetBytes())
		return err
	})
	if err != nil {
		s.m.log.Debug("a worker did not say what it has", "error", err)
	}
	_, reply.CachedBytes = sum.get()
	return reply, ctx.Err()
}

// Free implements api.NamespaceServiceServer. It fails if a worker that may
// be alive fails, since that may still have pages; what the others dropped
// stays dropped.
func (s *namespaceService) Free(ctx context.Context, r *api.FreeRequest) (*api.FreeReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	p := string(r.GetPath())
	if err := checkPath(p); err != nil {
		return nil, err
	}
	var sum cachedSum
	err := s.m.eachPlace(ctx, p, s.m.members.reachable(false), func(ctx context.Context, c api.WorkerServiceClient, at place) error {
		d, err := twice(ctx, func() (*api.DropReply, error) {
			return c.Drop(ctx, &api.DropRequest{MountId: at.mount.ID, Path: []byte(at.path)})
		})
		sum.add(d.GetFiles(), d.GetBytes())
		return err
	})
	if err != nil {
		return nil, errs.Wrap(err, "free", p)
	}
	reply := &api.FreeReply{}
	reply.Files, reply.FreedBytes = sum.get()
	return reply, nil
}

// eachPlace asks each of the workers about each place at and below p.
func (m *Master) eachPlace(ctx context.Context, p string, workers []peer, ask func(context.Context, api.WorkerServiceClient, place) error) error {
	places := covering(m.store.State(), p)
	if len(places) == 0 && p != "/" {
		return errs.E(errs.NotFound, "", p, errors.New("no under-store is bound here"))
	}
	return m.peers.each(ctx, workers, m.cfg.WorkerTimeout.Std(), func(ctx context.Context, _ peer, c api.WorkerServiceClient) error {
		for _, at := range places {
			if err := ask(ctx, c, at); err != nil {
				return err
			}
		}
		return nil
	})
}

// filesAt streams every file at and below p behind after, in byte order; a p
// that is a file yields itself. look says to ask the under-store about p
// whatever is cached.
func (m *Master) filesAt(ctx context.Context, p, after string, look bool) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		f, err := m.ns.stat(ctx, p, look)
		if err != nil {
			yield(file{}, err)
			return
		}
		if f.info.Type == ufs.File {
			if strings.Compare(p, after) > 0 {
				yield(f, nil)
			}
			return
		}
		m.ns.files(ctx, p, after)(yield)
	}
}
