package cachemaster

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
)

func TestNamespace(t *testing.T) {
	t.Parallel()
	root := newMemStore(map[string]string{"a/x": "1", "a/y/z": "22", "b": "333", "m/shadowed": "4", "m-": "5", "n": "6"})
	nested := newMemStore(map[string]string{"k": "7", "d/l": "8"})
	deep := newMemStore(map[string]string{"q": "9"})
	c := start(t, t.TempDir(), map[string]*memStore{"root": root, "nested": nested, "deep": deep}, testConfig())

	if got, err := c.list(t, &api.ListRequest{Path: []byte("/")}); err != nil || len(got) != 0 {
		t.Errorf("list / without mounts = %v, %v", got, err)
	}
	_, err := c.stat(t, "/a/x")
	wantKind(t, "stat without mounts", err, errs.NotFound)

	c.mount(t, "/", "mem://root", nil)
	c.mount(t, "/m", "mem://nested", nil)
	c.mount(t, "/v/w", "mem://deep", nil)

	for _, tc := range []struct {
		name string
		req  *api.ListRequest
		want []string
	}{
		{"root", &api.ListRequest{Path: []byte("/")}, []string{"/m/", "/v/", "/a/", "/b", "/m-", "/n"}},
		{"directory", &api.ListRequest{Path: []byte("/a")}, []string{"/a/x", "/a/y/"}},
		{"mount", &api.ListRequest{Path: []byte("/m")}, []string{"/m/d/", "/m/k"}},
		{"virtual directory", &api.ListRequest{Path: []byte("/v")}, []string{"/v/w/"}},
		{
			"recursive in byte order over mounts", &api.ListRequest{Path: []byte("/"), Recursive: true},
			[]string{"/a/x", "/a/y/z", "/b", "/m-", "/m/d/l", "/m/k", "/n", "/v/w/q"},
		},
		{
			"recursive, resumed within a nested mount",
			&api.ListRequest{Path: []byte("/"), Recursive: true, StartAfter: []byte("/m/d/l")},
			[]string{"/m/k", "/n", "/v/w/q"},
		},
		{
			"recursive, resumed behind all of a nested mount",
			&api.ListRequest{Path: []byte("/"), Recursive: true, StartAfter: []byte("/n")},
			[]string{"/v/w/q"},
		},
		{"recursive in a virtual directory", &api.ListRequest{Path: []byte("/v"), Recursive: true}, []string{"/v/w/q"}},
	} {
		got, err := c.list(t, tc.req)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", tc.name, d)
		}
	}

	_, err = c.list(t, &api.ListRequest{Path: []byte("/b")})
	wantKind(t, "list a file", err, errs.NotDir)
	_, err = c.list(t, &api.ListRequest{Path: []byte("/nope")})
	wantKind(t, "list nothing", err, errs.NotFound)
	_, err = c.list(t, &api.ListRequest{Path: []byte("/a/../b")})
	wantKind(t, "list an unclean path", err, errs.Invalid)
	_, err = c.stat(t, "/m/shadowed")
	wantKind(t, "stat what a mount hides", err, errs.NotFound)

	r, err := c.stat(t, "/a/y/z")
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := block.ParseTicket(r.GetEntry().GetTicket())
	if err != nil {
		t.Fatal(err)
	}
	if ticket.Path != "a/y/z" || ticket.Length != 2 || ticket.Tag != "22" || ticket.MountID != r.GetEntry().GetMountId() {
		t.Errorf("ticket = %+v", ticket)
	}
	if left := time.Until(ticket.Expiry); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the ticket expires in %v", left)
	}
	if v := r.GetValidMs(); v <= 0 || v > 60_000 {
		t.Errorf("valid for %d ms", v)
	}
}

