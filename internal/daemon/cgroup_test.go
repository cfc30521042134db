package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"millrace/internal/errs"
)

// TestCgroups runs over a directory that looks like a control group: what is
// written is checked, not what a kernel makes of it.
func TestCgroups(t *testing.T) {
	dir := t.TempDir()
	if _, err := cgroupsAt(dir); !errors.Is(err, errs.Unsupported) {
		t.Errorf("without controllers: %v", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cpuset io memory\n")
	if _, err := cgroupsAt(dir); !errors.Is(err, errs.Unsupported) {
		t.Errorf("without the CPU's: %v", err)
	}
	write("cpu io memory\n")
	g, err := cgroupsAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	attr, f, err := g.Make("worker-0", 1<<30, 1.5)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !attr.UseCgroupFD || attr.CgroupFD != int(f.Fd()) {
		t.Errorf("attributes %+v", attr)
	}
	if _, other, err := g.Make("worker-1", 0, 0); err != nil {
		t.Error(err)
	} else {
		_ = other.Close()
	}
	for name, want := range map[string]string{
		"supervisor/cgroup.procs": strconv.Itoa(os.Getpid()), "cgroup.subtree_control": "+memory +cpu",
		"worker-0/memory.max": "1073741824", "worker-0/cpu.max": "150000 100000",
		"worker-1/memory.max": "max", "worker-1/cpu.max": "max 100000",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
}
