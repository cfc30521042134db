package cachemaster

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// noticeSteps is by which part of the heartbeat timeout each master notices
	// the leader's silence later than the one before it: long enough for that one
	// to have been refused.
	noticeSteps = 10
	// noticeAgain bounds how often the library is made to look.
	noticeAgain = 20 * time.Millisecond
)

// noticeSilence sees to it, until ctx ends, that a leader's silence is noticed
// once it has lasted for the heartbeat timeout.
//
// The library looks by itself at random moments, one to two timeouts apart, and
// a master that noticed gets no vote from one that did not: three masters needed
// 1 to 3 s to notice, two on average. Here all notice one after the other, in
// the order of their IDs, so that the votes are not split, and the one who makes
// the majority complete is elected. What may be, the library alone decides: this
// says only when it looks.
func (n *raftNode) noticeSilence(ctx context.Context, c clock) {
	timeout := n.cfg.RaftHeartbeatTimeout.Std()
	for pause := timeout; sleep(ctx, c, pause) == nil; {
		leader := n.leaderID()
		if leader == "" || leader == n.id {
			pause = timeout / 2
			continue
		}
		after := timeout + time.Duration(n.turn(leader))*(timeout/noticeSteps)
		if pause = after - time.Since(n.raft.LastContact()); pause <= 0 {
			n.look()
			pause = noticeAgain
		}
	}
}

// turn returns how many others notice the leader's silence before this master.
func (n *raftNode) turn(leader string) int {
	servers, _, err := n.servers()
	if err != nil {
		return 0
	}
	var ids []string
	for _, s := range servers {
		if s.Suffrage == raft.Voter && string(s.ID) != leader {
			ids = append(ids, string(s.ID))
		}
	}
	slices.Sort(ids)
	return max(slices.Index(ids, n.id), 0)
}

// look makes the library look whether the leader is silent, which it does when
// the timeout is lowered.
func (n *raftNode) look() {
	conf := n.raft.ReloadableConfig()
	higher := conf
	higher.HeartbeatTimeout++
	higher.ElectionTimeout++ // it must not be below
	for _, c := range []raft.ReloadableConfig{higher, conf} {
		if err := n.raft.ReloadConfig(c); err != nil {
			n.log.Debug("looking whether the leader is silent", "error", err)
		}
	}
}
