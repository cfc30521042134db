package cachemaster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/oklog/ulid/v2"
	"go.etcd.io/bbolt"

	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// The names of what a master keeps in its data directory.
const (
	idFile        = "id"
	logFile       = "raft.db"
	stateFile     = "state.db"
	keptSnapshots = 2
)

const (
	raftPool    = 3               // idle connections to each other master
	raftTimeout = 5 * time.Second // of one Raft message
	boltTimeout = 2 * time.Second // to wait for another process's lock
)

// raftNode is this master's part in the Raft group: log, snapshots, transport
// and state machine.
type raftNode struct {
	cfg   Config
	id    string
	log   *slog.Logger
	grpc  string // this master's own gRPC address
	store *fsm.Store
	logDB *raftboltdb.BoltStore
	trans *raft.NetworkTransport
	conns *streamLayer
	snaps raft.SnapshotStore
	conf  *raft.Config
	raft  *raft.Raft // nil before start

	verifyMu sync.Mutex
	next     *verification // not begun yet
	verifier bool          // a goroutine runs
	wg       sync.WaitGroup
}

// openRaft opens what is on disk; start begins to take part.
func openRaft(cfg Config, deps Deps, grpcAddr string, store *fsm.Store, log *slog.Logger) (_ *raftNode, err error) {
	n := &raftNode{cfg: cfg, log: log, grpc: grpcAddr, store: store}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeFiles())
		}
	}()
	if n.id, err = masterID(cfg.ID, deps.DataDir); err != nil {
		return nil, err
	}
	logger := newRaftLogger(log)
	n.logDB, err = raftboltdb.New(raftboltdb.Options{
		Path:        filepath.Join(deps.DataDir, logFile),
		BoltOptions: &bbolt.Options{Timeout: boltTimeout},
	})
	if err != nil {
		return nil, fmt.Errorf("open Raft log: %w", err)
	}
	if n.snaps, err = raft.NewFileSnapshotStoreWithLogger(deps.DataDir, keptSnapshots, logger); err != nil {
		return nil, fmt.Errorf("open Raft snapshots: %w", err)
	}
	n.conf = raftConfig(cfg, n.id)
	n.conf.Logger = logger
	if n.conf.NoSnapshotRestoreOnStart, err = stateIsNewer(store, n.snaps); err != nil {
		return nil, err
	}
	advertise := deps.Raft.Addr()
	if cfg.AdvertiseRaft != "" {
		advertise = namedAddr(cfg.AdvertiseRaft)
	}
	n.conns = newStreamLayer(deps.Raft, advertise)
	return n, nil
}

func raftConfig(cfg Config, id string) *raft.Config {
	conf := raft.DefaultConfig() // with pre-vote
	conf.LocalID = raft.ServerID(id)
	conf.HeartbeatTimeout = cfg.RaftHeartbeatTimeout.Std()
	conf.ElectionTimeout = cfg.RaftElectionTimeout.Std()
	conf.LeaderLeaseTimeout = cfg.RaftLeaderLeaseTimeout.Std()
	conf.CommitTimeout = cfg.RaftCommitTimeout.Std()
	conf.SnapshotThreshold = cfg.RaftSnapshotEntries
	conf.SnapshotInterval = cfg.RaftSnapshotInterval.Std()
	conf.TrailingLogs = cfg.RaftTrailingEntries
	conf.NoLegacyTelemetry = true
	// A batch of log entries is one write to the disk.
	conf.BatchApplyCh = true
	// A leader that is removed hands over first; the process goes on, to say so.
	conf.ShutdownOnRemove = false
	return conf
}

// fresh reports whether nothing was ever written here: this master has never
// voted, nor been told anything.
func (n *raftNode) fresh() (bool, error) {
	exists, err := raft.HasExistingState(n.logDB, n.logDB, n.snaps)
	if err != nil {
		return false, fmt.Errorf("look for Raft state: %w", err)
	}
	return !exists, nil
}

