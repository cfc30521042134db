package cacheworker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/internal/errs"
)

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	if id, err := LoadIdentity(dir); err != nil || id != (Identity{}) {
		t.Fatalf("of an empty directory: %+v, %v", id, err)
	}
	now := time.UnixMilli(1_700_000_000_000)
	first, err := startIdentity(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.join("CLUSTER"); err != nil {
		t.Fatal(err)
	}
	if err := first.join(""); err != nil {
		t.Errorf("a master without a cluster ID: %v", err)
	}
	if err := first.join("OTHER"); !errors.Is(err, errs.Invalid) {
		t.Errorf("joined another cluster: %v", err)
	}
	last := first.current()
	for _, at := range []time.Time{now, now.Add(-time.Hour), now.Add(time.Hour)} {
		next, err := startIdentity(dir, at)
		if err != nil {
			t.Fatal(err)
		}
		id := next.current()
		if id.WorkerID != last.WorkerID || id.ClusterID != "CLUSTER" || id.StartEpoch <= last.StartEpoch {
			t.Errorf("after %+v came %+v", last, id)
		}
		last = id
	}
	info, err := os.Stat(filepath.Join(dir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	for _, text := range []string{"", "{", `{"worker_id":"x","start_epoch":1}`} {
		if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := startIdentity(dir, now); !errors.Is(err, errs.Corrupt) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestBootID(t *testing.T) {
	id, err := BootID()
	if err != nil || len(id) != 36 {
		t.Errorf("%q, %v", id, err)
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{}).Validate(); err == nil {
		t.Error("the zero configuration is valid")
	}
}
