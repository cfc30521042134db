package cachemaster

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"millrace/internal/errs"
)

// servers returns the group's newest configuration, which may not be committed
// yet, and the log index that it is from.
func (n *raftNode) servers() ([]raft.Server, uint64, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, n.translate(err, "read Raft configuration")
	}
	return f.Configuration().Servers, f.Index(), nil
}

// member returns a master of the group.
func (n *raftNode) member(id string) (s raft.Server, ok bool, err error) {
	servers, _, err := n.servers()
	for _, s := range servers {
		if string(s.ID) == id {
			return s, true, err
		}
	}
	return raft.Server{}, false, err
}

// alone reports whether this master is the only voter. Nobody else can lead
// then, not even where the change that made it so is not committed: a group
// changes by one voter at a time, and one of two needs the vote of this one.
func (n *raftNode) alone() bool {
	servers, _, err := n.servers()
	if err != nil {
		return false
	}
	voters, own := 0, false
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
			own = own || string(s.ID) == n.id
		}
	}
	return voters == 1 && own
}

// readdress corrects the Raft address of a member, which differs after a start
// on another port. Only the leader can.
func (n *raftNode) readdress(id, address string) error {
	servers, index, err := n.servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if string(s.ID) != id || string(s.Address) == address {
			continue
		}
		var f raft.IndexFuture
		if s.Suffrage == raft.Voter {
			f = n.raft.AddVoter(s.ID, raft.ServerAddress(address), index, n.cfg.ApplyTimeout.Std())
		} else {
			f = n.raft.AddNonvoter(s.ID, raft.ServerAddress(address), index, n.cfg.ApplyTimeout.Std())
		}
		return n.changed(f.Error(), "correct the address of master", id)
	}
	return nil
}

// barrier returns when all that was in the log before is committed and applied.
func (n *raftNode) barrier() error {
	return n.changed(n.raft.Barrier(n.cfg.ApplyTimeout.Std()).Error(), "wait for the log of master", n.id)
}

// admit lets a master have the log, without a vote.
func (n *raftNode) admit(id, address string) error {
	err := n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, n.cfg.ApplyTimeout.Std()).Error()
	return n.changed(err, "add master", id)
}

// promote gives an admitted master its vote.
func (n *raftNode) promote(id, address string) error {
	err := n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, n.cfg.ApplyTimeout.Std()).Error()
	return n.changed(err, "add master", id)
}

// remove takes a master out of the group.
func (n *raftNode) remove(id string) error {
	return n.changed(n.raft.RemoveServer(raft.ServerID(id), 0, n.cfg.ApplyTimeout.Std()).Error(), "remove master", id)
}

// transfer makes another voter lead. It is errs.Unavailable if that one did not
// take over in time.
func (n *raftNode) transfer(s raft.Server) error {
	const op = "transfer leadership to"
	err := n.changed(n.raft.LeadershipTransferToServer(s.ID, s.Address).Error(), op, string(s.ID))
	if err != nil && errs.KindOf(err) == errs.Unknown {
		return errs.E(errs.Unavailable, op, string(s.ID), err)
	}
	return err
}

// changed says what became of a change of the group.
func (n *raftNode) changed(err error, op, id string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errs.E(errs.Unavailable, op, id, fmt.Errorf("the group is changing already: %w", err))
	}
	return errs.Wrap(n.translate(err, op), op, id)
}