// TestFreshness counts what the under-store is asked.
func TestFreshness(t *testing.T) {
	t.Parallel()
	files := func() map[string]string { return map[string]string{"d/a": "1", "d/b": "2"} }
	ttl, never, always := newMemStore(files()), newMemStore(files()), newMemStore(files())
	c := start(t, t.TempDir(), map[string]*memStore{"ttl": ttl, "never": never, "always": always}, testConfig())
	c.mount(t, "/ttl", "mem://ttl", map[string]string{"ttl": "10s"})
	c.mount(t, "/never", "mem://never", map[string]string{"freshness": "never"})
	c.mount(t, "/always", "mem://always", map[string]string{"freshness": "always"})
	stores := map[string]*memStore{"/ttl": ttl, "/never": never, "/always": always}

	ask := func(what, p string, wantErr bool, stats, lists map[string]int) {
		t.Helper()
		for root, s := range stores {
			s0, l0 := s.asked()
			_, err := c.stat(t, root+p)
			if (err != nil) != wantErr {
				t.Errorf("%s: stat %s%s: %v", what, root, p, err)
			}
			if s1, l1 := s.asked(); s1-s0 != stats[root] || l1-l0 != lists[root] {
				t.Errorf("%s: stat %s%s asked %d stats and %d lists, want %d and %d", what, root, p, s1-s0, l1-l0, stats[root], lists[root])
			}
		}
	}
	one := map[string]int{"/ttl": 1, "/never": 1, "/always": 1}
	cached := map[string]int{"/always": 1}
	expired := map[string]int{"/ttl": 1, "/always": 1}
	ask("first", "/d/a", false, one, nil)
	ask("again", "/d/a", false, cached, nil)
	ask("missing", "/d/no", true, one, nil)
	ask("missing again", "/d/no", true, cached, nil)
	c.clock.advance(11 * time.Second)
	ask("after the ttl", "/d/a", false, expired, nil)
	ask("missing after the ttl", "/d/no", true, expired, nil)

	// A listing answers for the directory and its children.
	c.clock.advance(11 * time.Second)
	for root := range stores {
		if _, err := c.list(t, &api.ListRequest{Path: []byte(root + "/d")}); err != nil {
			t.Fatal(err)
		}
	}
	ask("listed", "/d/b", false, cached, nil)
	ask("listed, missing", "/d/nix", true, cached, nil)
	ask("listed itself", "/d", false, cached, nil)
	c.clock.advance(11 * time.Second)
	ask("listed before the ttl", "/d/b", false, expired, nil)

	for root, want := range map[string]int64{"/ttl": 10_000, "/never": 3_600_000, "/always": 0} {
		r, err := c.stat(t, root+"/d/b")
		if err != nil {
			t.Fatal(err)
		}
		if v := r.GetValidMs(); v > want || v < want*9/10 {
			t.Errorf("%s: valid for %d ms, want about %d", root, v, want)
		}
	}
}

// TestLook asks about a version that a worker found gone: the under-store is
// asked, and nothing brings the old answer back.
func TestLook(t *testing.T) {
	t.Parallel()
	s := newMemStore(map[string]string{"d/a": "1", "d/b": "2", "d/c": "3"})
	c := start(t, t.TempDir(), map[string]*memStore{"s": s}, testConfig())
	c.mount(t, "/s", "mem://s", map[string]string{"ttl": "1h"})
	list := func() []string {
		t.Helper()
		paths, err := c.list(t, &api.ListRequest{Path: []byte("/s/d")})
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	stat := func(p string, look bool) *api.Entry {
		t.Helper()
		r, err := c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte(p), Look: look})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetEntry()
	}
	if diff := cmp.Diff([]string{"/s/d/a", "/s/d/b", "/s/d/c"}, list()); diff != "" {
		t.Fatal(diff)
	}
	s.set("d/a", "another")
	s.remove("d/b")
	if got := stat("/s/d/a", false).GetSize(); got != 1 {
		t.Fatalf("size %d: the answer was not cached, so the test shows nothing", got)
	}
	lists := listsOf(s)
	stat("/s/d/c", true)
	if list(); lists != listsOf(s) {
		t.Error("a look that found no change dropped the listing")
	}
	for range 2 { // the second is answered from the cache
		if got := stat("/s/d/a", true).GetSize(); got != 7 {
			t.Errorf("size %d after a look, want 7", got)
		}
		if got := stat("/s/d/a", false).GetSize(); got != 7 {
			t.Errorf("size %d behind a look, want 7", got)
		}
	}
	if diff := cmp.Diff([]string{"/s/d/a", "/s/d/c"}, list()); diff != "" {
		t.Errorf("listed behind the look (-want +got):\n%s", diff)
	}
	if e := stat("/s/d/b", true); e != nil {
		t.Errorf("removed, and a look still finds %v", e)
	}
}

