package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"millrace/client"
)

// stores makes two directories that can be bound.
func stores(t *testing.T) [2]string {
	t.Helper()
	return [2]string{"file://" + t.TempDir(), "file://" + t.TempDir()}
}

// TestReadsNeedNoMaster: with every master frozen, open files are read, and
// known ones opened and read, before their freshness ends.
func TestReadsNeedNoMaster(t *testing.T) {
	c := start(t, 3, 2, nil)
	files := c.source(t, 8, 300<<10)
	cl, err := c.Client(t.Context(), func(cfg *client.Config) { cfg.ShortCircuit = false })
	must(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	var open []*client.File
	for name, size := range files {
		must(t, readWhole(t.Context(), cl, name, size))
		f, err := cl.Open(t.Context(), name)
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		open = append(open, f)
	}
	for _, m := range c.Masters() {
		must(t, m.Pause())
	}
	for name, size := range files {
		must(t, readWhole(t.Context(), cl, name, size))
	}
	for _, f := range open {
		must(t, checkWhole(f, f.Entry().Path, f.Size()))
	}
	for _, m := range c.Masters() {
		must(t, m.Resume())
	}
	_, err = cl.Stat(bounded(t), "/", client.StatOptions{})
	must(t, err)
}

// TestLeaderIsKilled kills the leader three times under load: nobody sees an
// error, nothing that was acknowledged is lost, and changes go on soon.
func TestLeaderIsKilled(t *testing.T) {
	t.Parallel()
	c := start(t, 3, 2, nil)
	l := newLoad(t, c, c.source(t, 8, 300<<10), stores(t))
	var took []time.Duration
	for range 3 {
		l.more(20, 5)
		leader := c.leader(t)
		leader.Kill()
		began := time.Now()
		l.more(0, 4) // more than were under way
		took = append(took, time.Since(began).Round(time.Millisecond))
		must(t, leader.Start())
		must(t, leader.Ready(bounded(t)))
	}
	l.check(c)
	t.Logf("changes went on after %v", took)
}

// TestLeaderIsPaused freezes the leader for ten seconds under load.
func TestLeaderIsPaused(t *testing.T) {
	t.Parallel()
	c := start(t, 3, 2, nil)
	l := newLoad(t, c, c.source(t, 8, 300<<10), stores(t))
	l.more(20, 5)
	leader := c.leader(t)
	must(t, leader.Pause())
	began := time.Now()
	l.more(20, 5) // while it is frozen
	t.Logf("changes went on after %v", time.Since(began).Round(time.Millisecond))
	if d := 10*time.Second - time.Since(began); d > 0 {
		time.Sleep(d)
	}
	must(t, leader.Resume())
	must(t, leader.Ready(bounded(t)))
	l.more(20, 5)
	if next := c.leader(t); next == leader {
		t.Logf("the leader that was frozen leads again")
	}
	l.check(c)
}

// TestRollingRestart restarts all masters one after the other under load.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := start(t, 3, 2, nil)
	l := newLoad(t, c, c.source(t, 8, 300<<10), stores(t))
	for _, m := range c.Masters() {
		l.more(10, 3)
		must(t, m.Terminate(patience))
		l.more(10, 3)
		must(t, m.Start())
		must(t, m.Ready(bounded(t)))
	}
	l.more(10, 3)
	l.check(c)
}

func (c *Cluster) awaitMember(t *testing.T, id, want string) {
	t.Helper()
	must(t, Until(bounded(t), func() error {
		states, err := c.Members(t.Context())
		if got := states[id]; err == nil && got != want {
			err = fmt.Errorf("%s is %q, want %q", id, got, want)
		}
		return err
	}))
}

// TestMasterLosesItsDisk: a master whose disk was replaced takes no part until
// it was removed and added again, and then counts.
func TestMasterLosesItsDisk(t *testing.T) {
	c := start(t, 3, 1, nil)
	uris := stores(t)
	c.run(t, "ufs", "add", "/a", uris[0])
	leader := c.leader(t)
	lost := c.Followers(leader)[0]
	lost.Kill()
	must(t, lost.Wipe())
	must(t, lost.Start())
	c.awaitMember(t, lost.Name, "empty")
	if err := lost.readyNow(t); err == nil {
		t.Error("a master that lost its disk says that it is ready")
	}
	must(t, c.Rejoin(bounded(t), lost))
	c.run(t, "masters", "transfer", lost.Name)
	must(t, Until(bounded(t), func() error {
		if got := c.leader(t); got != lost {
			return errors.New(got.Name + " leads")
		}
		return nil
	}))
	leader.Kill()
	c.run(t, "ufs", "add", "/b", uris[1])
	var mounts []struct {
		Path string `json:"path"`
	}
	must(t, json.Unmarshal([]byte(c.run(t, "ufs", "ls", "-o", "json")), &mounts))
	if len(mounts) != 2 {
		t.Errorf("bound are %v", mounts)
	}
}
