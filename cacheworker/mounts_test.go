package cacheworker

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/api"
	"millrace/internal/errs"
)

func newTestTable(t *testing.T, dir string, s *fakeStore, dropped chan uint64) *mountTable {
	t.Helper()
	table := &mountTable{
		registry: s.registry(), observer: &counters{}, concurrency: 4,
		drop: func(id uint64) error { dropped <- id; return nil }, recall: func() {}, log: slog.New(slog.DiscardHandler),
	}
	if err := table.load(dir); err != nil {
		t.Fatal(err)
	}
	return table
}

func TestMountTable(t *testing.T) {
	dir, s, dropped := t.TempDir(), newFakeStore(), make(chan uint64, 10)
	table := newTestTable(t, dir, s, dropped)
	if _, _, err := table.use(t.Context(), 1); !errors.Is(err, errs.NotFound) {
		t.Fatalf("an unknown mount: %v", err)
	}
	mounts := func(version uint64, specs ...*api.UFSMount) *api.Mounts {
		return &api.Mounts{Version: version, Mounts: specs}
	}
	one := &api.UFSMount{Id: 1, Uri: "fake://a"}
	two := &api.UFSMount{Id: 2, Uri: "fake://b", Options: map[string]string{"secret_key_env": "X"}}
	if err := table.apply(mounts(2, one, two)); err != nil {
		t.Fatal(err)
	}
	if err := table.apply(mounts(1)); err != nil || !table.known(1) || table.version() != 2 {
		t.Fatalf("an older table was taken: %v", err)
	}
	m, release, err := table.use(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if m2, release2, err := table.use(t.Context(), 1); err != nil || m2 != m || s.opened != 1 {
		t.Fatalf("a second use: %v, %d opened", err, s.opened)
	} else {
		release2()
	}
	// Changed options open the store anew; the old one lives while it is used.
	if err := table.apply(mounts(3, &api.UFSMount{Id: 1, Uri: "fake://a", Options: map[string]string{"region": "r"}}, two)); err != nil {
		t.Fatal(err)
	}
	if _, release3, err := table.use(t.Context(), 1); err != nil || s.opened != 2 {
		t.Fatalf("a use of the changed mount: %v, %d opened", err, s.opened)
	} else {
		release3()
	}
	if s.closed != 0 {
		t.Error("the old store was closed while it was in use")
	}
	release()
	// A removed mount is closed and its pages are dropped; not those of a
	// mount that was only changed.
	if err := table.apply(mounts(4, two)); err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-dropped:
		if id != 1 {
			t.Errorf("mount %d was dropped", id)
		}
	case <-time.After(patience):
		t.Fatal("mount 1 was not dropped")
	}
	if !table.close(time.Minute) {
		t.Error("not closed")
	}
	if s.closed != s.opened || len(dropped) != 0 {
		t.Errorf("%d opened, %d closed, %d dropped too many", s.opened, s.closed, len(dropped))
	}
	if _, _, err := table.use(t.Context(), 2); err == nil {
		t.Error("a closed table can be used")
	}

	info, err := os.Stat(filepath.Join(dir, mountsFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	again := newTestTable(t, dir, s, dropped)
	if again.version() != 4 || !again.known(2) || again.known(1) {
		t.Errorf("read back: version %d, %v", again.version(), again.table)
	}
	if err := os.WriteFile(filepath.Join(dir, mountsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.load(dir); !errors.Is(err, errs.Corrupt) {
		t.Errorf("a damaged table: %v", err)
	}
}

// TestRemovedMountIsDroppedAfterACrash lets the worker die between keeping the
// table and dropping the pages of what it took away.
func TestRemovedMountIsDroppedAfterACrash(t *testing.T) {
	dir, s := t.TempDir(), newFakeStore()
	one, two := &api.UFSMount{Id: 1, Uri: "fake://a"}, &api.UFSMount{Id: 2, Uri: "fake://b"}
	first := newTestTable(t, dir, s, nil)
	first.drop = func(uint64) error { return errors.New("the crash") }
	for version, mounts := range [][]*api.UFSMount{{one, two}, {two}} {
		if err := first.apply(&api.Mounts{Version: uint64(version + 1), Mounts: mounts}); err != nil {
			t.Fatal(err)
		}
	}
	first.close(time.Minute)

	dropped := make(chan uint64, 10)
	second := newTestTable(t, dir, s, dropped)
	second.resume()
	if id := <-dropped; id != 1 {
		t.Errorf("mount %d was dropped", id)
	}
	second.close(time.Minute)
	third := newTestTable(t, dir, s, dropped)
	third.resume()
	third.close(time.Minute)
	if len(dropped) != 0 || len(third.dropping) != 0 {
		t.Errorf("dropped again; to be dropped: %v", third.dropping)
	}
	// The same between noting the removal and keeping the table: the mount is
	// still there.
	if err := third.keepDropping([]uint64{2}); err != nil {
		t.Fatal(err)
	}
	fourth := newTestTable(t, dir, s, dropped)
	fourth.resume()
	fourth.close(time.Minute)
	if len(dropped) != 0 {
		t.Error("a mount of the table was dropped")
	}
}
