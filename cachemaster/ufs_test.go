package cachemaster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/ufs"
)

func TestAddUFS(t *testing.T) {
	t.Parallel()
	broken, silent := newMemStore(nil), newMemStore(nil)
	broken.fail = errs.E(errs.Permission, "list", "", errors.New("access denied"))
	silent.hold = make(chan struct{})
	cfg := testConfig()
	cfg.ProbeTimeout = size.Duration(50 * time.Millisecond)
	a := newMemStore(nil)
	stores := map[string]*memStore{"a": a, "b": newMemStore(nil), "broken": broken, "silent": silent}
	c := start(t, t.TempDir(), stores, cfg)
	first := c.mount(t, "/m", "mem://a", map[string]string{"block_size": "512KiB", "ttl": "5s", "color": "red"})
	if first.GetBlockSize() != 512<<10 || first.GetTtlMs() != 5000 || first.GetFreshness() != "ttl" {
		t.Errorf("mount = %v", first)
	}

	for _, tc := range []struct {
		name, path, uri string
		options         map[string]string
		kind            errs.Kind
		text            string
	}{
		{"another under-store at the path", "/m", "mem://b", nil, errs.Exists, "mem://a is bound here already, not mem://b"},
		{"other options", "/m", "mem://a", nil, errs.Exists, "with other options"},
		{"unclean path", "/m/", "mem://a", nil, errs.Invalid, "absolute path"},
		{"relative path", "m", "mem://a", nil, errs.Invalid, "absolute path"},
		{"unknown scheme", "/n", "tape://a", nil, errs.Unsupported, "tape"},
		{"missing bucket", "/n", "mem://none", nil, errs.NotFound, "no such bucket"},
		{"refused", "/n", "mem://broken", nil, errs.Permission, "access denied"},
		{"not answering", "/n", "mem://silent", nil, errs.Timeout, "mem://silent"},
		{"unknown option", "/n", "mem://b", map[string]string{"shape": "red"}, errs.Invalid, `option "shape" is unknown`},
		{"bad block size", "/n", "mem://b", map[string]string{"block_size": "100KiB"}, errs.Invalid, "block_size"},
		{"bad freshness", "/n", "mem://b", map[string]string{"freshness": "often"}, errs.Invalid, "freshness"},
		{"bad placement", "/n", "mem://b", map[string]string{"placement": "near"}, errs.Invalid, "placement"},
		{"bad ttl", "/n", "mem://b", map[string]string{"ttl": "soon"}, errs.Invalid, "ttl"},
		{"ttl beside freshness", "/n", "mem://b", map[string]string{"ttl": "1s", "freshness": "never"}, errs.Invalid, "ttl"},
	} {
		_, err := c.ufs.AddUFS(t.Context(), &api.AddUFSRequest{Path: []byte(tc.path), Uri: tc.uri, Options: tc.options})
		wantKind(t, tc.name, err, tc.kind)
		if err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %q does not say %q", tc.name, err, tc.text)
		}
	}

	// The same again needs no under-store.
	a.setFail(errs.E(errs.Unavailable, "list", "", nil))
	again := c.mount(t, "/m", "mem://a", map[string]string{"block_size": "512KiB", "ttl": "5s", "color": "red"})
	if again.GetId() != first.GetId() {
		t.Errorf("mount ID %d, then %d", first.GetId(), again.GetId())
	}
	r, err := c.ufs.ListUFS(t.Context(), &api.ListUFSRequest{})
	if err != nil || r.GetMounts().GetVersion() != 1 || len(r.GetMounts().GetMounts()) != 1 {
		t.Errorf("mounts = %v, %v", r, err)
	}
}

// TestStoreIsOpenedOnce counts the opens of an under-store that is added, used
// and removed, and of one that is refused.
func TestStoreIsOpenedOnce(t *testing.T) {
	t.Parallel()
	s, broken := newMemStore(map[string]string{"f": "1"}), newMemStore(nil)
	broken.fail = errs.E(errs.Permission, "list", "", nil)
	c := start(t, t.TempDir(), map[string]*memStore{"s": s, "broken": broken}, testConfig())
	handles := func(what string, s *memStore, opens, closes int) {
		t.Helper()
		if o, cl := s.handles(); o != opens || cl != closes {
			t.Errorf("%s: opened %d times and closed %d times, want %d and %d", what, o, cl, opens, closes)
		}
	}
	c.mount(t, "/m", "mem://s", nil)
	if _, err := c.stat(t, "/m/f"); err != nil {
		t.Fatal(err)
	}
	handles("added and used", s, 1, 0)
	c.mount(t, "/m", "mem://s", nil)
	handles("added again", s, 1, 0)
	if _, err := c.ufs.RemoveUFS(t.Context(), &api.RemoveUFSRequest{Path: []byte("/m")}); err != nil {
		t.Fatal(err)
	}
	handles("removed", s, 1, 1)

	_, err := c.ufs.AddUFS(t.Context(), &api.AddUFSRequest{Path: []byte("/n"), Uri: "mem://broken"})
	wantKind(t, "refused by the under-store", err, errs.Permission)
	handles("refused by the under-store", broken, 1, 1)

	// A mount that was removed before its store was adopted, and one whose
	// store somebody opened meanwhile.
	gone := newMemStore(nil)
	c.m.ns.stores.adopt(c.m.store.State, 1<<40, gone)
	handles("adopted too late", gone, 0, 1)
	m := c.mount(t, "/m", "mem://s", nil)
	c.m.ns.stores.adopt(c.m.store.State, m.GetId(), gone)
	handles("adopted as the second", gone, 0, 2)
}

