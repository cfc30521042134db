package cachemaster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"millrace/internal/size"
)

// noticing is a group of masters, reduced to Raft in memory and what notices a
// leader's silence.
type noticing struct {
	nodes      []*raftNode
	transports []*raft.InmemTransport
}

// noFSM applies nothing.
type noFSM struct{ raft.FSM }

func (noFSM) Apply(*raft.Log) any { return nil }

func newNoticing(t *testing.T, voters int) *noticing {
	t.Helper()
	g := &noticing{}
	var group raft.Configuration
	for i := range voters {
		addr, trans := raft.NewInmemTransport("")
		g.transports = append(g.transports, trans)
		group.Servers = append(group.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint("m", i)), Address: addr})
	}
	for i, trans := range g.transports {
		for _, other := range g.transports {
			trans.Connect(other.LocalAddr(), other)
		}
		cfg := DefaultConfig()
		n := &raftNode{cfg: cfg, id: fmt.Sprint("m", i), log: slog.New(slog.DiscardHandler)}
		n.conf = raftConfig(cfg, n.id)
		n.conf.LogOutput = io.Discard
		store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(n.conf, store, store, snaps, trans, group); err != nil {
			t.Fatal(err)
		}
		var err error
		if n.raft, err = raft.NewRaft(n.conf, noFSM{}, store, store, snaps, trans); err != nil {
			t.Fatal(err)
		}
		g.nodes = append(g.nodes, n)
	}
	return g
}

// leader waits until one of the group leads, other than the masters that are
// named, and returns it.
func (g *noticing) leader(not ...int) int {
	for {
		for i, n := range g.nodes {
			if n.raft.State() == raft.Leader && (len(not) == 0 || not[0] != i) {
				return i
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSilenceIsNoticedSoon: the group does without a leader for as long as it
// must, and no longer.
func TestSilenceIsNoticedSoon(t *testing.T) {
	for _, voters := range []int{3, 5} {
		t.Run(fmt.Sprint(voters), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newNoticing(t, voters)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for _, n := range g.nodes {
					wg.Go(func() { n.noticeSilence(ctx, systemClock{}) })
				}
				timeout := DefaultConfig().RaftHeartbeatTimeout.Std()
				for range 10 {
					old := g.leader()
					time.Sleep(5 * timeout) // all of them have heard of it
					for i := range g.transports {
						g.transports[i].Disconnect(g.transports[old].LocalAddr())
						g.transports[old].Disconnect(g.transports[i].LocalAddr())
					}
					began := time.Now()
					next := g.leader(old)
					// Not more than a majority must notice, and the first one does so
					// when the last beat was a timeout ago.
					if took := time.Since(began); took > timeout+timeout*time.Duration(voters)/noticeSteps {
						t.Errorf("%d leads in the place of %d after %v", next, old, took)
					}
					for i := range g.transports {
						g.transports[i].Connect(g.transports[old].LocalAddr(), g.transports[old])
						g.transports[old].Connect(g.transports[i].LocalAddr(), g.transports[i])
					}
				}
				cancel()
				wg.Wait()
				for _, n := range g.nodes {
					if err := n.raft.Shutdown().Error(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// TestLiveLeaderStays: nobody stands for election beside one that is heard of.
func TestLiveLeaderStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newNoticing(t, 3)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		leader := g.leader()
		for _, n := range g.nodes {
			n.cfg.RaftHeartbeatTimeout = size.Duration(10 * time.Millisecond) // it looks much too early
			wg.Go(func() { n.noticeSilence(ctx, systemClock{}) })
		}
		term := g.nodes[leader].raft.CurrentTerm()
		time.Sleep(time.Minute)
		if g.leader() != leader || g.nodes[leader].raft.CurrentTerm() != term {
			t.Error("another one leads")
		}
		cancel()
		wg.Wait()
		for _, n := range g.nodes {
			if err := n.raft.Shutdown().Error(); err != nil {
				t.Error(err)
			}
		}
	})
}
