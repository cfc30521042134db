package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/cachemaster/blockmap"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
)

// clusterService says who is there. Every master answers, from what it knows.
type clusterService struct {
	api.UnimplementedClusterServiceServer

	m *Master
}

// Status implements api.ClusterServiceServer.
func (s *clusterService) Status(context.Context, *api.StatusRequest) (*api.StatusReply, error) {
	m := s.m
	st := m.store.State()
	leader := m.raft.leaderID()
	counters := m.members.counters()
	addCounters(counters, m.ufs.counters())
	return &api.StatusReply{
		ClusterId: st.ClusterID,
		Leader:    leader,
		Masters:   m.masters(st, leader),
		Workers:   m.members.workers(),
		Mounts:    mountsProto(st),
		Counters:  counters,
		Serving:   leader != "" && (leader != m.raft.id || m.leading.Load()) && m.members.serving(),
	}, nil
}

// masters describes the voters, in the order of their IDs.
func (m *Master) masters(st *fsm.State, leader string) []*api.MasterInfo {
	var infos []*api.MasterInfo
	f := m.raft.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	for _, v := range f.Configuration().Servers {
		info := &api.MasterInfo{Id: string(v.ID), Address: st.Masters[string(v.ID)].GRPC, State: "follower"}
		if string(v.ID) == m.raft.id {
			info.Address = m.grpc
			if m.raft.raft.State() == raft.Candidate {
				info.State = "candidate"
			}
		}
		if string(v.ID) == leader {
			info.State = "leader"
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b *api.MasterInfo) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return infos
}

// Watch implements api.ClusterServiceServer.
func (s *clusterService) Watch(_ *api.WatchRequest, stream grpc.ServerStreamingServer[api.Membership]) error {
	for {
		changed := s.m.members.change.next()
		if s.m.apart.Load() {
			return errs.E(errs.Unavailable, "watch", "", errNotEntered)
		}
		st := s.m.store.State()
		hot, valid := s.m.members.hot.proto()
		err := stream.Send(&api.Membership{
			ClusterId: st.ClusterID, Placement: placementProto(st),
			Workers: s.m.members.workers(), MountsVersion: st.MountsVersion,
			Hot: hot, HotValidMs: valid.Milliseconds(),
		})
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.m.stopping:
			return errs.E(errs.Unavailable, "watch", "", errStopping)
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// ReportClient implements api.ClusterServiceServer.
func (s *clusterService) ReportClient(_ context.Context, r *api.ReportClientRequest) (*api.ReportClientReply, error) {
	return &api.ReportClientReply{}, s.m.members.reportClient(r)
}

// registryService is what workers tell this master.
type registryService struct {
	api.UnimplementedWorkerRegistryServiceServer

	m *Master
}

// Register implements api.WorkerRegistryServiceServer.
func (s *registryService) Register(ctx context.Context, r *api.RegisterRequest) (*api.RegisterReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	if err := checkWorker(r); err != nil {
		return nil, err
	}
	st := s.m.store.State()
	if c := r.GetClusterId(); c != "" && c != st.ClusterID {
		return nil, errs.E(errs.Invalid, "register worker", r.GetWorkerId(), fmt.Errorf("it belongs to cluster %s, this is %s", c, st.ClusterID)).
			WithHint("use the worker's data directory with its own cluster, or an empty one")
	}
	w := fsm.Worker{
		ID: r.GetWorkerId(), Addresses: addressesOf(r.GetAddresses()),
		CapacityBytes: r.GetCapacityBytes(), SmallestDirBytes: r.GetSmallestDirBytes(),
	}
	w.Draining = st.Workers[w.ID].Draining
	override := int64(s.m.cfg.WholeFileLimit)
	limit := st.WholeFileLimit
	if old, ok := st.Workers[w.ID]; ok && old == w {
		limit = fsm.WholeFileLimit(st.Workers, override)
	}
	if st.Workers[w.ID] != w || limit != st.WholeFileLimit {
		c := fsm.Command{RegisterWorker: &fsm.RegisterWorker{Worker: w, WholeFileLimit: override}}
		if _, err := s.m.raft.apply(ctx, c); err != nil {
			return nil, err
		}
		st = s.m.store.State()
	}
	return &api.RegisterReply{ClusterId: st.ClusterID, Placement: placementProto(st), Mounts: mountsProto(st)}, nil
}

func checkWorker(r *api.RegisterRequest) error {
	const maxAddress = 4 << 10 // bytes
	a := r.GetAddresses()
	switch {
	case r.GetWorkerId() == "" || len(r.GetWorkerId()) > maxIDLength:
		return errs.E(errs.Invalid, "register worker", "", fmt.Errorf("worker ID of %d bytes, want 1 to %d", len(r.GetWorkerId()), maxIDLength))
	case r.GetCapacityBytes() < 0 || r.GetSmallestDirBytes() < 0:
		return errs.E(errs.Invalid, "register worker", r.GetWorkerId(), errors.New("a capacity is negative"))
	case a.GetGrpc() == "" || a.GetData() == "":
		return errs.E(errs.Invalid, "register worker", r.GetWorkerId(), errors.New("an address is missing"))
	case max(len(a.GetGrpc()), len(a.GetData()), len(a.GetHttp()), len(a.GetUnixSocket()), len(a.GetBootId())) > maxAddress:
		return errs.E(errs.Invalid, "register worker", r.GetWorkerId(), fmt.Errorf("an address is longer than %d bytes", maxAddress))
	}
	return nil
}

// Heartbeat implements api.WorkerRegistryServiceServer.
func (s *registryService) Heartbeat(_ context.Context, r *api.HeartbeatRequest) (*api.HeartbeatReply, error) {
	reply, err := s.m.members.heartbeat(r)
	if err != nil {
		return nil, err
	}
	reply.MasterId = s.m.raft.id
	for _, m := range s.m.store.State().Masters {
		reply.Masters = append(reply.Masters, &api.MasterAddress{Id: m.ID, Grpc: m.GRPC})
	}
	return reply, nil
}

// ReportBlocks implements api.WorkerRegistryServiceServer.
func (s *registryService) ReportBlocks(_ context.Context, r *api.ReportBlocksRequest) (*api.ReportBlocksReply, error) {
	id := r.GetWorkerId()
	if _, ok := s.m.store.State().Workers[id]; !ok {
		return nil, errs.E(errs.NotFound, "report blocks", id, errors.New("the worker is not registered"))
	}
	return &api.ReportBlocksReply{NeedFull: s.m.blocks.Apply(block.WorkerID(id), reportOf(r))}, nil
}

func reportOf(r *api.ReportBlocksRequest) blockmap.Report {
	return blockmap.Report{
		Epoch: r.GetStartEpoch(), Sequence: r.GetSequence(),
		First: r.GetFullFirst(), Part: r.GetFullPart(), Last: r.GetFullLast(),
		Cached: r.GetCached(), Gone: r.GetGone(),
	}
}
