package e2e_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// sharedMemory returns a directory of the test's own in /dev/shm.
func sharedMemory(t *testing.T) string {
	t.Helper()
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skipf("NOT TESTED: %s is no tmpfs here", shm)
	}
	dir, err := os.MkdirTemp(shm, "millrace-e2e-") //nolint:usetesting // on a tmpfs, where t.TempDir is not
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// memoryDir is the directory of the memory tier in use, which the test then
// removes at its end. There must be just one, and one of another medium.
func (u *up) memoryDir(capacity int64) string {
	u.t.Helper()
	var dir string
	tiers := u.status().Workers[0].Tiers
	for _, d := range tiers {
		if d.Dir == "" || d.UsedBytes <= 0 || d.HeldBytes == nil || d.State != "ok" {
			u.t.Errorf("status says of a directory: %+v", d)
		}
		if d.Medium != "memory" {
			continue
		}
		dir = d.Dir
		u.t.Cleanup(func() {
			u.kill()
			if err := os.RemoveAll(dir); err != nil {
				u.t.Error(err)
			}
		})
		if d.CapacityBytes != capacity {
			u.t.Errorf("the memory tier has %d bytes, want %d", d.CapacityBytes, capacity)
		}
	}
	if dir == "" || len(tiers) != 2 {
		u.t.Fatalf("the tiers are %+v, want one in memory and one on a disk", tiers)
	}
	return dir
}

// The memory tier lies in /dev/shm under a name of the data directory's, is
// private, and comes back warm after kill -9; when the data directory is made
// anew, nothing of its earlier life is served.
func TestMemoryTier(t *testing.T) {
	t.Parallel()
	sharedMemory(t) // or skip
	s := newStore(t)
	s.fill(t, "f", 100<<10, 1, 0, 300<<10)
	u := newUp(t, s, true, "--memory", "32MiB")
	u.args = append(u.args, u.cacheOption("64MiB"))
	u.start()
	dir := u.memoryDir(32 << 20)
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o700 || filepath.Dir(dir) != "/dev/shm" {
		t.Errorf("the directory %s: %v, %v", dir, fi, err)
	}
	u.readAll(s)
	before := s.proxy.Snapshot().Get
	u.kill()
	u.start()
	if again := u.memoryDir(32 << 20); again != dir {
		t.Errorf("the directory was %s and is %s", dir, again)
	}
	u.readAll(s)
	if got := s.proxy.Snapshot().Get; got != before {
		t.Errorf("%d GETs after kill -9, want none", got-before)
	}
	u.stop()
	if err := os.RemoveAll(u.dataDir); err != nil {
		t.Fatal(err)
	}
	u.start()
	if got := u.cached().CachedBytes; got != 0 {
		t.Errorf("%d bytes are cached in a new data directory", got)
	}
	u.readAll(s)
	u.stop()
}

// A start that fails leaves nothing in memory.
func TestMemoryOfAFailedStart(t *testing.T) {
	t.Parallel()
	shm := sharedMemory(t)
	s := newStore(t)
	u := newUp(t, s, false)
	u.env = append(u.env, "MILLRACE_WORKER_MEMORY_DIR="+filepath.Join(shm, "m"))
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"a cache directory that is none": {"--memory", "8MiB", "--cache", foreign + ":8MiB"},
		"more than the machine has":      {"--memory", "1000TiB"},
		"less than a directory needs":    {"--memory", "1MiB"},
	} {
		_, err := u.try(append([]string{"up", u.uri, "--data-dir", u.dataDir, "--random-ports"}, args...)...)
		if err == nil {
			t.Fatalf("%s: it started", name)
		}
		for _, dir := range []string{filepath.Join(shm, "m"), u.dataDir} {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v, want none", name, dir, err)
			}
		}
	}
	_, err := u.try("up", u.uri, "--data-dir", u.dataDir, "--random-ports", "--memory", "1000TiB")
	says(t, err, shm, "1000 TiB", "of memory", "give less with --memory")
}

// A memory directory that the user named and that holds another cluster's
// pages is refused and left alone.
func TestMemoryOfAnotherCluster(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(sharedMemory(t), "m")
	s := newStore(t)
	s.fill(t, "f", 1000)
	u := newUp(t, s, false, "--memory", "8MiB")
	u.args = append(u.args, u.cacheOption("8MiB"))
	u.env = append(u.env, "MILLRACE_WORKER_MEMORY_DIR="+dir)
	u.start()
	u.run("load", "/")
	u.stop()
	other := newUp(t, s, false)
	other.env = u.env
	_, err := other.try("up", other.uri, "--data-dir", other.dataDir, "--random-ports", "--memory", "8MiB")
	says(t, err, dir, "belongs to cluster", "name another directory")
	u.start()
	if got := u.cached().CachedBytes; got != 1000 {
		t.Errorf("%d bytes are cached after the refused start, want 1000", got)
	}
}

// With a small /dev/shm, as containers have it, the memory tier takes what
// there is, and says so; with next to nothing, there is none. Reads work.
func TestSmallSharedMemory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, size string
		says       []string
		tiers      int
	}{
		{"64 MiB", "64m", []string{"takes what its tmpfs has room for", "takes=\"58 MiB\"", "tmpfs=\"64 MiB\"", "--shm-size"}, 2},
		{"1 MiB", "1m", []string{"there is no memory tier", "tmpfs of 1.0 MiB", "--shm-size"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const mount = ownMounts + `mount -t tmpfs -o size="$0" none /dev/shm && exec "$@"`
			if out, err := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", mount, c.size, "true").CombinedOutput(); err != nil {
				t.Skipf("NOT TESTED: no mount namespace can be had here: %v: %s", err, out)
			}
			s := newStore(t)
			s.fill(t, "f", 5<<20, 20<<20, 20<<20, 20<<20, 20<<20)
			u := newUp(t, s, false)
			u.args = []string{u.cacheOption("1GiB")}
			u.wrap = []string{"unshare", "-m", "sh", "-c", mount, c.size}
			u.env = append(u.env, "MILLRACE_WORKER_MEMORY=") // the default
			u.start()
			says(t, errors.New(u.stderr.String()), append(c.says, "/dev/shm/millrace-")...)
			if got := u.status().Workers[0].Tiers; len(got) != c.tiers {
				t.Errorf("the tiers are %+v, want %d", got, c.tiers)
			}
			for range 2 {
				to := filepath.Join(t.TempDir(), "copy")
				u.run("get", "-r", "/", to)
				for key, size := range s.objects {
					if err := compareFile(filepath.Join(to, key), key, size); err != nil {
						t.Error(err)
					}
				}
			}
			if used, limit := u.cached().CachedBytes, s.bytes(); used != limit {
				t.Errorf("%d bytes are cached of %d, with room for all", used, limit)
			}
			u.stop()
		})
	}
}
