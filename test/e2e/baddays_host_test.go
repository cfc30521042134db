package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// A port in use is told by name, with who holds it, before anything starts.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := listen(t)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for flag, what := range map[string]string{
		"--master-port": "the master's gRPC", "--raft-port": "the master's Raft", "--master-http-port": "the master's HTTP",
		"--worker-port": "the worker's gRPC", "--data-port": "the worker's data plane", "--worker-http-port": "the worker's HTTP",
	} {
		u := newUp(t, s, false)
		_, err := u.try("up", u.uri, "--data-dir", u.dataDir, "--random-ports", flag, port)
		says(t, err, l.Addr().String(), what, fmt.Sprintf("in use by process %d (", os.Getpid()), flag)
		if _, err := os.Stat(u.dataDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the data directory of an up that failed: %v, want none", flag, err)
		}
	}
}

// A data directory in use is told by name, with who holds it.
func TestDataDirectoryInUse(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	u := newUp(t, s, false)
	u.start()
	_, err := u.try("up", u.uri, "--data-dir", u.dataDir, "--random-ports")
	says(t, err, u.dataDir, fmt.Sprintf("in use by process %d (", u.child.PID()), "--data-dir")
	u.run("status")
}

// Mount points that cannot be mounted on are refused by `up` and by `mount`.
func TestMountPointRefused(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 1000)
	u := newUp(t, s, true)
	u.start()
	dir := t.TempDir()
	file, full := filepath.Join(dir, "file"), filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, filepath.Join(full, "thesis.txt")} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, point string
		says        []string
		onlyMount   bool // up makes what is missing
	}{
		{"not empty", full, []string{"thesis.txt", "nonempty"}, false},
		{"already mounted", u.mountPoint, []string{"already a mount of Millrace", "millrace umount " + u.mountPoint}, false},
		{"a file", file, []string{"not a directory"}, false},
		{"missing", filepath.Join(dir, "none"), []string{"does not exist", "mkdir " + filepath.Join(dir, "none")}, true},
		{"missing parent", filepath.Join(dir, "none", "none"), []string{"no such file or directory"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := u.try("mount", c.point, "--data-dir", filepath.Join(t.TempDir(), "mount"), "--http-listen", "127.0.0.1:0")
			says(t, err, append(c.says, c.point)...)
			if c.onlyMount {
				return
			}
			data := filepath.Join(t.TempDir(), "data")
			_, err = u.try("up", u.uri, c.point, "--data-dir", data, "--random-ports")
			says(t, err, append(c.says, c.point)...)
			if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the data directory of an up that failed: %v, want none", err)
			}
		})
	}
	u.readAll(s) // the mount that was there stays
}

// A host, or a container, without /dev/fuse.
func TestNoFuseDevice(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Root)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no mount namespace can be had here: %v: %s", err, out)
	}
	s := newStore(t)
	u := newUp(t, s, false)
	point := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", ownMounts+`mount -t tmpfs none /dev && exec "$@"`, "sh",
		binary, "up", u.uri, point, "--data-dir", u.dataDir, "--random-ports")
	cmd.Env = append(os.Environ(), u.env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("up succeeded without /dev/fuse")
	}
	says(t, errors.New(string(out)), point, "/dev/fuse", "modprobe fuse", "--device /dev/fuse")
}

// A process that may have few files open reads all the same, and says at its
// start that it was given few.
func TestFewFileDescriptors(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	s := newStore(t)
	sizes := make([]int64, 150)
	for i := range sizes {
		sizes[i] = int64(10_000 + i)
	}
	s.fill(t, "f", sizes...)
	u := newUp(t, s, true)
	u.wrap = []string{"prlimit", "--nofile=100:100"}
	u.start()
	u.readAll(s)
	readConcurrently(t, u.mountPoint, s.objects, 40)
	says(t, errors.New(u.stderr.String()), "few open files are allowed", "ulimit -n")
	u.stop()
	if _, err := os.ReadDir(u.mountPoint); err != nil {
		t.Errorf("the mount point after SIGTERM: %v", err)
	}
}

// With too few to start at all, the error says so.
func TestNoFileDescriptors(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	s := newStore(t)
	u := newUp(t, s, false)
	cmd := exec.CommandContext(t.Context(), "prlimit", "--nofile=20:20", binary, "up", u.uri, "--data-dir", u.dataDir, "--random-ports")
	cmd.Env = append(os.Environ(), u.env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("up succeeded with 20 file descriptors")
	}
	says(t, errors.New(string(out)), unix.EMFILE.Error(), "may open 20", "ulimit -n")
	if _, err := os.Stat(u.dataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory of an up that failed: %v, want none", err)
	}
}
