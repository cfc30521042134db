package cachemaster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"millrace/cachemaster/blockmap"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

// Deps is what a master is given.
type Deps struct {
	UFS ufs.Registry
	// GRPC and Raft are the listeners; the master closes them.
	GRPC, Raft net.Listener
	// HTTPAddr is where the process's HTTP server is reached; it is passed on.
	HTTPAddr string
	// DataDir holds the master's state. It exists and is nobody else's.
	DataDir string
	// Masters are the gRPC addresses of the group's masters, as workers and
	// clients know them; this one's may be among them.
	Masters []string
}

// maxIDLength bounds the IDs of workers and clients, in bytes.
const maxIDLength = 128

// Master is one process of the masters' group.
type Master struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	clock clock
	now   func() time.Time // of clock
	grpc  string           // the address that others are told
	store *fsm.Store

	raft      *raftNode // set by Run before anything serves; takes part once running
	group     *groupConns
	announced *announced // of leaders
	ufs       *ufsCounters
	ns        *namespace
	members   *membership
	blocks    *blockmap.Map
	peers     *peers
	jobs      *scheduler
	metrics   *metrics

	// leading is true from when this master, as the leader, has applied all
	// that was committed before, until it learns that it leads no more.
	leading  atomic.Bool
	running  atomic.Bool   // Raft is up
	apart    atomic.Bool   // a leader said that this master does not belong to its group
	fresh    atomic.Bool   // the disk is empty: this master takes no part yet
	stopping chan struct{} // closed when streams should end

	idMu    sync.Mutex
	entropy io.Reader
}

// New makes a master: it opens the state machine's file, and starts nothing.
// Run must be called; it closes what New opened, and the listeners.
func New(cfg Config, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Master, error) {
	return newMaster(cfg, deps, log, reg, systemClock{})
}

func newMaster(cfg Config, deps Deps, log *slog.Logger, reg prometheus.Registerer, c clock) (*Master, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration of the master: %w", err)
	}
	m := &Master{
		cfg: cfg, deps: deps, log: log, clock: c, now: c.Now, grpc: cfg.AdvertiseGRPC,
		stopping: make(chan struct{}),
		entropy:  ulid.Monotonic(rand.Reader, 0),
	}
	if m.grpc == "" {
		m.grpc = deps.GRPC.Addr().String()
	}
	m.ufs = newUFSCounters()
	m.blocks = blockmap.New(m.now)
	m.peers = newPeers()
	m.group = newGroupConns()
	m.announced = newAnnounced(m.now)
	state := func() *fsm.State { return m.store.State() }
	m.ns = newNamespace(cfg, m.now, state, newStores(deps.UFS, m.ufs, log))
	m.members = newMembership(cfg, m.now, state, m.blocks)
	m.jobs = newScheduler(cfg, m)
	var err error
	if m.store, err = fsm.Open(filepath.Join(deps.DataDir, stateFile), m.changed); err != nil {
		return nil, err
	}
	if m.metrics, err = newMetrics(m, reg); err != nil {
		return nil, errors.Join(err, m.store.Close())
	}
	return m, nil
}

// changed is told of each new state, on Raft's goroutine.
func (m *Master) changed(old, next *fsm.State) {
	if old.MountsVersion != next.MountsVersion {
		m.ns.mountsChanged(next)
	}
	if old.MountsVersion != next.MountsVersion || old.PlacementEpoch != next.PlacementEpoch || old.ClusterID != next.ClusterID {
		m.members.change.notify()
	}
	m.jobs.changed(old, next)
}

// Run serves until ctx ends or the master cannot go on, and returns when all
// that it started has ended. It may be called once.
func (m *Master) Run(ctx context.Context) (err error) {
	node, err := openRaft(m.cfg, m.deps, m.grpc, m.store, m.log)
	if err != nil {
		return errors.Join(err, closeListener(m.deps.GRPC), closeListener(m.deps.Raft))
	}
	m.raft = node
	fresh, err := node.fresh()
	if err = errors.Join(err, markDisk(m.deps.DataDir)); err != nil {
		return errors.Join(err, closeListener(m.deps.GRPC), node.close())
	}
	m.fresh.Store(fresh)

	server := m.newServer()
	ended := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(m.deps.GRPC); err != nil {
			ended <- fmt.Errorf("serve gRPC: %w", err)
		}
	})
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() {
		if err := m.takePart(background); err != nil {
			ended <- err
		}
	})

	select {
	case <-ctx.Done():
	case <-m.store.Failed():
		err = errs.E(errs.Internal, "run state machine", "", m.store.Err())
	case err = <-ended:
	}

	// The stop order: hand over leadership, stop RPC, scheduler, Raft, bbolt.
	if m.running.Load() {
		m.raft.handOver()
	}
	close(m.stopping)
	stopServer(server, m.cfg.StopTimeout.Std())
	cancel()
	wg.Wait()
	m.ns.close()
	m.ns.stores.close()
	err = errors.Join(err, m.peers.close(), m.group.close())
	m.running.Store(false)
	return errors.Join(err, m.raft.close())
}

