package cachemaster

import (
	"context"
	"errors"
	"fmt"

	"millrace/api"
	"millrace/block"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
)

// workersService changes which workers there are.
type workersService struct {
	api.UnimplementedWorkersServiceServer

	m *Master
}

// DrainWorker implements api.WorkersServiceServer.
func (s *workersService) DrainWorker(ctx context.Context, r *api.DrainWorkerRequest) (*api.DrainWorkerReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	c := fsm.Command{DrainWorker: &fsm.DrainWorker{
		ID: r.GetWorkerId(), Draining: !r.GetUndrain(), WholeFileLimit: int64(s.m.cfg.WholeFileLimit),
	}}
	if _, err := s.m.raft.apply(ctx, c); err != nil {
		return nil, err
	}
	return &api.DrainWorkerReply{PlacementEpoch: s.m.store.State().PlacementEpoch}, nil
}

// ForgetWorker implements api.WorkersServiceServer. A worker that is alive
// would register again at once, and is refused.
func (s *workersService) ForgetWorker(ctx context.Context, r *api.ForgetWorkerRequest) (*api.ForgetWorkerReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	if s.m.members.live(r.GetWorkerId()) != nil {
		return nil, errs.E(errs.Busy, "forget worker", r.GetWorkerId(), errors.New("it is alive, and would register again")).
			WithHint("drain it, then stop it")
	}
	c := fsm.Command{ForgetWorker: &fsm.ForgetWorker{ID: r.GetWorkerId(), WholeFileLimit: int64(s.m.cfg.WholeFileLimit)}}
	if _, err := s.m.raft.apply(ctx, c); err != nil {
		return nil, err
	}
	return &api.ForgetWorkerReply{PlacementEpoch: s.m.store.State().PlacementEpoch}, nil
}

// locationService tells workers who else has a block. Every master answers.
type locationService struct {
	api.UnimplementedLocationServiceServer

	m *Master
}

// maxFound bounds the blocks of one question, and maxHolders the workers that
// are named for each.
const (
	maxFound   = 4096
	maxHolders = 4
)

// FindBlocks implements api.LocationServiceServer.
func (s *locationService) FindBlocks(_ context.Context, r *api.FindBlocksRequest) (*api.FindBlocksReply, error) {
	if n := max(len(r.GetBlocks()), len(r.GetNamed())); n > maxFound {
		return nil, errs.E(errs.Invalid, "find blocks", "", fmt.Errorf("%d of them, at most %d are allowed", n, maxFound))
	}
	reply := &api.FindBlocksReply{
		Blocks: make([]*api.Holders, 0, len(r.GetBlocks())), Others: s.m.members.others(r.GetWorkerId()),
	}
	named := make(map[block.WorkerID]uint32)
	name := func(id block.WorkerID) (at uint32, ok bool) {
		if at, ok = named[id]; ok {
			return at, true
		}
		addresses := s.m.members.live(string(id))
		if addresses == nil {
			return 0, false
		}
		at = uint32(len(reply.GetWorkers()))
		named[id] = at
		reply.Workers = append(reply.Workers, &api.Holder{Id: string(id), Addresses: addresses})
		return at, true
	}
	for _, id := range r.GetNamed() {
		name(block.WorkerID(id))
	}
	for _, hash := range r.GetBlocks() {
		found := &api.Holders{}
		for _, l := range s.m.blocks.Locations(hash) {
			if !l.Whole || string(l.Worker) == r.GetWorkerId() || len(found.GetWorkers()) == maxHolders {
				continue
			}
			if at, ok := name(l.Worker); ok {
				found.Workers = append(found.Workers, at)
			}
		}
		reply.Blocks = append(reply.Blocks, found)
	}
	return reply, nil
}
