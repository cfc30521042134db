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
		drop: func(id uint64) { dropped <- id }, log: slog.New(slog.DiscardHandler),
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
	case <-time.After(10 * time.Second):
		t.Fatal("mount 1 was not dropped")
	}
	table.close()
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
