package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// groupService is about the masters themselves.
type groupService struct {
	api.UnimplementedGroupServiceServer

	m *Master
}

// Leader implements api.GroupServiceServer.
func (s *groupService) Leader(context.Context, *api.LeaderRequest) (*api.LeaderReply, error) {
	m := s.m
	if !m.running.Load() {
		return &api.LeaderReply{}, nil
	}
	id := m.raft.leaderID()
	if id == m.raft.id {
		return &api.LeaderReply{Id: id, Address: m.grpc, Leads: m.leading.Load()}, nil
	}
	return &api.LeaderReply{Id: id, Address: m.store.State().Masters[id].GRPC}, nil
}

// ListMasters implements api.GroupServiceServer.
func (s *groupService) ListMasters(ctx context.Context, _ *api.ListMastersRequest) (*api.ListMastersReply, error) {
	m := s.m
	if _, err := m.begin(ctx, 0); err != nil {
		return nil, err
	}
	servers, _, err := m.raft.servers()
	if err != nil {
		return nil, err
	}
	reply := &api.ListMastersReply{}
	for _, v := range servers {
		id := string(v.ID)
		reply.Masters = append(reply.Masters, &api.GroupMember{
			Id: id, Address: m.store.State().Masters[id].GRPC, Raft: string(v.Address), State: m.stateOf(v),
		})
	}
	for _, id := range m.announced.ids() {
		if !slices.ContainsFunc(servers, func(v raft.Server) bool { return string(v.ID) == id }) {
			a, _ := m.announced.lately(id)
			state := masterWaiting
			if a.GetEmpty() {
				state = masterEmpty // it has not noticed yet that the group does not count on it
			}
			reply.Masters = append(reply.Masters, &api.GroupMember{Id: id, Address: a.GetGrpc(), Raft: a.GetRaft(), State: state})
		}
	}
	for _, g := range reply.GetMasters() {
		if a, ok := m.announced.lately(g.GetId()); ok {
			g.AppliedIndex = a.GetAppliedIndex()
		}
		if g.GetId() == m.raft.id {
			g.AppliedIndex = m.store.State().Index
		}
	}
	slices.SortFunc(reply.GetMasters(), func(a, b *api.GroupMember) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return reply, nil
}

// The states of a master, as the leader sees it.
const (
	masterLeader   = "leader"
	masterFollower = "follower"
	masterSilent   = "silent"
	masterEmpty    = "empty"
	masterJoining  = "joining"
	masterWaiting  = "waiting"
)

// stateOf returns the state of a member of the group. This master leads.
func (m *Master) stateOf(v raft.Server) string {
	a, heard := m.announced.lately(string(v.ID))
	switch {
	case string(v.ID) == m.raft.id:
		return masterLeader
	case !heard:
		return masterSilent
	case a.GetEmpty():
		return masterEmpty
	case v.Suffrage != raft.Voter:
		return masterJoining
	}
	return masterFollower
}

// AddMaster implements api.GroupServiceServer. The master gets the log first
// and its vote when it has caught up: one that cannot would otherwise count
// for the majority and bring nothing.
func (s *groupService) AddMaster(ctx context.Context, r *api.AddMasterRequest) (*api.AddMasterReply, error) {
	m, id := s.m, r.GetId()
	if _, err := m.begin(ctx, 0); err != nil {
		return nil, err
	}
	v, member, err := m.raft.member(id)
	if err != nil {
		return nil, err
	}
	if member && v.Suffrage == raft.Voter {
		return &api.AddMasterReply{}, nil
	}
	a, heard := m.announced.lately(id)
	if !heard {
		return nil, errs.E(errs.NotFound, "add master", id, errors.New("no master of this ID has announced itself to the leader")).
			WithHint("start it with its own id, the group's voters, and the addresses of the masters (cluster.masters)")
	}
	if a.GetEmpty() {
		return nil, errs.E(errs.Unavailable, "add master", id, errors.New("it is about to begin"))
	}
	if !member {
		if err := m.raft.admit(id, a.GetRaft()); err != nil {
			return nil, err
		}
	}
	if err := m.awaitCaughtUp(ctx, id); err != nil {
		return nil, err // it stays without a vote; the next attempt goes on
	}
	if err := m.raft.promote(id, a.GetRaft()); err != nil {
		return nil, err
	}
	_, err = m.raft.apply(ctx, fsm.Command{RegisterMaster: &fsm.Master{ID: id, GRPC: a.GetGrpc(), HTTP: a.GetHttp()}})
	return &api.AddMasterReply{}, err
}

// awaitCaughtUp waits until a master has applied what this one has now.
func (m *Master) awaitCaughtUp(ctx context.Context, id string) error {
	want := m.store.State().Index
	for {
		news := m.announced.news.next()
		if a, ok := m.announced.lately(id); ok && a.GetAppliedIndex() >= want {
			return nil
		}
		if !m.leading.Load() {
			return m.raft.notLeader()
		}
		if err := wait(ctx, m.stopping, news); err != nil {
			return errs.Wrap(err, "wait until it has caught up: master", id)
		}
	}
}

// RemoveMaster implements api.GroupServiceServer. A leader that is to be
// removed hands over, so that the next one removes it.
func (s *groupService) RemoveMaster(ctx context.Context, r *api.RemoveMasterRequest) (*api.RemoveMasterReply, error) {
	m, id := s.m, r.GetId()
	if _, err := m.begin(ctx, 0); err != nil {
		return nil, err
	}
	servers, _, err := m.raft.servers()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(servers, func(v raft.Server) bool { return string(v.ID) == id }) {
		if err := m.mayRemove(servers, id); err != nil {
			return nil, err
		}
		if id == m.raft.id {
			m.raft.handOver()
			return nil, m.raft.notLeader()
		}
		if err := m.raft.remove(id); err != nil {
			return nil, err
		}
		// It may be added only after it has noticed, if its disk is empty.
		m.announced.forget(id)
	} else if _, known := m.store.State().Masters[id]; !known {
		return nil, errs.E(errs.NotFound, "remove master", id, errors.New("no master of the group has this ID"))
	}
	_, err = m.raft.apply(ctx, fsm.Command{RemoveMaster: &fsm.RemoveMaster{ID: id}})
	return &api.RemoveMasterReply{}, err
}

// mayRemove refuses to remove a master when what is left could not go on.
func (m *Master) mayRemove(servers []raft.Server, id string) error {
	var left, able int
	var silent []string
	for _, v := range servers {
		if v.Suffrage != raft.Voter || string(v.ID) == id {
			continue
		}
		left++
		switch m.stateOf(v) {
		case masterLeader, masterFollower:
			able++
		default:
			silent = append(silent, string(v.ID))
		}
	}
	switch {
	case left == 0:
		return errs.E(errs.Invalid, "remove master", id, errors.New("it is the only one of the group"))
	case able <= left/2:
		return errs.E(errs.Unavailable, "remove master", id, fmt.Errorf(
			"the group could not go on without it: of the %d others %s cannot take part", left, strings.Join(silent, ", "))).
			WithHint("bring those back first, or remove them first")
	}
	return nil
}

// TransferLeadership implements api.GroupServiceServer.
func (s *groupService) TransferLeadership(ctx context.Context, r *api.TransferLeadershipRequest) (*api.TransferLeadershipReply, error) {
	m, id := s.m, r.GetId()
	if _, err := m.begin(ctx, 0); err != nil {
		return nil, err
	}
	if id == m.raft.id {
		return &api.TransferLeadershipReply{}, nil
	}
	v, err := m.awaitFollower(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := m.raft.transfer(v); err != nil && !errors.As(err, new(*rpcerr.NotLeader)) {
		return nil, err
	}
	return &api.TransferLeadershipReply{}, nil
}

// awaitFollower returns the follower of an ID; without one, that which has
// applied most. A leader that was just elected has to hear of them first.
func (m *Master) awaitFollower(ctx context.Context, id string) (raft.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, silentAfter)
	defer cancel()
	for {
		news := m.announced.news.next()
		v, err := m.follower(id)
		if errs.KindOf(err) != errs.Unavailable {
			return v, err
		}
		if wait(ctx, m.stopping, news) != nil {
			return v, err
		}
	}
}

// follower returns the follower of an ID, or that which has applied most. It is
// errs.Unavailable if it could not lead now.
func (m *Master) follower(id string) (raft.Server, error) {
	const op = "transfer leadership to"
	servers, _, err := m.raft.servers()
	if err != nil {
		return raft.Server{}, err
	}
	servers = slices.DeleteFunc(slices.Clone(servers), func(v raft.Server) bool {
		return v.Suffrage != raft.Voter || string(v.ID) == m.raft.id || id != "" && string(v.ID) != id
	})
	if len(servers) == 0 {
		return raft.Server{}, errs.E(errs.NotFound, op, id, errors.New("the group has no such voter"))
	}
	best := slices.MaxFunc(servers, func(x, y raft.Server) int { return cmp.Compare(m.appliedBy(x), m.appliedBy(y)) })
	if state := m.stateOf(best); state != masterFollower {
		return raft.Server{}, errs.E(errs.Unavailable, op, string(best.ID), fmt.Errorf("it is %s", state))
	}
	return best, nil
}

// appliedBy returns how far a follower has applied the log, as far as it was
// heard of lately: -1 if it was not.
func (m *Master) appliedBy(v raft.Server) int64 {
	if m.stateOf(v) != masterFollower {
		return -1
	}
	a, _ := m.announced.lately(string(v.ID))
	return int64(a.GetAppliedIndex())
}
