package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func trim(s string) string { return strings.TrimSpace(s) }

// isIOError reports whether err is how a read fails when the process behind
// the mount dies.
func isIOError(err error) bool {
	for _, e := range []syscall.Errno{unix.ENOTCONN, unix.EIO, unix.ECONNABORTED, unix.EINTR, unix.ENODEV, unix.ENOENT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func checkSums(t *testing.T, j job, files, bytes int64) {
	t.Helper()
	for _, c := range []struct {
		what string
		sums
		want int64
	}{{"files", j.Files, files}, {"bytes", j.Bytes, bytes}} {
		if c.Listed != c.want || c.Loaded+c.AlreadyCached != c.want || c.Failed != 0 || c.Gone != 0 {
			t.Errorf("job %s, %s: %+v, want %d listed and all of them loaded or already cached", j.ID, c.what, c.sums, c.want)
		}
	}
}

// worker reads one counter from the worker's /metrics and requires at least
// that much.
func (u *up) worker(metric string, atLeast float64) error {
	u.t.Helper()
	req, err := http.NewRequestWithContext(u.t.Context(), http.MethodGet, "http://"+u.address("worker", "http")+"/metrics", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(trim(line), " ")
		if !ok || (name != metric && !strings.HasPrefix(name, metric+"{")) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return err
		}
		sum, found = sum+v, true
	}
	if !found || sum < atLeast {
		return fmt.Errorf("metric %s is %v (there: %t), want at least %v", metric, sum, found, atLeast)
	}
	return nil
}

// A load job counts files and bytes exactly, the first time and the second.
func TestLoadSums(t *testing.T) {
	s := newStore(t)
	s.fill(t, "a", 3<<20, 70<<20, 0, 1)
	s.fill(t, "b", 5, 6, 7)
	u := newUp(t, s, false)
	u.start()

	u.run("load", "/a")
	u.run("load", "/")
	var jobs []job
	u.query(&jobs, "jobs", "ls")
	if len(jobs) != 2 {
		t.Fatalf("jobs ls shows %d jobs, want 2", len(jobs))
	}
	second, first := jobs[0], jobs[1]
	checkSums(t, second, 7, s.bytes())
	checkSums(t, first, 4, 73<<20+1)
	if got, want := second.Files.Loaded, int64(3); got != want {
		t.Errorf("the second job loaded %d files, want the %d that the first had not", got, want)
	}
	if got, want := u.cached(), (usage{Files: 7, Bytes: s.bytes(), CachedBytes: s.bytes()}); got != want {
		t.Errorf("du --cached: %+v, want %+v", got, want)
	}
	if _, err := u.try("load", "/no/such/path"); err == nil {
		t.Error("load of a path that does not exist succeeded")
	}
}

// ls, stat, cat, get and free do what the contract says, by namespace path
// and by path below the mount.
func TestCommands(t *testing.T) {
	s := newStore(t)
	s.fill(t, "d", 300<<10, 10)
	s.Put(t, "top.txt", []byte("hello"))
	u := newUp(t, s, true)
	u.start()

	type entry struct {
		Path string `json:"path"`
		Type string `json:"type"`
		Size int64  `json:"size"`
	}
	var ls []entry
	u.query(&ls, "ls", "/")
	want := []entry{{"/d", "dir", 0}, {"/top.txt", "file", 5}}
	if diff := cmp.Diff(want, ls); diff != "" {
		t.Errorf("ls / (-want +got):\n%s", diff)
	}
	var st struct {
		entry
		FileID  string `json:"file_id"`
		Version string `json:"version"`
	}
	u.query(&st, "stat", filepath.Join(u.mountPoint, "top.txt"))
	if st.Path != "/top.txt" || st.Size != 5 || len(st.FileID) != 32 || st.Version == "" {
		t.Errorf("stat of a path below the mount: %+v", st)
	}
	if got := u.run("cat", "/top.txt", "--offset", "1", "--length", "3"); got != "ell" {
		t.Errorf("cat --offset 1 --length 3: %q", got)
	}
	if _, err := u.try("cat", "/nothing"); err == nil || !strings.Contains(err.Error(), "/nothing") {
		t.Errorf("cat of what does not exist: %v, want an error that names the path", err)
	}
	dst := filepath.Join(t.TempDir(), "copy")
	u.run("get", "-r", "/d", dst)
	for key, size := range map[string]int64{"d/0000.bin": 300 << 10, "d/0001.bin": 10} {
		if err := compareFile(filepath.Join(dst, filepath.Base(key)), key, size); err != nil {
			t.Error(err)
		}
	}
	if u.cached().CachedBytes == 0 {
		t.Error("nothing is cached after get")
	}
	u.run("free", "/")
	if got := u.cached().CachedBytes; got != 0 {
		t.Errorf("%d bytes are cached after free", got)
	}
	var got [64]byte
	n, err := unix.Getxattr(filepath.Join(u.mountPoint, "top.txt"), "user.millrace.path", got[:])
	if err != nil || string(got[:n]) != "/top.txt" {
		t.Errorf("user.millrace.path: %q, %v", got[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(filepath.Join(u.mountPoint, "top.txt"), "user.other", got[:]); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an unknown xattr: %v, want ENODATA", err)
	}
	if err := os.WriteFile(filepath.Join(u.mountPoint, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("creating a file: %v, want EROFS", err)
	}
}

// `up` on another URI with the same data directory is refused, and changes
// nothing.
func TestAnotherURIIsRefused(t *testing.T) {
	s := newStore(t)
	s.fill(t, "f", 1000)
	u := newUp(t, s, false)
	u.start()
	u.run("load", "/")
	u.stop()
	out, err := u.try("up", "s3://another-bucket", "--data-dir", u.dataDir)
	if err == nil || !strings.Contains(err.Error(), "s3://another-bucket") || !strings.Contains(err.Error(), u.uri) {
		t.Errorf("up on another URI: %q, %v; want an error that names both", out, err)
	}
	u.start()
	if got := u.cached().CachedBytes; got != 1000 {
		t.Errorf("%d bytes are cached after the refused start, want 1000", got)
	}
}

// A bucket that is not there and credentials that are wrong are told as what
// they are, and nothing is left behind.
func TestUpRefusesWhatCannotWork(t *testing.T) {
	s := newStore(t)
	u := newUp(t, s, false)
	for _, c := range []struct {
		name, uri string
		env       string
		want      string
	}{
		{"missing bucket", "s3://no-such-bucket", "", "no-such-bucket"},
		{"wrong secret", s.URI(""), "AWS_SECRET_ACCESS_KEY=wrong-secret-0123456789", "check the access key and the secret key"},
		{"unknown scheme", "gopher://x", "", "gopher"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := *u
			v.t = t
			if c.env != "" {
				v.env = append(append([]string(nil), u.env...), c.env)
			}
			dir := filepath.Join(t.TempDir(), "data")
			_, err := v.try("up", c.uri, "--data-dir", dir)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), c.want) {
				t.Errorf("%v; want an error that says %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "wrong-secret") {
				t.Error("the error shows a secret")
			}
		})
	}
}
