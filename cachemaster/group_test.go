package cachemaster

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
	"millrace/internal/size"
)

// group is several masters in this process. Each keeps its addresses and its
// directory over a restart.
type group struct {
	t        *testing.T
	stores   map[string]*memStore
	cfg      Config
	founders int
	deps     []Deps
	up       map[int]*cluster
}

// newGroup describes a group of that many founders, and starts none.
func newGroup(t *testing.T, founders, all int) *group {
	t.Helper()
	g := &group{t: t, stores: map[string]*memStore{"a": newMemStore(map[string]string{"f": "1"})}, cfg: testConfig(), founders: founders, up: map[int]*cluster{}}
	// A machine that is busy must not cost the leader its place.
	g.cfg.RaftHeartbeatTimeout = size.Duration(500 * time.Millisecond)
	g.cfg.RaftElectionTimeout = g.cfg.RaftHeartbeatTimeout
	g.cfg.RaftLeaderLeaseTimeout = g.cfg.RaftHeartbeatTimeout
	var masters []string
	for i := range all {
		d := Deps{UFS: registry(g.stores), GRPC: listen(t), Raft: listen(t), DataDir: t.TempDir()}
		masters = append(masters, d.GRPC.Addr().String())
		if i < founders {
			g.cfg.Voters = append(g.cfg.Voters, Voter{ID: fmt.Sprint("m", i), Raft: d.Raft.Addr().String()})
		}
		g.deps = append(g.deps, d)
	}
	for i := range g.deps {
		g.deps[i].Masters = masters
	}
	return g
}

// start starts a master, on its addresses if it was up before.
func (g *group) start(i int) *cluster {
	g.t.Helper()
	d := &g.deps[i]
	d.GRPC, d.Raft = g.again(d.GRPC), g.again(d.Raft)
	cfg := g.cfg
	cfg.ID = fmt.Sprint("m", i)
	c := startWith(g.t, *d, cfg)
	g.up[i] = c
	return c
}

// again opens a listener again on the address that it had, if it is closed.
func (g *group) again(l net.Listener) net.Listener {
	g.t.Helper()
	var lc net.ListenConfig
	if again, err := lc.Listen(g.t.Context(), "tcp", l.Addr().String()); err == nil {
		return again
	}
	return l
}

func (g *group) stop(i int) {
	g.up[i].stop()
	delete(g.up, i)
}

// wipe stops a master and takes its disk away.
func (g *group) wipe(i int) {
	g.t.Helper()
	g.stop(i)
	if err := os.RemoveAll(g.deps[i].DataDir); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Mkdir(g.deps[i].DataDir, 0o700); err != nil {
		g.t.Fatal(err)
	}
}

func (g *group) startAll(n int) {
	g.t.Helper()
	for i := range n {
		g.start(i)
	}
}

// leader waits for the one that leads.
func (g *group) leader() (number int, c *cluster) {
	g.t.Helper()
	eventually(g.t, "one leads", func() bool {
		for number, c = range g.up {
			if c.m.leading.Load() {
				return true
			}
		}
		return false
	})
	return number, c
}

// states returns what the leader says of the masters.
func (g *group) states() map[string]string {
	g.t.Helper()
	_, l := g.leader()
	reply, err := api.NewGroupServiceClient(l.conn).ListMasters(g.t.Context(), &api.ListMastersRequest{})
	states := map[string]string{}
	if err != nil {
		return states // it leads no more; the caller asks again
	}
	for _, m := range reply.GetMasters() {
		states[m.GetId()] = m.GetState()
	}
	return states
}

func (g *group) awaitState(id, want string) {
	g.t.Helper()
	eventually(g.t, id+" is "+want, func() bool { return g.states()[id] == want })
}

// change asks the leader, wherever it is, until it does not say no.
func (g *group) change(what string, f func(api.GroupServiceClient) error) {
	g.t.Helper()
	var err error
	eventually(g.t, what, func() bool {
		_, l := g.leader()
		err = f(api.NewGroupServiceClient(l.conn))
		return errs.KindOf(err) != errs.NotLeader && errs.KindOf(err) != errs.Unavailable
	})
	if err != nil {
		g.t.Fatalf("%s: %v", what, err)
	}
}

func (g *group) add(id string) {
	g.t.Helper()
	g.change("add "+id, func(c api.GroupServiceClient) error {
		_, err := c.AddMaster(g.t.Context(), &api.AddMasterRequest{Id: id})
		return err
	})
}

func (g *group) remove(id string) {
	g.t.Helper()
	g.change("remove "+id, func(c api.GroupServiceClient) error {
		_, err := c.RemoveMaster(g.t.Context(), &api.RemoveMasterRequest{Id: id})
		return err
	})
}