// takePart enters the group and does what its masters do, until ctx ends.
func (m *Master) takePart(ctx context.Context) error {
	if err := m.enter(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was stopped while it waited
		}
		return err
	}
	m.running.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() { m.members.run(ctx) })
	wg.Go(func() { m.announce(ctx) })
	wg.Go(func() { m.raft.noticeSilence(ctx, m.clock) })
	m.follow(ctx)
	wg.Wait()
	return nil
}

// closeListener closes a listener that may be closed already.
func closeListener(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// stopServer lets calls end by themselves for a while.
func stopServer(s *grpc.Server, wait time.Duration) {
	t := time.AfterFunc(wait, s.Stop)
	defer t.Stop()
	s.GracefulStop()
}

// follow does what a leader does, while this master leads.
func (m *Master) follow(ctx context.Context) {
	var stop func()
	end := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	defer end()
	for {
		select {
		case leads := <-m.raft.raft.LeaderCh():
			end()
			if leads {
				stop = m.startLeading(ctx)
			}
		case <-ctx.Done():
			return
		}
	}
}

// startLeading begins the leader's work and returns what ends it.
func (m *Master) startLeading(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.establish(ctx); err != nil {
			if ctx.Err() == nil {
				m.log.Warn("leadership was not established", "error", err)
			}
			return
		}
		m.log.Info("leading", "master", m.raft.id, "cluster", m.store.State().ClusterID)
		m.leading.Store(true)
		m.members.change.notify()
		m.jobs.run(ctx)
	})
	return func() {
		m.leading.Store(false)
		cancel()
		wg.Wait()
		m.members.change.notify()
		m.jobs.change.notify()
	}
}

// establish brings this master, which was elected, to where it may serve: all
// that was committed before is applied, and the group knows its address.
func (m *Master) establish(ctx context.Context) error {
	// Repeat what fails: a leader that cannot serve would block the others.
	for {
		err := m.tryEstablish(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, errs.NotLeader) {
			return err
		}
		m.log.Warn("leadership is not established yet", "error", err)
		if err := sleep(ctx, m.clock, time.Second); err != nil {
			return err
		}
	}
}

func (m *Master) tryEstablish(ctx context.Context) error {
	if err := m.raft.raft.Barrier(m.cfg.ApplyTimeout.Std()).Error(); err != nil {
		return m.raft.translate(err, "wait for the log")
	}
	// A new leader knows nothing of under-stores: what it learned when it led
	// before may be old.
	m.ns.cache.purge()
	if m.store.State().ClusterID == "" {
		id, err := m.newID()
		if err != nil {
			return err
		}
		if _, err := m.raft.apply(ctx, fsm.Command{Bootstrap: &fsm.Bootstrap{ClusterID: id}}); err != nil {
			return err
		}
	}
	self := fsm.Master{ID: m.raft.id, GRPC: m.grpc, HTTP: m.deps.HTTPAddr}
	if m.store.State().Masters[self.ID] != self {
		if _, err := m.raft.apply(ctx, fsm.Command{RegisterMaster: &self}); err != nil {
			return err
		}
	}
	return m.raft.readdress(m.raft.id, m.raft.address())
}

// lead returns nil if this master leads, and did after the call began.
func (m *Master) lead(ctx context.Context) error {
	if !m.leading.Load() {
		return m.raft.notLeader()
	}
	return m.raft.verify(ctx)
}

// Ready returns nil when a leader is known and the state machine has caught
// up with what is known to be committed.
func (m *Master) Ready() error {
	if !m.running.Load() {
		return errs.E(errs.Unavailable, "", "", errors.New("the master is not running"))
	}
	leader := m.raft.leaderID()
	switch {
	case leader == "":
		return errs.E(errs.Unavailable, "", "", errors.New("no leader is known"))
	case leader == m.raft.id && !m.leading.Load():
		return errs.E(errs.Unavailable, "", "", errors.New("this master was elected and catches up"))
	case m.raft.raft.AppliedIndex() < m.raft.raft.CommitIndex():
		return errs.E(errs.Unavailable, "", "", errors.New("the state machine catches up"))
	}
	return nil
}

// newID draws an ID that sorts by time.
func (m *Master) newID() (string, error) {
	m.idMu.Lock()
	defer m.idMu.Unlock()
	id, err := ulid.New(ulid.Timestamp(m.now()), m.entropy)
	if err != nil {
		return "", errs.E(errs.Internal, "draw ID", "", err)
	}
	return id.String(), nil
}
