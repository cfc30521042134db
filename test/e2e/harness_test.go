package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/rig"
	"millrace/internal/testenv"
)

// patience bounds every wait for something that must happen: it is generous,
// since it only decides how long a broken build takes to fail.
const patience = 60 * time.Second

// binary is the millrace that TestMain built.
var binary string

func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		// A memory tier would stay in /dev/shm; tests of it say --memory.
		"MILLRACE_WORKER_MEMORY": "0",
		// A mount whose process hardly gets to run takes long to end.
		"MILLRACE_FUSE_UNMOUNT_TIMEOUT": "30s",
	} {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if binary = os.Getenv("MILLRACE_BINARY"); binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "millrace")
	build := exec.CommandContext(context.Background(), "go", "build", "-race", "-o", binary, "millrace/cmd/millrace")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build millrace:", err)
		return 1
	}
	return m.Run()
}

// ownMounts begins a shell's command in a mount namespace of its own: it lets go
// of the copies of other tests' mounts, which would not end while it has them.
const ownMounts = `umount -l -a -t fuse.millrace 2>/dev/null; `

// store is an S3 server behind a proxy that counts, with one bucket.
type store struct {
	*testenv.Bucket
	proxy   *testenv.CountingProxy
	objects map[string]int64 // key -> size, as put by fill
	options []string         // further arguments when a cluster binds it
}

func newStore(t *testing.T) *store {
	t.Helper()
	s3 := testenv.StartS3(t)
	return &store{Bucket: s3.Bucket(t, "thread"), proxy: testenv.Proxy(t, s3.Endpoint), objects: map[string]int64{}}
}

// fill puts an object of each size, its content a function of its key.
func (s *store) fill(t *testing.T, prefix string, sizes ...int64) {
	t.Helper()
	keys := make([]string, len(sizes))
	for i, n := range sizes {
		keys[i] = fmt.Sprintf("%s/%04d.bin", prefix, i)
		s.objects[keys[i]] = n
	}
	s.PutMany(t, len(sizes), func(i int) (string, []byte) { return keys[i], content(keys[i], sizes[i]) })
}

func (s *store) bytes() (n int64) {
	for _, size := range s.objects {
		n += size
	}
	return n
}

func content(key string, size int64) []byte {
	b := make([]byte, size)
	rig.NewContent(key, size).ReadAt(b, 0)
	return b
}

// env is the environment of a millrace that uses the store through the proxy.
func (s *store) env() []string {
	return append(s.S3.Env(), "AWS_ENDPOINT_URL="+s.proxy.Endpoint)
}

// cli runs commands of the tool against a cluster.
type cli struct {
	t       *testing.T
	env     []string
	masters string // empty: the default
}

// up is one `millrace up`, which may be killed and started again.
type up struct {
	cli
	proc

	uri        string
	dataDir    string
	mountPoint string // empty: not mounted
	args       []string
	wrap       []string // a command that runs the program
}

// newUp describes an `up` on the store with directories of its own; start
// runs it. mounted says whether there is a FUSE mount.
func newUp(t *testing.T, s *store, mounted bool, args ...string) *up {
	t.Helper()
	return newUpOf(t, s.URI(""), s.env(), mounted, args...)
}

// newUpOf is newUp for any under-store.
func newUpOf(t *testing.T, uri string, env []string, mounted bool, args ...string) *up {
	t.Helper()
	u := &up{cli: cli{t: t, env: env}, uri: uri, dataDir: filepath.Join(t.TempDir(), "data"), args: args}
	if mounted {
		testenv.Require(t, testenv.Fuse, testenv.Root)
		u.mountPoint = filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(u.mountPoint, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(u.cleanup)
	return u
}

// cacheOption is the --cache argument for a cache of that size in the data
// directory.
func (u *up) cacheOption(size string) string {
	return "--cache=" + filepath.Join(u.dataDir, "cache") + ":" + size
}

func (u *up) start() {
	u.t.Helper()
	args := []string{"up", u.uri}
	if u.mountPoint != "" {
		args = append(args, u.mountPoint)
	}
	args = append(args, "--data-dir", u.dataDir, "--random-ports")
	args = append(append(append(slices.Clone(u.wrap), binary), args...), u.args...)
	stdout, w, err := os.Pipe()
	if err != nil {
		u.t.Fatal(err)
	}
	defer stdout.Close()
	err = u.launch(args, u.env, w)
	w.Close()
	if err != nil {
		u.t.Fatal(err)
	}
	if err := stdout.SetReadDeadline(time.Now().Add(patience)); err != nil {
		u.t.Fatal(err)
	}
	var line [4096]byte
	n, err := stdout.Read(line[:])
	if err != nil || !strings.HasPrefix(string(line[:n]), "ready "+u.uri+" ") {
		u.kill()
		u.t.Fatalf("up printed %q (%v); its stderr:\n%s", line[:n], err, u.stderr)
	}
	u.masters = u.address("master", "grpc")
}

// address returns one address of addresses.json.
func (u *up) address(role, name string) string {
	u.t.Helper()
	addr, err := addressOf(u.dataDir, role, name)
	if err != nil {
		u.t.Fatal(err)
	}
	return addr
}

// addressOf reads one address from the addresses.json of a data directory.
func addressOf(dataDir, role, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "addresses.json"))
	if err != nil {
		return "", err
	}
	var roles map[string]map[string]string
	if err := json.Unmarshal(b, &roles); err != nil {
		return "", err
	}
	for r, names := range roles {
		if strings.HasPrefix(r, role) && names[name] != "" {
			return names[name], nil
		}
	}
	return "", fmt.Errorf("addresses.json has no %s address of a %s: %s", name, role, b)
}

