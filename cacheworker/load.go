package cacheworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/loadjob"
	"millrace/tier"
)

// loadPieces is how many requests' sizes of one item are under way at a time.
const loadPieces = 4

// loader runs the items of load tasks. It implements loadjob.Loader.
type loader struct {
	w    *Worker
	gate *loadGate
}

// loadShare is the part of the cache that items of one mount may cover while
// they are under way: more would evict each other's pages as they come.
const loadShare = 4

func newLoader(w *Worker, items int, capacity int64) *loader {
	return &loader{w: w, gate: newLoadGate(items, max(capacity/loadShare, 1))}
}

// Load implements loadjob.Loader.
func (l *loader) Load(ctx context.Context, t *block.Ticket, e block.Extent) (loaded, cached int64, err error) {
	if err := l.w.admit(ctx, t); err != nil {
		return 0, 0, errs.Wrap(err, "load", t.Path)
	}
	if t.Unsettled {
		return 0, 0, errs.E(errs.Busy, "load", t.Path, errors.New("the file was changed a moment ago and may change again unseen"))
	}
	release, err := l.gate.acquire(ctx, t.MountID, e.Length)
	if err != nil {
		return 0, 0, err
	}
	defer release()
	loaded, cached, err = l.fill(ctx, t, e)
	if errors.Is(err, errs.NoSpace) {
		err = l.noSpace(err)
	}
	return loaded, cached, errs.Wrap(err, "load", t.Path)
}

// noSpace says of a load that found no room where that is, and what to do.
func (l *loader) noSpace(cause error) error {
	var dirs []string
	for _, d := range l.w.tier.Status() {
		text := fmt.Sprintf("%s has %v, %v of them used and %v held by open files",
			d.Dir, size.Bytes(d.Capacity), size.Bytes(d.Used), size.Bytes(d.Held))
		if d.Limit < d.Capacity && d.State == tier.StateOK {
			text += fmt.Sprintf("; its file system has room for %v of them", size.Bytes(d.Limit))
		}
		dirs = append(dirs, text)
	}
	return errs.E(errs.NoSpace, "", "", fmt.Errorf("no room in the cache of worker %s (%s): %w; free other paths, close files, or give the worker a larger cache directory or its file system more room",
		l.w.ID(), strings.Join(dirs, "; "), cause))
}

// loadPiece is a part of an item that is under way.
type loadPiece struct {
	h          *tier.Handle
	first, end int64 // pages
	length     int64 // bytes
	missing    int64 // bytes that were not there
}

// fill makes the pages of e present, some requests' sizes at a time, and pins
// no more than those.
func (l *loader) fill(ctx context.Context, t *block.Ticket, e block.Extent) (loaded, cached int64, err error) {
	request := l.w.fetcher.requestPages() * block.PageSize
	var ahead []loadPiece
	defer func() {
		for _, p := range ahead {
			p.h.Release()
		}
	}()
	for rest := e.Intersect(t.Geometry().Whole()); !rest.IsEmpty() || len(ahead) > 0; {
		if !rest.IsEmpty() && len(ahead) < loadPieces {
			length := min(rest.Length, request-rest.Offset%request)
			p, err := l.begin(ctx, t, block.Extent{Offset: rest.Offset, Length: length})
			if err != nil {
				return loaded, cached, err
			}
			ahead = append(ahead, p)
			rest = block.Extent{Offset: rest.Offset + length, Length: rest.Length - length}
			continue
		}
		if err := l.finish(ctx, t, &ahead[0]); err != nil {
			return loaded, cached, err
		}
		loaded += ahead[0].missing
		cached += ahead[0].length - ahead[0].missing
		ahead[0].h.Release()
		ahead = ahead[1:]
	}
	return loaded, cached, nil
}

// finish waits for what is missing of a piece.
func (l *loader) finish(ctx context.Context, t *block.Ticket, p *loadPiece) error {
	for try := 1; ; try++ {
		var err error
		for page := p.first; page < p.end && err == nil; page++ {
			err = l.w.fetcher.ensure(ctx, t, p.h, page, p.end, urgentLoad)
		}
		if !errors.Is(err, errVanished) || try == vanishTries {
			return err
		}
		again, err := l.begin(ctx, t, t.Geometry().PagesExtent(p.first, p.end))
		if err != nil {
			return err
		}
		p.h.Release()
		p.h = again.h
	}
}