func listsOf(s *memStore) int {
	_, lists := s.asked()
	return lists
}

// TestMissing looks at what is not there.
func TestMissing(t *testing.T) {
	t.Parallel()
	s := newMemStore(map[string]string{"d/a": "1"})
	stores := map[string]*memStore{"ttl": s, "never": newMemStore(nil), "always": newMemStore(nil)}
	c := start(t, t.TempDir(), stores, testConfig())
	c.mount(t, "/ttl", "mem://ttl", map[string]string{"ttl": "10s"})
	c.mount(t, "/never", "mem://never", map[string]string{"freshness": "never"})
	c.mount(t, "/always", "mem://always", map[string]string{"freshness": "always"})
	stat := func(p string) (*api.StatReply, error) {
		return c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte(p), WithTicket: true, WithCached: true})
	}
	for p, want := range map[string]int64{"/ttl/no": 10_000, "/never/no/no": 60_000, "/always/no": 0, "/ttl/d/a/no": 10_000} {
		r, err := stat(p)
		if err != nil || r.GetEntry() != nil || r.GetAppliedIndex() == 0 {
			t.Errorf("stat %s = %v, %v", p, r, err)
		}
		if v := r.GetValidMs(); v > want || v < want*9/10 {
			t.Errorf("%s is missing for %d ms, want about %d", p, v, want)
		}
	}
	c.clock.advance(4 * time.Second)
	if r, err := stat("/ttl/no"); err != nil || r.GetValidMs() > 6_000 || r.GetValidMs() < 5_000 {
		t.Errorf("after 4 s: %v, %v", r, err)
	}
	c.clock.advance(7 * time.Second)
	s.set("no", "now it is")
	if r, err := stat("/ttl/no"); err != nil || r.GetEntry().GetSize() != 9 {
		t.Errorf("after the ttl: %v, %v", r, err)
	}
	_, err := stat("/unbound")
	wantKind(t, "where no under-store is bound", err, errs.NotFound)
	s.setFail(errs.E(errs.Permission, "stat", "", nil))
	_, err = stat("/ttl/other")
	wantKind(t, "where the under-store refuses", err, errs.Permission)
	_, err = c.ns.Locate(t.Context(), &api.LocateRequest{Path: []byte("/always/no")})
	wantKind(t, "locate", err, errs.NotFound)
}

// TestMissingIsBounded adds files where freshness says that nothing changes:
// that they are missing is not believed for as long as the rest.
func TestMissingIsBounded(t *testing.T) {
	t.Parallel()
	for name, learn := range map[string]func(c *cluster) error{
		"from a look": func(c *cluster) error {
			_, err := c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte("/d/new")})
			return err
		},
		"from a listing": func(c *cluster) error { _, err := c.list(t, &api.ListRequest{Path: []byte("/d")}); return err },
	} {
		s := newMemStore(map[string]string{"d/old": "1"})
		c := start(t, t.TempDir(), map[string]*memStore{"s": s}, testConfig())
		c.mount(t, "/", "mem://s", map[string]string{"freshness": "never"})
		if err := learn(c); err != nil {
			t.Fatal(err)
		}
		s.set("d/new", "here")
		c.clock.advance(59 * time.Second)
		if r, err := c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte("/d/new")}); err != nil || r.GetEntry() != nil || r.GetValidMs() > 1000 {
			t.Errorf("%s, before its end: %v, %v", name, r, err)
		}
		c.clock.advance(2 * time.Second)
		if r, err := c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte("/d/new")}); err != nil || r.GetEntry().GetSize() != 4 {
			t.Errorf("%s, after its end: %v, %v", name, r, err)
		}
	}
}

