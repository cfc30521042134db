package client

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// quick makes a client notice silence soon.
func quick(c *Config) { c.MasterSilence = size.Duration(20 * time.Millisecond) }

// freeze makes a master silent until the test ends, as SIGSTOP does: what was
// asked is never answered.
func freeze(t *testing.T, m *fakeMaster) {
	t.Helper()
	ch := make(chan struct{})
	m.set(func() { m.frozen = ch })
	t.Cleanup(func() { close(ch) })
}

// blackHole is the address of a host that takes connections and says nothing.
func blackHole(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// TestLeavesAFrozenLeader: every kind of call goes on at the next leader.
func TestLeavesAFrozenLeader(t *testing.T) {
	old, next := newFakeMaster(), newFakeMaster()
	old.serve(t, "127.0.0.1:0")
	next.serve(t, "127.0.0.1:0")
	for _, m := range []*fakeMaster{old, next} {
		m.addFile("/d/x", "1", 5, 1<<20, time.Time{})
	}
	for name, call := range map[string]func(context.Context, *Client) error{
		"stat": func(ctx context.Context, c *Client) error { _, err := c.Stat(ctx, "/d/x", StatOptions{}); return err },
		"list": func(ctx context.Context, c *Client) error {
			for _, err := range c.List(ctx, "/d", ListOptions{}) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"add": func(ctx context.Context, c *Client) error {
			_, err := c.AddUFS(ctx, "/m", "file:///x", nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, []string{old.addr, next.addr}, quick)
			next.set(func() { next.leader = old.addr })
			if _, err := c.Stat(t.Context(), "/d/x", StatOptions{}); err != nil {
				t.Fatal(err)
			}
			freeze(t, old)
			defer old.set(func() { old.frozen = nil })
			done := make(chan error, 1)
			go func() { done <- call(t.Context(), c) }()
			// Nobody leads for a while, as far as the other one knows.
			select {
			case err := <-done:
				t.Fatalf("a frozen master answered: %v", err)
			case <-time.After(5 * c.cfg.MasterSilence.Std()):
			}
			next.set(func() { next.leader = "" })
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNeverHangs: with every master silent, a call ends when its budget does,
// long before one attempt would.
func TestNeverHangs(t *testing.T) {
	frozen := newFakeMaster()
	frozen.serve(t, "127.0.0.1:0")
	freeze(t, frozen)
	for name, masters := range map[string][]string{
		"frozen": {frozen.addr}, "black hole": {blackHole(t)}, "both": {blackHole(t), frozen.addr},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, masters, quick, func(c *Config) {
				c.RetryFor, c.CallTimeout = size.Duration(200*time.Millisecond), size.Duration(time.Hour)
			})
			if _, err := c.Stat(t.Context(), "/x", StatOptions{}); !errors.Is(err, errs.Unavailable) {
				t.Errorf("stat: %v", err)
			}
			if _, err := c.Free(t.Context(), "/x"); !errors.Is(err, errs.Unavailable) {
				t.Errorf("free: %v", err)
			}
		})
	}
}

// TestWaitsForASlowLeader: one that works on a call for long, and says that it
// is there, is not left, and is asked once.
func TestWaitsForASlowLeader(t *testing.T) {
	slow, other := newFakeMaster(), newFakeMaster()
	slow.serve(t, "127.0.0.1:0")
	other.serve(t, "127.0.0.1:0")
	slow.addFile("/x", "1", 5, 1<<20, time.Time{})
	other.set(func() { other.leader = slow.addr })
	c := dial(t, []string{slow.addr, other.addr}, func(c *Config) {
		// It has the silence's time to say that it is there, on a busy machine too.
		c.MasterSilence, c.RetryFor = size.Duration(time.Second), size.Duration(50*time.Millisecond)
	})
	release := make(chan struct{})
	slow.set(func() { slow.slow = release })
	done := make(chan error, 1)
	go func() { _, err := c.Stat(t.Context(), "/x", StatOptions{}); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("the call ended: %v", err)
	case <-time.After(4 * c.cfg.MasterSilence.Std()):
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := slow.calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// TestFreeIsNotRepeated: what may have been done at the frozen leader, and has
// no key, is not done again.
func TestFreeIsNotRepeated(t *testing.T) {
	old, next := newFakeMaster(), newFakeMaster()
	old.serve(t, "127.0.0.1:0")
	next.serve(t, "127.0.0.1:0")
	c := dial(t, []string{old.addr, next.addr}, quick)
	c.masters.answered(old.addr)
	freeze(t, old)
	if _, err := c.Free(t.Context(), "/x"); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	if n := next.calls.Load(); n != 0 {
		t.Errorf("%d calls at the next leader", n)
	}
}

// TestMembershipLeavesASilentMaster: who is there is heard from another one,
// though the stream from the first one is still open.
func TestMembershipLeavesASilentMaster(t *testing.T) {
	old, next := newFakeMaster(), newFakeMaster()
	old.serve(t, "127.0.0.1:0")
	next.serve(t, "127.0.0.1:0")
	next.tell(func(m *api.Membership) { m.Workers = []*api.WorkerInfo{{Id: "w", State: "lost"}} })
	c := dial(t, []string{old.addr, next.addr}, quick)
	first, news, err := c.members.wait(t.Context())
	if err != nil || len(first.members) != 0 {
		t.Fatalf("%d workers, %v", len(first.members), err)
	}
	freeze(t, old)
	<-news
	if now, _ := c.members.now(); now.members["w"].state != "lost" {
		t.Errorf("members %v", now.members)
	}
}

// TestFindsTheLeader: who leads is found by asking all, whatever the others say
// of it, and those who look for it at the same time ask once.
func TestFindsTheLeader(t *testing.T) {
	var all []*fakeMaster
	var addrs []string
	for range 3 {
		m := newFakeMaster()
		m.serve(t, "127.0.0.1:0")
		all, addrs = append(all, m), append(addrs, m.addr)
	}
	addrs = append(addrs, blackHole(t))
	gone := blackHole(t)
	all[0].set(func() { all[0].leader = gone })
	all[1].set(func() { all[1].notLeading = true })
	all[2].set(func() { all[2].notLeading = true })
	c := dial(t, addrs)
	c.masters.find(t.Context())
	if c.masters.known() != "" {
		t.Errorf("%s leads, and nobody does", c.masters.known())
	}
	all[2].set(func() { all[2].notLeading = false })
	for c.masters.known() != all[2].addr { // the search is short, and the machine may be busy
		c.masters.find(t.Context())
	}
	c.masters.failed(all[1].addr)
	if c.masters.known() != all[2].addr {
		t.Error("the leader is forgotten for the failure of another one")
	}
}

// TestLeaderIsFoundForOneAttempt: what is not repeated does not fail for a master
// that is not there.
func TestLeaderIsFoundForOneAttempt(t *testing.T) {
	gone, leader := newFakeMaster(), newFakeMaster()
	gone.serve(t, "127.0.0.1:0")()
	leader.serve(t, "127.0.0.1:0")
	c := dial(t, []string{gone.addr, leader.addr})
	if _, err := c.Free(t.Context(), "/x"); err != nil {
		t.Error(err)
	}
}