// begin starts to fetch what is missing of one piece.
func (l *loader) begin(ctx context.Context, t *block.Ticket, e block.Extent) (loadPiece, error) {
	h, err := l.w.tier.Acquire(tier.FileOf(t), e)
	if err != nil {
		return loadPiece{}, err
	}
	p := loadPiece{h: h, length: e.Length}
	p.first, p.end = t.Geometry().PageRange(e)
	for _, m := range h.Missing() {
		p.missing += m.Intersect(e).Length
	}
	if p.missing > 0 {
		if err := l.w.fetcher.start(ctx, t, h, p.first, p.end, urgentLoad); err != nil {
			h.Release()
			return loadPiece{}, err
		}
	}
	return p, nil
}

// rpc answers the masters. It is what the worker's gRPC server serves.
type rpc struct {
	api.UnimplementedWorkerServiceServer
	w *Worker
}

// RunLoadTask implements api.WorkerServiceServer.
func (s rpc) RunLoadTask(task *api.LoadTask, stream grpc.ServerStreamingServer[api.LoadResult]) error {
	ctx, release := s.w.untilStop(stream.Context())
	defer release()
	items := make([]loadjob.Item, 0, len(task.GetItems()))
	for _, in := range task.GetItems() {
		t, err := block.ParseTicket(in.GetTicket())
		if err != nil {
			bad := loadjob.Result{Number: in.GetNumber(), Err: errs.E(errs.Invalid, "load", "", err)}
			if err := stream.Send(resultProto(bad)); err != nil {
				return err
			}
			continue
		}
		items = append(items, loadjob.Item{Number: in.GetNumber(), Ticket: t, FirstBlock: in.GetFirstBlock(), BlockCount: in.GetBlockCount()})
	}
	err := loadjob.RunTask(ctx, items, s.w.loader, s.w.cfg.LoadConcurrency, func(r loadjob.Result) error {
		return stream.Send(resultProto(r))
	})
	if err != nil && stream.Context().Err() == nil && ctx.Err() != nil {
		err = errStopping
	}
	return err
}

func resultProto(r loadjob.Result) *api.LoadResult {
	out := &api.LoadResult{Number: r.Number, LoadedBytes: r.Loaded, CachedBytes: r.Cached}
	if r.Err != nil {
		out.Error = r.Err.Error()
		out.ErrorKind = uint32(cmp.Or(errs.KindOf(r.Err), errs.Internal)) // 0 says that there is none
	}
	return out
}

// Drop implements api.WorkerServiceServer.
func (s rpc) Drop(_ context.Context, in *api.DropRequest) (*api.DropReply, error) {
	files, bytes, err := s.w.tier.Drop(in.GetMountId(), string(in.GetPath()))
	if err != nil {
		return nil, errs.Wrap(err, "drop", string(in.GetPath()))
	}
	return &api.DropReply{Files: int64(files), Bytes: bytes}, nil
}

// maxCachedFiles bounds one Cached request.
const maxCachedFiles = 100_000

// Cached implements api.WorkerServiceServer.
func (s rpc) Cached(_ context.Context, in *api.CachedRequest) (*api.CachedReply, error) {
	if len(in.GetFileIds()) > maxCachedFiles {
		return nil, errs.E(errs.Invalid, "look up cached files", "", errors.New("too many files at a time"))
	}
	out := &api.CachedReply{Files: make([]*api.CachedFile, 0, len(in.GetFileIds()))}
	for _, b := range in.GetFileIds() {
		var id block.FileID
		if len(b) != len(id) {
			return nil, errs.E(errs.Invalid, "look up cached files", "", errors.New("a file ID has 16 bytes"))
		}
		copy(id[:], b)
		blocks, bytes := s.w.tier.Cached(id)
		f := &api.CachedFile{Bytes: bytes, Blocks: make([]*api.CachedBlock, 0, len(blocks))}
		for _, b := range blocks {
			f.Blocks = append(f.Blocks, &api.CachedBlock{Index: b.Index, Bytes: b.CachedBytes})
		}
		out.Files = append(out.Files, f)
	}
	return out, nil
}

// CachedUsage implements api.WorkerServiceServer.
func (s rpc) CachedUsage(_ context.Context, in *api.CachedUsageRequest) (*api.CachedUsageReply, error) {
	files, bytes := s.w.tier.Usage(in.GetMountId(), string(in.GetPath()))
	return &api.CachedUsageReply{Files: int64(files), Bytes: bytes}, nil
}