// TestFoundingWaitsForAll: two of three founders are not enough to begin, since
// the third might have lost its disk; later two are.
func TestFoundingWaitsForAll(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(2)
	// Each has asked the other by then, several times.
	if err := sleep(t.Context(), systemClock{}, 5*foundingPause); err != nil {
		t.Fatal(err)
	}
	for _, c := range g.up {
		reply, err := api.NewGroupServiceClient(c.conn).Found(t.Context(), &api.FoundRequest{Id: "m2", Disk: "x"})
		if err != nil || reply.GetFounded() || c.m.running.Load() {
			t.Fatalf("a group was founded without its third master: %v, %v", reply, err)
		}
		if _, err := c.stat(t, "/"); errs.KindOf(err) != errs.Unavailable {
			t.Errorf("a master that has not entered the group answered %v", err)
		}
	}
	g.start(2)
	_, l := g.leader()
	l.mount(t, "/m", "mem://a", nil)
	for i := range 3 {
		g.stop(i)
	}
	g.startAll(2)
	_, l = g.leader()
	if _, err := l.stat(t, "/m/f"); err != nil {
		t.Error(err)
	}
}

// TestWipedMaster: a founder that lost its disk gives no vote until it was
// removed and added again; then it has everything.
func TestWipedMaster(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	_, l := g.leader()
	l.mount(t, "/m", "mem://a", nil)
	for _, id := range []string{"m0", "m1", "m2"} {
		eventually(t, id+" is heard", func() bool { s := g.states()[id]; return s == masterLeader || s == masterFollower })
	}
	g.wipe(0)
	c := g.start(0)
	g.awaitState("m0", masterEmpty)
	if c.m.running.Load() || c.m.raft.raft != nil {
		t.Fatal("a master that lost its disk takes part")
	}
	_, l = g.leader()
	_, err := api.NewGroupServiceClient(l.conn).TransferLeadership(t.Context(), &api.TransferLeadershipRequest{Id: "m0"})
	wantKind(t, "making it lead", err, errs.Unavailable)
	g.remove("m0")
	g.awaitState("m0", masterWaiting)
	g.add("m0")
	g.awaitState("m0", masterFollower)
	_, l = g.leader()
	want := l.m.store.State()
	if got := c.m.store.State(); got.ClusterID != want.ClusterID || len(got.Mounts) != 1 {
		t.Errorf("the master that came back has %+v, want %+v", got, want)
	}
	// It counts again: the group goes on with it and one other.
	for i := 1; i < 3; i++ {
		if g.up[i] == l {
			g.stop(i)
		}
	}
	_, l = g.leader()
	if _, err := l.stat(t, "/m/f"); err != nil {
		t.Error(err)
	}
}

// TestAddAndRemove grows a group of one to three, and takes its first leader
// out.
func TestAddAndRemove(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, 3)
	g.startAll(1)
	_, l := g.leader()
	l.mount(t, "/m", "mem://a", nil)
	_, err := api.NewGroupServiceClient(l.conn).AddMaster(t.Context(), &api.AddMasterRequest{Id: "m1"})
	wantKind(t, "adding one that is not there", err, errs.NotFound)
	_, err = api.NewGroupServiceClient(l.conn).RemoveMaster(t.Context(), &api.RemoveMasterRequest{Id: "m0"})
	wantKind(t, "removing the only one", err, errs.Invalid)
	for i := 1; i < 3; i++ {
		g.start(i)
		id := fmt.Sprint("m", i)
		g.awaitState(id, masterWaiting)
		g.add(id)
		g.awaitState(id, masterFollower)
	}
	watch, err := g.up[0].status.Watch(t.Context(), &api.WatchRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	g.remove("m0")
	eventually(t, "another leads", func() bool { n, _ := g.leader(); return n != 0 })
	eventually(t, "it waits", func() bool { return g.states()["m0"] == masterWaiting && len(g.states()) == 3 })
	// What it knows grows old: it tells nobody, and ends who watches it.
	for err == nil {
		_, err = watch.Recv()
	}
	wantKind(t, "watching a master that was removed", err, errs.Unavailable)
	_, err = g.up[0].status.Status(t.Context(), &api.StatusRequest{})
	wantKind(t, "the status of a master that was removed", err, errs.Unavailable)
	_, l = g.leader()
	if _, ok := l.m.store.State().Masters["m0"]; ok {
		t.Error("the master that was removed is remembered")
	}
	if _, err := l.stat(t, "/m/f"); err != nil {
		t.Error(err)
	}
}

