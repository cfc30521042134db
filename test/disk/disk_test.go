package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
	"millrace/test/disk"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFill(t *testing.T) {
	testenv.Require(t, testenv.Mounts)
	s, err := disk.NewSmall(filepath.Join(t.TempDir(), "small"), 1<<20)
	must(t, err)
	defer func() { must(t, s.Close()) }()
	name := filepath.Join(s.Dir, "mine")
	for range 2 {
		free, err := s.Fill()
		must(t, err)
		if err := os.WriteFile(name, []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a write to a full file system: %v", err)
		}
		must(t, free())
		must(t, os.WriteFile(name, []byte("x"), 0o600))
		must(t, os.Remove(name))
	}
}

// TestCut: what was synced survives, what was not is lost, and nothing more can
// be written without the power.
func TestCut(t *testing.T) {
	testenv.Require(t, testenv.Mounts)
	dir := t.TempDir()
	m, err := disk.NewImage(t.Context(), filepath.Join(dir, "image"), filepath.Join(dir, "disk"), 16<<20)
	must(t, err)
	defer func() { must(t, m.Close()) }()
	write := func(name string, sync bool) error {
		f, err := os.Create(filepath.Join(m.Dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteString(name); err != nil || !sync {
			return err
		}
		return f.Sync()
	}
	must(t, write("synced", true))
	must(t, write("not", false))
	must(t, m.Cut())
	if err := write("late", true); err == nil {
		t.Error("a write without power succeeds")
	}
	must(t, m.Restore(t.Context()))
	got, err := os.ReadFile(filepath.Join(m.Dir, "synced"))
	must(t, err)
	if string(got) != "synced" {
		t.Errorf("what was synced is %q", got)
	}
	for _, name := range []string{"not", "late"} {
		if got, err := os.ReadFile(filepath.Join(m.Dir, name)); len(got) > 0 {
			t.Errorf("%s is there: %q, %v", name, got, err)
		}
	}
}