// TestGenericOptions adds an under-store with each of the options that every
// kind has: what the master does not know by itself is not for it to refuse.
func TestGenericOptions(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"s": newMemStore(nil)}, testConfig())
	values := map[string]string{ufs.OptionFreshness: "never", ufs.OptionTTL: "5s", ufs.OptionVerify: ufs.VerifyAlways, ufs.OptionPlacement: ufs.PlacementSpread}
	for _, key := range ufs.GenericOptions() {
		value, ok := values[key]
		if !ok {
			value = "1048576"
		}
		r, err := c.ufs.AddUFS(t.Context(), &api.AddUFSRequest{
			Path: []byte("/" + key), Uri: "mem://s", Options: map[string]string{key: value},
		})
		if err != nil || r.GetMount().GetOptions()[key] != value {
			t.Errorf("%s=%s: %v, %v", key, value, r, err)
		}
	}
	_, err := c.ufs.AddUFS(t.Context(), &api.AddUFSRequest{
		Path: []byte("/x"), Uri: "mem://s", Options: map[string]string{ufs.OptionVerify: "sometimes"},
	})
	wantKind(t, "verify=sometimes", err, errs.Invalid)
}

func TestRemoveUFS(t *testing.T) {
	t.Parallel()
	stores := map[string]*memStore{"a": newMemStore(nil), "b": newMemStore(nil)}
	c := start(t, t.TempDir(), stores, testConfig())
	remove := func(p, key string) error {
		_, err := c.ufs.RemoveUFS(t.Context(), &api.RemoveUFSRequest{Path: []byte(p), IdempotencyKey: key})
		return err
	}
	wantKind(t, "nothing there", remove("/m", ""), errs.NotFound)
	first := c.mount(t, "/m", "mem://a", nil)
	c.mount(t, "/m/n", "mem://b", nil)
	wantKind(t, "mount below", remove("/m", ""), errs.NotEmpty)
	if err := errors.Join(remove("/m/n", "k1"), remove("/m/n", "k1"), remove("/m", "k2")); err != nil {
		t.Errorf("remove, with a repeated key: %v", err)
	}
	if again := c.mount(t, "/m", "mem://a", nil); again.GetId() <= first.GetId() {
		t.Errorf("mount ID %d is used again", again.GetId())
	}
}

// TestMountsSurviveRestart leaves a master without closing anything of the
// state machine's and starts another one on a copy of what is on disk.
func TestMountsSurviveRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stores := map[string]*memStore{"a": newMemStore(map[string]string{"f": "1"})}
	c := start(t, dir, stores, testConfig())
	first := c.mount(t, "/m", "mem://a", nil)
	s1, err := c.status.Status(t.Context(), &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	killed := copyDir(t, dir) // as a kill leaves it
	c.stop()
	for name, d := range map[string]string{"stopped": dir, "killed": killed} {
		c := start(t, d, stores, testConfig())
		if again := c.mount(t, "/m", "mem://a", nil); again.GetId() != first.GetId() {
			t.Errorf("%s: mount ID %d, was %d", name, again.GetId(), first.GetId())
		}
		if _, err := c.stat(t, "/m/f"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s2, err := c.status.Status(t.Context(), &api.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if s1.GetClusterId() == "" || s2.GetClusterId() != s1.GetClusterId() {
			t.Errorf("%s: cluster ID %q, was %q", name, s2.GetClusterId(), s1.GetClusterId())
		}
		if len(s2.GetMasters()) != 1 || s2.GetMasters()[0].GetId() != s2.GetLeader() || s2.GetMasters()[0].GetState() != "leader" {
			t.Errorf("%s: masters = %v, leader %q", name, s2.GetMasters(), s2.GetLeader())
		}
		c.stop()
	}
}

// TestAddUFSRepeated: a call whose answer was lost is repeated, after the path
// was given to another: it gets the answer that was lost.
func TestAddUFSRepeated(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"a": newMemStore(nil), "b": newMemStore(nil)}, testConfig())
	call := &api.AddUFSRequest{Path: []byte("/m"), Uri: "mem://a", IdempotencyKey: "k"}
	first, err := c.ufs.AddUFS(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ufs.RemoveUFS(t.Context(), &api.RemoveUFSRequest{Path: []byte("/m")}); err != nil {
		t.Fatal(err)
	}
	c.mount(t, "/m", "mem://b", nil)
	again, err := c.ufs.AddUFS(t.Context(), call)
	if err != nil || again.GetMount().GetId() != first.GetMount().GetId() {
		t.Errorf("repeated: %v, %v, want %v", again, err, first)
	}
	if st := c.m.store.State(); len(st.Mounts) != 1 || st.Mounts[0].URI != "mem://b" {
		t.Errorf("bound are %v", st.Mounts)
	}
}