// TestRemoveKeepsAMajority refuses to remove one master too many.
func TestRemoveKeepsAMajority(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, l := g.leader()
	var others []string
	for i := range 3 {
		if i != n {
			others = append(others, fmt.Sprint("m", i))
			g.awaitState(others[len(others)-1], masterFollower)
		}
	}
	for i := range 3 {
		if fmt.Sprint("m", i) == others[0] {
			g.stop(i)
		}
	}
	l.clock.advance(silentAfter)
	g.awaitState(others[0], masterSilent)
	g.awaitState(others[1], masterFollower)
	_, err := api.NewGroupServiceClient(l.conn).RemoveMaster(t.Context(), &api.RemoveMasterRequest{Id: others[1]})
	wantKind(t, "removing the last follower", err, errs.Unavailable)
	g.remove(others[0])
	if states := g.states(); len(states) != 2 {
		t.Errorf("the group is %v", states)
	}
}

// TestMastersOfAnotherGroup: a master that founds a group alone is not misled
// by the addresses of another group, whose masters do not count on it.
func TestMastersOfAnotherGroup(t *testing.T) {
	t.Parallel()
	other := start(t, t.TempDir(), nil, testConfig())
	deps := Deps{UFS: registry(nil), GRPC: listen(t), Raft: listen(t), DataDir: t.TempDir(), Masters: []string{other.m.grpc}}
	c := startWith(t, deps, testConfig())
	eventually(t, "it serves", func() bool {
		_, err := c.stat(t, "/")
		return err == nil
	})
	if heard := other.m.announced.ids(); len(heard) > 0 {
		t.Errorf("the other group heard of %v", heard)
	}
}

// TestTransfer makes a named follower lead.
func TestTransfer(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, _ := g.leader()
	to := (n + 1) % 3
	g.awaitState(fmt.Sprint("m", to), masterFollower)
	g.change("transfer", func(c api.GroupServiceClient) error {
		_, err := c.TransferLeadership(t.Context(), &api.TransferLeadershipRequest{Id: fmt.Sprint("m", to)})
		return err
	})
	eventually(t, "it leads", func() bool { n, _ := g.leader(); return n == to })
}

// TestTransferToAny makes a follower lead, though the leader has not heard of any
// yet.
func TestTransferToAny(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, l := g.leader()
	for i := range 3 {
		l.m.announced.forget(fmt.Sprint("m", i))
	}
	g.change("transfer", func(c api.GroupServiceClient) error {
		if next, _ := g.leader(); next != n {
			return nil // the attempt before did it
		}
		_, err := c.TransferLeadership(t.Context(), &api.TransferLeadershipRequest{})
		return err
	})
	eventually(t, "another one leads", func() bool { next, _ := g.leader(); return next != n })
	_, err := api.NewGroupServiceClient(l.conn).TransferLeadership(t.Context(), &api.TransferLeadershipRequest{Id: "nobody"})
	if errs.KindOf(err) == errs.Unknown {
		t.Error("leadership was given to nobody")
	}
}

// TestFollowersKnowAddresses: each master is known to all, also one that never
// led, and a follower names the leader.
func TestFollowersKnowAddresses(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, l := g.leader()
	for i, c := range g.up {
		eventually(t, "it knows all", func() bool { return len(c.m.store.State().Masters) == 3 })
		reply, err := api.NewGroupServiceClient(c.conn).Leader(t.Context(), &api.LeaderRequest{})
		if err != nil || reply.GetAddress() != l.m.grpc || reply.GetLeads() != (i == n) {
			t.Errorf("master %d says that %v leads, %v", i, reply, err)
		}
		if i == n {
			continue
		}
		_, err = api.NewGroupServiceClient(c.conn).ListMasters(t.Context(), &api.ListMastersRequest{})
		if nl, ok := errors.AsType[*rpcerr.NotLeader](err); !ok || nl.Leader != l.m.grpc {
			t.Errorf("follower %d answered %v", i, err)
		}
	}
}

// TestOtherAddress: a follower that comes back on other ports is found again.
func TestOtherAddress(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, l := g.leader()
	i := (n + 1) % 3
	g.stop(i)
	g.deps[i].GRPC, g.deps[i].Raft = listen(t), listen(t)
	raftAddress := g.deps[i].Raft.Addr().String()
	c := g.start(i)
	l.mount(t, "/m", "mem://a", nil)
	eventually(t, "it follows", func() bool { return len(c.m.store.State().Mounts) == 1 })
	v, _, err := l.m.raft.member(fmt.Sprint("m", i))
	if err != nil || string(v.Address) != raftAddress {
		t.Errorf("the group has %v, %v, want %s", v, err, raftAddress)
	}
}

