package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/hostmem"
	"millrace/internal/size"
	"millrace/tier"
)

// inSharedMemory returns a path that is not there yet in a directory of the
// test's own on a tmpfs.
func inSharedMemory(t *testing.T) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(sharedMemory, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skipf("NOT TESTED: %s is no tmpfs here", sharedMemory)
	}
	parent, err := os.MkdirTemp(sharedMemory, "millrace-test-") //nolint:usetesting // on a tmpfs, where t.TempDir is not
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(parent, "memory")
}

// The directory is named after the data directory, the same at each start.
func TestMemoryDirName(t *testing.T) {
	w := Worker{Memory: 8 * size.MiB}
	a, err := w.memory(true, "/data/a")
	if err != nil {
		t.Fatal(err)
	}
	again, _ := w.memory(true, "/data/a")
	b, _ := w.memory(true, "/data/b")
	if !strings.HasPrefix(a.dir, "/dev/shm/millrace-") || a.dir != again.dir || a.dir == b.dir || !a.own {
		t.Errorf("%+v, again %+v, for another %+v", a, again, b)
	}
	w.MemoryDir = "/mnt/ram"
	if m, err := w.memory(true, "/data/a"); err != nil || m.dir != "/mnt/ram" || m.own {
		t.Errorf("named by the user: %+v, %v", m, err)
	}
	w.Memory = 0
	if m, err := w.memory(true, "/data/a"); err != nil || m != (memoryTier{}) {
		t.Errorf("none: %+v, %v", m, err)
	}
}

func TestMemoryRefused(t *testing.T) {
	have, err := hostmem.Read()
	if err != nil {
		t.Fatal(err)
	}
	w := Worker{Memory: size.Bytes(have.Total + 1)}
	if _, err := w.memory(true, "/data"); err == nil || !strings.Contains(err.Error(), "of memory (give less with --memory") {
		t.Errorf("more than the machine has: %v", err)
	}
	w = Worker{Memory: size.MiB, Tiers: []tier.Config{{Dir: "/ram", Medium: tier.Memory}}}
	var usage usageError
	if _, err := w.memory(true, "/data"); !errors.As(err, &usage) || !strings.Contains(err.Error(), "/ram") {
		t.Errorf("beside a directory in memory: %v", err)
	}
}

// The default is a quarter of the memory at most, and stays what it was at the
// first start.
func TestDefaultMemory(t *testing.T) {
	have, err := hostmem.Read()
	if err != nil {
		t.Fatal(err)
	}
	quarter := size.Bytes(have.Total / 4)
	if got, err := defaultMemory(0); err != nil || got > quarter {
		t.Errorf("%v, %v of %+v", got, err, have)
	}
	for first, want := range map[size.Bytes]size.Bytes{5 * size.MiB: 5 * size.MiB, quarter + 1: quarter} {
		if got, err := defaultMemory(first); err != nil || got != want {
			t.Errorf("after %v at first: %v, %v, want %v", first, got, err, want)
		}
	}
}

// What nobody said the size of has at the next start the size of the first.
func TestSizesAreKept(t *testing.T) {
	first := &plan{dataDir: t.TempDir()}
	if err := first.sizes(&Worker{DataDir: first.dataDir}, nil); err != nil {
		t.Fatal(err)
	}
	if first.kept.Cache != first.caches[0].Capacity || first.kept.Memory != first.memory.size || first.memory.given {
		t.Errorf("kept is %+v of %+v and %+v", first.kept, first.caches, first.memory)
	}
	known := binding{URI: "s3://b", Cache: 1 << 60, Memory: 5 * size.MiB}
	for _, c := range []struct {
		name  string
		plan  plan
		tiers []tier.Config
		want  size.Bytes // memory
	}{
		{"nothing is said", plan{}, nil, 5 * size.MiB},
		{"no memory is asked for", plan{given: true}, nil, 0},
		{"a directory in memory", plan{}, []tier.Config{{Dir: "/r", Medium: tier.Memory}}, 0},
	} {
		p := c.plan
		p.dataDir, p.caches = first.dataDir, c.tiers
		if err := p.sizes(&Worker{DataDir: p.dataDir}, &known); err != nil {
			t.Fatal(err)
		}
		if c.tiers == nil && p.caches[0].Capacity != 1<<60 {
			t.Errorf("%s: the cache is %+v", c.name, p.caches[0])
		}
		if p.memory.size != c.want || !reflect.DeepEqual(p.kept, known) {
			t.Errorf("%s: memory %+v, kept %+v", c.name, p.memory, p.kept)
		}
	}
}

