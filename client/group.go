package client

import (
	"context"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
)

// GroupMember is a master of the group, or one that waits to be added.
type GroupMember struct {
	ID string `json:"id"`
	// Address is that of its gRPC service, Raft where the other masters reach
	// it. Address is empty if the leader never heard of it.
	Address string `json:"address"`
	Raft    string `json:"raft"`
	// State is "leader", "follower", "silent" (not heard of for 3 s), "empty"
	// (its disk is, though the group counts on it), "joining" (it catches up,
	// and has no vote yet) or "waiting" (to be added).
	State        string `json:"state"`
	AppliedIndex uint64 `json:"applied_index"`
}

// Masters lists the group of the masters, in the order of their IDs.
func (c *Client) Masters(ctx context.Context) ([]GroupMember, error) {
	var out []GroupMember
	err := c.group(ctx, "list masters", "", func(ctx context.Context, g api.GroupServiceClient) error {
		reply, err := g.ListMasters(ctx, &api.ListMastersRequest{})
		out = make([]GroupMember, 0, len(reply.GetMasters()))
		for _, m := range reply.GetMasters() {
			out = append(out, GroupMember{
				ID: m.GetId(), Address: m.GetAddress(), Raft: m.GetRaft(), State: m.GetState(), AppliedIndex: m.GetAppliedIndex(),
			})
		}
		return err
	})
	return out, err
}

// AddMaster makes a master that waits a voter of the group, and returns when
// it has caught up.
func (c *Client) AddMaster(ctx context.Context, id string) error {
	return c.group(ctx, "add master", id, func(ctx context.Context, g api.GroupServiceClient) error {
		_, err := g.AddMaster(ctx, &api.AddMasterRequest{Id: id})
		return err
	})
}

// RemoveMaster takes a master out of the group.
func (c *Client) RemoveMaster(ctx context.Context, id string) error {
	again := false
	return c.group(ctx, "remove master", id, func(ctx context.Context, g api.GroupServiceClient) error {
		_, err := g.RemoveMaster(ctx, &api.RemoveMasterRequest{Id: id})
		if again && errs.KindOf(err) == errs.NotFound {
			return nil // the attempt before removed it
		}
		again = errs.KindOf(err) != errs.NotLeader
		return err
	})
}

// TransferLeadership makes another master lead: the one of that ID, or, if it is
// empty, the one that has applied most.
func (c *Client) TransferLeadership(ctx context.Context, id string) error {
	transfer := func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := api.NewGroupServiceClient(cc).TransferLeadership(ctx, &api.TransferLeadershipRequest{Id: id})
		return err
	}
	how := always
	if id == "" {
		how = ifRefused // the next leader would give it away once more
	}
	return errs.Wrap(c.masters.retry(ctx, how, transfer), "transfer leadership to", id)
}

// group asks the leader something about the masters. All of it may be asked
// again.
func (c *Client) group(ctx context.Context, op, id string, f func(context.Context, api.GroupServiceClient) error) error {
	return c.masters.call(ctx, op, id, func(ctx context.Context, cc *grpc.ClientConn) error {
		return f(ctx, api.NewGroupServiceClient(cc))
	})
}