// TestLogIsBounded: snapshots are taken while changes come, the log behind them
// is cut, and two of them are kept.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.RaftSnapshotEntries, cfg.RaftTrailingEntries = 100, 50
	cfg.RaftSnapshotInterval = size.Duration(5 * time.Millisecond)
	dir := t.TempDir()
	c := start(t, dir, nil, cfg)
	length := func() uint64 {
		first, err := c.m.raft.logDB.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		last, err := c.m.raft.logDB.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		return last - first + 1
	}
	const changes = 400
	for i := range changes {
		m := fsm.Master{ID: "x", GRPC: fmt.Sprint("h:", i)}
		if _, err := c.m.raft.apply(t.Context(), fsm.Command{RegisterMaster: &m}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the log is cut", func() bool { return length() <= cfg.RaftSnapshotEntries+cfg.RaftTrailingEntries })
	// One more is there while the newest is written and the oldest not yet removed.
	eventually(t, fmt.Sprintf("1 to %d snapshots are kept", keptSnapshots), func() bool {
		names, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names) > 0 && len(names) <= keptSnapshots
	})
	c.stop()
	again := start(t, dir, nil, cfg)
	if got := again.m.store.State().Masters["x"].GRPC; got != fmt.Sprint("h:", changes-1) {
		t.Errorf("after a start from them: %q", got)
	}
}

// TestStopWhileItWaits: a master that waits for the others ends when it is told
// to.
func TestStopWhileItWaits(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.start(0)
	g.stop(0)
	g = newGroup(t, 1, 2)
	g.start(1)
	g.stop(1)
}

// TestFoundingIsKept: the mark of a disk does not change, and a broken file is
// not taken for a new disk.
func TestFoundingIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var marks []string
	for range 2 {
		if err := markDisk(dir); err != nil {
			t.Fatal(err)
		}
		f, err := readFounding(dir)
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, f.Disk)
	}
	if marks[0] == "" || marks[0] != marks[1] {
		t.Errorf("the marks are %q", marks)
	}
	if err := os.WriteFile(filepath.Join(dir, foundingFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "a broken file", markDisk(dir), errs.Corrupt)
}

// TestFoundIsDenied: a master of a group knows the disks that it was founded
// with, and no others.
func TestFoundIsDenied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := (founding{Disk: "own", Disks: map[string]string{"m1": "d1"}}).write(dir); err != nil {
		t.Fatal(err)
	}
	m := &Master{deps: Deps{DataDir: dir}, raft: &raftNode{id: "m0"}, log: slog.New(slog.DiscardHandler)}
	s := &groupService{m: m}
	for _, c := range []struct {
		id, disk string
		known    bool
	}{{"m1", "d1", true}, {"m1", "d2", false}, {"m2", "d1", false}, {"m1", "", false}, {"m2", "", false}} {
		r, err := s.Found(t.Context(), &api.FoundRequest{Id: c.id, Disk: c.disk})
		if err != nil || r.GetKnown() != c.known || !r.GetFounded() || r.GetDisk() != "own" {
			t.Errorf("%+v: %v, %v", c, r, err)
		}
	}
	_, err := s.Found(t.Context(), &api.FoundRequest{Id: "m0", Disk: "other"})
	wantKind(t, "its own ID", err, errs.Invalid)
}

// TestJoinsBySnapshot: a master is added when the log begins long after the
// group did.
func TestJoinsBySnapshot(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, 2)
	g.cfg.RaftSnapshotEntries, g.cfg.RaftTrailingEntries = 50, 10
	g.cfg.RaftSnapshotInterval = size.Duration(5 * time.Millisecond)
	g.startAll(1)
	_, l := g.leader()
	l.mount(t, "/m", "mem://a", nil)
	eventually(t, "the log is cut", func() bool {
		if _, err := l.m.raft.apply(t.Context(), fsm.Command{RegisterMaster: &fsm.Master{ID: "x", GRPC: "h:1"}}); err != nil {
			t.Fatal(err)
		}
		first, err := l.m.raft.logDB.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		return first > 50
	})
	c := g.start(1)
	g.awaitState("m1", masterWaiting)
	g.add("m1")
	if got, want := c.m.store.State(), l.m.store.State(); got.ClusterID != want.ClusterID || len(got.Mounts) != 1 || got.Masters["x"].GRPC != "h:1" {
		t.Errorf("the master that joined has %+v, want %+v", got, want)
	}
}

// TestLeaderAlone cuts the leader off from the others, not from its clients:
// it stops to answer as the leader, and another leads.
func TestLeaderAlone(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, 3)
	g.startAll(3)
	n, l := g.leader()
	l.mount(t, "/m", "mem://a", nil)
	l.m.raft.conns.closeConns() // for good: its listener refuses, too
	eventually(t, "it leads no more", func() bool { return !l.m.leading.Load() })
	delete(g.up, n)
	_, next := g.leader()
	if _, err := next.ufs.RemoveUFS(t.Context(), &api.RemoveUFSRequest{Path: []byte("/m")}); err != nil {
		t.Fatal(err)
	}
	// It still has the under-store in its table, and must not say so.
	_, err := l.ufs.ListUFS(t.Context(), &api.ListUFSRequest{})
	wantKind(t, "what was the leader", err, errs.NotLeader)
	if len(l.m.store.State().Mounts) != 1 {
		t.Error("it was not cut off")
	}
}