// The heap has what the memory tier leaves of the container, and never next to
// nothing.
func TestHeapLimit(t *testing.T) {
	const total = 1000 << 20
	for capacity, want := range map[size.Bytes]int64{0: 900 << 20, 500 << 20: 450 << 20, 990 << 20: 225 << 20} {
		got := heapLimit(total, []tier.Config{{Medium: tier.SSD, Capacity: 1 << 40}, {Medium: tier.Memory, Capacity: capacity}})
		if got != want {
			t.Errorf("with a memory tier of %v: %d, want %d", capacity, got, want)
		}
	}
}

func TestMemoryDirReady(t *testing.T) {
	dir := inSharedMemory(t)
	var log bytes.Buffer
	m := memoryTier{size: 8 * size.MiB, given: true, dir: dir, own: true}
	ready := func() (tier.Config, bool, error) {
		return m.ready(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "c1")
	}
	c, made, err := ready()
	if err != nil || !made || c.Dir != dir || c.Medium != tier.Memory || c.Capacity != 8*size.MiB {
		t.Fatalf("%+v, made %v, %v", c, made, err)
	}
	if _, made, err := ready(); err != nil || made {
		t.Fatalf("the second time: made %v, %v", made, err)
	}
	format := filepath.Join(dir, "format")
	write := func(cluster string) {
		t.Helper()
		if err := os.WriteFile(format, []byte(`{"format":1,"cluster_id":"`+cluster+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("c1")
	if _, _, err := ready(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(format); err != nil {
		t.Errorf("what this cluster left is gone: %v", err)
	}
	// What the user named is not ours to empty.
	write("c2")
	m.own = false
	if _, _, err := ready(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(format); err != nil {
		t.Errorf("another cluster's in a directory of the user's: %v", err)
	}
	m.own = true
	if _, _, err := ready(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(format); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what an earlier cluster left is there: %v", err)
	}
	if log.Len() > 0 {
		t.Errorf("it logged %s", &log)
	}
}

// A directory that others can reach, or a link to elsewhere, is never used,
// whether the user asked for a memory tier or not.
func TestMemoryDirOfOthers(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"open to others": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770))
		},
		"a link": func(dir string) error {
			return errors.Join(os.Mkdir(dir+"2", 0o700), os.Symlink(dir+"2", dir))
		},
		"a file": func(dir string) error { return os.WriteFile(dir, nil, 0o700) },
		"of another user": func(dir string) error {
			if os.Getuid() != 0 {
				t.Skip("NOT TESTED: needs root")
			}
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345))
		},
	} {
		for _, given := range []bool{true, false} {
			dir := inSharedMemory(t)
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			m := memoryTier{size: 8 * size.MiB, given: given, dir: dir, own: true}
			_, made, err := m.ready(t.Context(), slog.New(slog.DiscardHandler), "")
			if !errors.Is(err, errs.Permission) || made || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s, given %v: made %v, %v", name, given, made, err)
			}
		}
	}
}

// Where there is no tmpfs, or too little of it, a tier that was asked for is
// an error and one that was not is left out, with a warning.
func TestNoMemoryToBeHad(t *testing.T) {
	for name, m := range map[string]memoryTier{
		"no tmpfs":   {size: 8 * size.MiB, dir: filepath.Join("/proc", "x")},
		"too little": {size: 1 * size.MiB, dir: inSharedMemory(t)},
	} {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		c, made, err := m.ready(t.Context(), logger, "")
		if err != nil || made || c.Dir != "" || !strings.Contains(log.String(), m.dir) || !strings.Contains(log.String(), "there is no memory tier") {
			t.Errorf("%s: %+v, made %v, %v; it logged %s", name, c, made, err, &log)
		}
		m.given = true
		if _, _, err := m.ready(t.Context(), logger, ""); err == nil || !strings.Contains(err.Error(), m.dir) || !strings.Contains(err.Error(), "--memory") {
			t.Errorf("%s, asked for: %v", name, err)
		}
	}
}