// start begins to take part in the group. founders are the voters of a group
// that is founded now; without any, a fresh master waits to be added.
func (n *raftNode) start(founders []raft.Server) (err error) {
	n.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: n.conns, MaxPool: raftPool, Timeout: raftTimeout, Logger: n.conf.Logger,
		// No pipelines: in one whose follower turned away, the library's sender
		// may wait for ever, and the end of Raft for the sender. A message
		// carries many entries anyway.
		MaxRPCsInFlight: 1,
	})
	if len(founders) > 0 {
		group := raft.Configuration{Servers: founders}
		if err := raft.BootstrapCluster(n.conf, n.logDB, n.logDB, n.snaps, n.trans, group); err != nil {
			return fmt.Errorf("found Raft group: %w", err)
		}
	}
	if n.raft, err = raft.NewRaft(n.conf, n.store, n.logDB, n.logDB, n.snaps, n.trans); err != nil {
		return fmt.Errorf("start Raft: %w", err)
	}
	n.log.Debug("raft started", "id", n.id, "address", n.address())
	n.standAtOnce(n.conns.Listener.Addr().String())
	return nil
}

// address is where the other masters reach this one's Raft listener.
func (n *raftNode) address() string { return n.conns.Addr().String() }

// founders returns the voters of the configuration, or this master alone.
func (n *raftNode) founders() []raft.Server {
	if len(n.cfg.Voters) == 0 {
		return []raft.Server{{Suffrage: raft.Voter, ID: n.conf.LocalID, Address: raft.ServerAddress(n.address())}}
	}
	var servers []raft.Server
	for _, v := range n.cfg.Voters {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Raft)})
	}
	return servers
}

// stateIsNewer reports whether the state machine's file holds at least what
// the newest snapshot does, so that the snapshot need not be read.
func stateIsNewer(store *fsm.Store, snapshots raft.SnapshotStore) (bool, error) {
	list, err := snapshots.List()
	if err != nil {
		return false, fmt.Errorf("list Raft snapshots: %w", err)
	}
	return len(list) == 0 || store.State().Index >= list[0].Index, nil
}

// standAtOnce makes a master that is the only voter stand for election without
// the usual wait for a leader, since nobody else could be one. If that fails,
// the wait is all that it costs.
func (n *raftNode) standAtOnce(address string) {
	if !n.alone() {
		return
	}
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id), Addr: []byte(address),
	}}
	err := n.trans.TimeoutNow(raft.ServerID(n.id), raft.ServerAddress(address), request, &raft.TimeoutNowResponse{})
	if err != nil {
		n.log.Debug("the only master waits before it stands for election", "error", err)
	}
	// Its connection to itself is not needed any more.
	n.trans.CloseStreams()
}

// masterID returns the configured ID, or the one that the data directory
// keeps; it never changes.
func masterID(configured, dir string) (string, error) {
	path := filepath.Join(dir, idFile)
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read master's ID: %w", err)
	}
	id := strings.TrimSpace(string(kept))
	switch {
	case id != "" && configured != "" && id != configured:
		return "", errs.E(errs.Invalid, "read master's ID", path, fmt.Errorf("this is the data of master %q, not of %q", id, configured))
	case id != "":
		return id, nil
	case configured != "":
		id = configured
	default:
		u, err := ulid.New(ulid.Now(), rand.Reader)
		if err != nil {
			return "", fmt.Errorf("draw master's ID: %w", err)
		}
		id = u.String()
	}
	if err := renameio.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep master's ID: %w", err)
	}
	return id, nil
}