// stop ends the process as Ctrl-C does, and requires that it ends cleanly.
func (u *up) stop() {
	u.t.Helper()
	if err := u.terminate(); err != nil {
		u.t.Fatalf("up: %v", err)
	}
}

func (u *up) cleanup() {
	u.kill()
	if u.mountPoint != "" {
		_ = unix.Unmount(u.mountPoint, unix.MNT_DETACH) // what a killed process left
	}
	if u.t.Failed() && u.stderr != nil {
		u.t.Logf("stderr of the last up:\n%s", u.stderr)
	}
}

// try runs `millrace args...` against the cluster.
func (u *cli) try(args ...string) (stdout string, err error) {
	cmd := exec.CommandContext(u.t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), u.env...)
	if u.masters != "" {
		cmd.Env = append(cmd.Env, "MILLRACE_MASTERS="+u.masters)
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("millrace %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out.String(), nil
}

// run is try for commands that must succeed.
func (u *cli) run(args ...string) string {
	u.t.Helper()
	out, err := u.try(args...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

// query runs a command with JSON output and decodes it into v.
func (u *cli) query(v any, args ...string) {
	u.t.Helper()
	out := u.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		u.t.Fatalf("millrace %s printed no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// The promised fields of the JSON that the tests look at.
type (
	usage struct {
		Files       int64 `json:"files"`
		Bytes       int64 `json:"bytes"`
		CachedBytes int64 `json:"cached_bytes"`
	}
	status struct {
		ClusterID string `json:"cluster_id"`
		Leader    string `json:"leader"`
		Workers   []struct {
			ID    string `json:"id"`
			State string `json:"state"`
			Tiers []struct {
				Medium        string `json:"medium"`
				Dir           string `json:"dir"`
				CapacityBytes int64  `json:"capacity_bytes"`
				UsedBytes     int64  `json:"used_bytes"`
				HeldBytes     *int64 `json:"held_bytes"`
				State         string `json:"state"`
			} `json:"tiers"`
		} `json:"workers"`
		Counters struct {
			BytesServed  int64            `json:"bytes_served"`
			UFSBytesRead int64            `json:"ufs_bytes_read"`
			UFSRequests  map[string]int64 `json:"ufs_requests"`
			EvictedBytes int64            `json:"evicted_bytes"`
		} `json:"counters"`
	}
	sums struct {
		Listed        int64 `json:"listed"`
		Loaded        int64 `json:"loaded"`
		AlreadyCached int64 `json:"already_cached"`
		Failed        int64 `json:"failed"`
		Gone          int64 `json:"gone"`
	}
	job struct {
		ID    string `json:"id"`
		State string `json:"state"`
		Files sums   `json:"files"`
		Bytes sums   `json:"bytes"`
		Error string `json:"error"`
	}
)

func (u *cli) status() (s status) {
	u.t.Helper()
	u.query(&s, "status")
	return s
}

func (u *cli) cached() usage {
	u.t.Helper()
	return u.cachedBelow("/")
}

func (u *cli) cachedBelow(path string) usage {
	u.t.Helper()
	var d usage
	u.query(&d, "du", path, "--cached")
	return d
}

// eventually waits until the condition holds; it fails the test with what the
// condition last said.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		runtime.Gosched()
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// readAll reads every object of the store below the mount and compares it.
func (u *up) readAll(s *store) {
	u.t.Helper()
	for key, size := range s.objects {
		if err := compareFile(filepath.Join(u.mountPoint, key), key, size); err != nil {
			u.t.Error(err)
		}
	}
}

// compareFile reads a file to its end and compares it with the object's
// content. The kernel gives up its pages of the file before, or it would
// answer alone.
func compareFile(path, key string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return errors.Join(err, f.Close())
	}
	got, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if int64(len(got)) != size {
		return fmt.Errorf("%s has %d bytes, want %d", key, len(got), size)
	}
	if err := rig.NewContent(key, size).Check(got, 0, make([]byte, size)); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
