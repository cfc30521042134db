package cachemaster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
	"millrace/internal/size"
)

// TestSnapshot takes the state machine's file away behind a snapshot: the
// next start restores it.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stores := map[string]*memStore{"a": newMemStore(map[string]string{"f": "1"})}
	c := start(t, dir, stores, testConfig())
	first := c.mount(t, "/m", "mem://a", nil)
	if err := c.m.raft.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.mount(t, "/m/n", "mem://a", nil) // stands in the log alone
	want := c.m.store.State()
	c.stop()

	c = start(t, dir, stores, testConfig())
	if again := c.mount(t, "/m", "mem://a", nil); again.GetId() != first.GetId() {
		t.Errorf("mount ID %d, was %d", again.GetId(), first.GetId())
	}
	c.stop()
	if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
		t.Fatal(err)
	}
	c = start(t, dir, stores, testConfig())
	got := c.m.store.State()
	if got.ClusterID != want.ClusterID || len(got.Mounts) != 2 || got.MountsVersion != want.MountsVersion {
		t.Errorf("restored state = %+v", got)
	}
}

// TestThreeMasters starts a group of three through the same code, takes the
// leader away, and finds what it committed on the next one.
func TestThreeMasters(t *testing.T) {
	t.Parallel()
	stores := map[string]*memStore{"a": newMemStore(map[string]string{"f": "1"})}
	cfg := testConfig()
	// A machine that is busy must not cost the leader its place.
	cfg.RaftHeartbeatTimeout = size.Duration(500 * time.Millisecond)
	cfg.RaftElectionTimeout = cfg.RaftHeartbeatTimeout
	cfg.RaftLeaderLeaseTimeout = cfg.RaftHeartbeatTimeout
	var deps []Deps
	for i := range 3 {
		d := Deps{UFS: registry(stores), GRPC: listen(t), Raft: listen(t), DataDir: t.TempDir()}
		deps = append(deps, d)
		cfg.Voters = append(cfg.Voters, Voter{ID: fmt.Sprint("m", i), Raft: d.Raft.Addr().String()})
	}
	var masters []string
	for _, d := range deps {
		masters = append(masters, d.GRPC.Addr().String())
	}
	var group []*cluster
	for i, d := range deps {
		d.Masters = masters
		cfg.ID = fmt.Sprint("m", i)
		group = append(group, startWith(t, d, cfg))
	}
	// leads returns the leader among those of the group that run.
	leads := func() (l *cluster, rest []*cluster) {
		t.Helper()
		eventually(t, "one leads and all are ready", func() bool {
			l, rest = nil, nil
			ready := true
			for _, c := range group {
				ready = ready && c.m.Ready() == nil
				if c.m.leading.Load() {
					l = c
				} else {
					rest = append(rest, c)
				}
			}
			return ready && l != nil && len(rest) == len(group)-1
		})
		return l, rest
	}
	l, rest := leads()
	l.mount(t, "/m", "mem://a", nil)
	for _, c := range rest {
		eventually(t, "a follower names the leader", func() bool {
			_, err := c.stat(t, "/m/f")
			var nl *rpcerr.NotLeader
			return errors.As(err, &nl) && nl.Leader == l.m.grpc
		})
		s, err := c.status.Status(t.Context(), &api.StatusRequest{})
		if err != nil || s.GetLeader() != l.m.raft.id || len(s.GetMasters()) != 3 {
			t.Errorf("status of a follower = %v, %v", s, err)
		}
	}
	group = rest
	l.stop()
	next, _ := leads()
	if _, err := next.stat(t, "/m/f"); err != nil {
		t.Errorf("stat at the next leader: %v", err)
	}
}

// TestOnlyMasterLeadsAtOnce gives elections times that nobody would wait for.
func TestOnlyMasterLeadsAtOnce(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.RaftHeartbeatTimeout = size.Duration(time.Hour)
	cfg.RaftElectionTimeout = cfg.RaftHeartbeatTimeout
	dir := t.TempDir()
	for range 3 {
		start(t, dir, nil, cfg).stop()
	}
}

// TestVerify has many callers share few rounds.
func TestVerify(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), nil, testConfig())
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if err := c.m.lead(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestStopAnswersWhatWasAsked: Raft ends when it has answered what it was
// asked; what it is asked later it may never answer.
func TestStopAnswersWhatWasAsked(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), nil, testConfig())
	n, goOn, answer := c.m.raft, make(chan struct{}), make(chan error, 1)
	n.wg.Go(func() {
		<-goOn
		answer <- n.raft.VerifyLeader().Error()
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.stop()
	}()
	eventually(t, "nothing but Raft runs", func() bool { return !c.m.running.Load() })
	close(goOn)
	select {
	case err := <-answer:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Raft ended without an answer")
	}
	<-stopped
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.LostAfter = cfg.SuspectAfter
	cfg.Jobs = 0
	cfg.Voters = []Voter{{ID: "a", Raft: "h:1"}, {ID: "a", Raft: "nowhere"}}
	err := cfg.Validate()
	for _, key := range []string{"lost_after", "jobs", "voter[1].id", "voter[1].raft"} {
		found := false
		for _, e := range unjoin(err) {
			var x *errs.Error
			found = found || (errors.As(e, &x) && x.Path == key)
		}
		if !found {
			t.Errorf("%v does not name %s", err, key)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}

	// Another master's data.
	dir := t.TempDir()
	cfg = testConfig()
	cfg.ID = "one"
	c := start(t, dir, nil, cfg)
	c.stop()
	cfg.ID = "two"
	m, err := New(cfg, Deps{GRPC: listen(t), Raft: listen(t), DataDir: dir}, c.m.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, "the data of another master", m.Run(t.Context()), errs.Invalid)
	if _, err := m.deps.Raft.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was left open: %v", err)
	}
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// TestDiskFails: the failure of a leader's disk is none of the client's, which
// asks the next leader.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	full := &os.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	if err := (&raftNode{}).translate(full, "commit"); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("got %v, of kind %v", err, errs.KindOf(err))
	}
}