// TestFillIsDiscarded removes a mount and binds another under-store in its
// place while the first one is being asked.
func TestFillIsDiscarded(t *testing.T) {
	t.Parallel()
	old, now := newMemStore(map[string]string{"f": "old"}), newMemStore(map[string]string{"f": "newer"})
	c := start(t, t.TempDir(), map[string]*memStore{"old": old, "new": now}, testConfig())
	c.mount(t, "/m", "mem://old", nil)
	hold := make(chan struct{})
	old.mu.Lock()
	old.hold = hold
	old.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := c.ns.Stat(context.Background(), &api.StatRequest{Path: []byte("/m/f")}) //nolint:usetesting // outlives nothing
		done <- err
	}()
	eventually(t, "the under-store is asked", func() bool { s, _ := old.asked(); return s == 1 })
	if _, err := c.ufs.RemoveUFS(t.Context(), &api.RemoveUFSRequest{Path: []byte("/m")}); err != nil {
		t.Fatal(err)
	}
	c.mount(t, "/m", "mem://new", nil)
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	r, err := c.stat(t, "/m/f")
	if err != nil || r.GetEntry().GetSize() != int64(len("newer")) {
		t.Errorf("stat = %v, %v", r, err)
	}
	if n, _ := c.m.ns.cache.size(); n != 1 {
		t.Errorf("%d entries are cached, want only the new one", n)
	}
}

// TestSingleFlight has many callers ask at once, of which some give up.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	s := newMemStore(map[string]string{"d/a": "1", "d/b": "2"})
	c := start(t, t.TempDir(), map[string]*memStore{"s": s}, testConfig())
	c.mount(t, "/", "mem://s", nil)
	_, lists := s.asked() // the probe
	hold := make(chan struct{})
	s.mu.Lock()
	s.hold = hold
	s.mu.Unlock()

	impatient, cancel := context.WithCancel(t.Context())
	type result struct {
		patient bool
		err     error
	}
	results := make(chan result, 20)
	ask := func(ctx context.Context, patient bool) {
		go func() {
			_, err := c.m.ns.stat(ctx, "/d/a", false)
			results <- result{patient, err}
		}()
		go func() {
			n := 0
			var err error
			for _, e := range c.m.ns.children(ctx, "/d") {
				n++
				err = e
			}
			if err == nil && n != 2 {
				t.Errorf("%d children", n)
			}
			results <- result{patient, err}
		}()
	}
	ask(impatient, false)
	eventually(t, "the under-store is asked", func() bool { st, l := s.asked(); return st == 1 && l == lists+1 })
	for range 9 {
		ask(t.Context(), true)
	}
	joined := func() bool {
		c.m.ns.listMu.Lock()
		defer c.m.ns.listMu.Unlock()
		n := 0
		for _, l := range c.m.ns.lists {
			l.mu.Lock()
			n += len(l.readers)
			l.mu.Unlock()
		}
		return len(c.m.ns.lists) == 1 && n == 10
	}
	eventually(t, "all follow one listing", joined)
	cancel()
	for range 2 {
		if r := <-results; r.patient || r.err == nil {
			t.Errorf("first to end: %+v", r)
		}
	}
	close(hold)
	for range 18 {
		if r := <-results; r.err != nil {
			t.Error(r.err)
		}
	}
	if st, l := s.asked(); st != 1 || l != lists+1 {
		t.Errorf("asked %d stats and %d lists, want one of each", st, l-lists)
	}
}

// TestLongListing streams a directory that is too long to keep.
func TestLongListing(t *testing.T) {
	t.Parallel()
	s := newMemStore(nil)
	want := 0
	for i := range 50 {
		s.set("d/"+string(rune('A'+i)), "x")
		want++
	}
	cfg := testConfig()
	cfg.MaxListingEntries = 10
	c := start(t, t.TempDir(), map[string]*memStore{"s": s}, cfg)
	c.mount(t, "/", "mem://s", nil)
	for range 2 {
		_, before := s.asked()
		got, err := c.list(t, &api.ListRequest{Path: []byte("/d")})
		if err != nil || len(got) != want {
			t.Fatalf("%d entries, %v", len(got), err)
		}
		if _, after := s.asked(); after != before+1 {
			t.Errorf("%d lists for one", after-before)
		}
	}
}