// apply commits a command and returns the state machine's answer.
func (n *raftNode) apply(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	b, err := c.Encode()
	if err != nil {
		return fsm.Result{}, err
	}
	f := n.raft.Apply(b, n.cfg.ApplyTimeout.Std())
	done := make(chan error, 1)
	n.wg.Go(func() { done <- f.Error() })
	select {
	case err = <-done:
	case <-ctx.Done():
		return fsm.Result{}, errs.Wrap(ctx.Err(), "commit", "")
	}
	if err != nil {
		return fsm.Result{}, n.translate(err, "commit")
	}
	r, ok := f.Response().(fsm.Result)
	if !ok {
		return fsm.Result{}, errs.E(errs.Internal, "commit", "", fmt.Errorf("answer of type %T", f.Response()))
	}
	return r, r.Err
}

// translate gives Raft's errors their kinds.
func (n *raftNode) translate(err error, op string) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return n.notLeader()
	case errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return errs.E(errs.Unavailable, op, "", err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return errs.E(errs.Timeout, op, "", err)
	case errors.As(err, new(syscall.Errno)):
		// Its disk failed, on which a leader steps down. What it was about to keep
		// may come back with its log: the next leader knows.
		return errs.E(errs.Unavailable, op, "", err)
	default:
		return errs.Wrap(err, op, "")
	}
}

// notLeader returns the error that names the leader, if another is known.
func (n *raftNode) notLeader() error {
	_, id := n.raft.LeaderWithID()
	if id == "" || string(id) == n.id {
		return &rpcerr.NotLeader{}
	}
	return &rpcerr.NotLeader{Leader: n.store.State().Masters[string(id)].GRPC}
}

// verification is one round of asking a majority whether this master leads.
type verification struct {
	done chan struct{}
	err  error // set before done is closed
}

// verify returns nil if this master led at some moment after the call began.
// Calls that come while a round is under way share the next one.
func (n *raftNode) verify(ctx context.Context) error {
	if n.alone() {
		if n.raft.State() != raft.Leader {
			return n.notLeader()
		}
		return nil
	}
	n.verifyMu.Lock()
	if n.next == nil {
		n.next = &verification{done: make(chan struct{})}
	}
	v := n.next
	if !n.verifier {
		n.verifier = true
		n.wg.Go(n.runVerifications)
	}
	n.verifyMu.Unlock()
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return errs.Wrap(ctx.Err(), "verify leadership", "")
	}
}

func (n *raftNode) runVerifications() {
	for {
		n.verifyMu.Lock()
		v := n.next
		n.next = nil
		if v == nil {
			n.verifier = false
			n.verifyMu.Unlock()
			return
		}
		n.verifyMu.Unlock()
		if err := n.raft.VerifyLeader().Error(); err != nil {
			v.err = n.translate(err, "verify leadership")
		}
		close(v.done)
	}
}

// leaderID returns the ID of the leader, or "".
func (n *raftNode) leaderID() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}

// handOver gives the leadership to another voter, if there is one.
func (n *raftNode) handOver() {
	if n.raft == nil || n.raft.State() != raft.Leader {
		return
	}
	if servers, _, err := n.servers(); err != nil || len(servers) < 2 {
		return
	}
	if err := n.raft.LeadershipTransfer().Error(); err != nil {
		n.log.Warn("leadership was not handed over", "error", err)
	}
}

// close waits for what Raft was asked, then ends it and closes what is on disk.
// In this order: Raft answers everything while it runs, but what it was asked
// at its very end lies in a queue that nobody reads any more.
func (n *raftNode) close() error {
	n.wg.Wait()
	var err error
	if n.raft != nil {
		err = n.raft.Shutdown().Error()
	}
	return errors.Join(err, n.closeFiles())
}

func (n *raftNode) closeFiles() error {
	var found []error
	switch {
	case n.trans != nil:
		found = append(found, n.trans.Close())
		n.conns.closeConns()
	case n.conns != nil:
		found = append(found, closeListener(n.conns.Listener))
	}
	if n.logDB != nil {
		found = append(found, n.logDB.Close())
	}
	return errors.Join(append(found, n.store.Close())...)
}
