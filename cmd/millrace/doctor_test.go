package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"millrace/fuse"
	"millrace/internal/size"
	"millrace/tier"
)

func newDoctor() *doctor { return &doctor{app: &app{}, settings: defaultSettings()} }

// the returns the finding of a check, which must be the only one of its name.
func (d *doctor) the(t *testing.T, check string) finding {
	t.Helper()
	var found []finding
	for _, f := range d.findings {
		if f.Check == check {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d findings of %q in %+v", len(found), check, d.findings)
	}
	return found[0]
}

func TestDoctorWorst(t *testing.T) {
	for _, tc := range []struct {
		states string
		want   string
	}{
		{"", findingOK}, {"ok ok", findingOK}, {"ok warning ok", findingWarning}, {"warning problem ok", findingProblem},
	} {
		d := newDoctor()
		for state := range strings.FieldsSeq(tc.states) {
			d.add(state, "x", "", "")
		}
		if got := d.worst(); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.states, got, tc.want)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][3]int{
		"6.9.3-amd64": {6, 9, 1}, "5.15.0-100-generic": {5, 15, 1}, "6.18": {6, 18, 1}, "": {}, "x.y": {},
	} {
		major, minor, ok := kernelVersion(release)
		if ok != (want[2] == 1) || ok && (major != want[0] || minor != want[1]) {
			t.Errorf("%q: %d.%d, %v", release, major, minor, ok)
		}
	}
}

func TestCacheFS(t *testing.T) {
	for magic, suits := range map[int64]bool{
		unix.EXT4_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true, unix.XFS_SUPER_MAGIC: true, 0x1234: true,
		unix.OVERLAYFS_SUPER_MAGIC: false, unix.NFS_SUPER_MAGIC: false, 0x65735546: false,
	} {
		if got := cacheFSOf(magic); (got.trouble == "") != suits || got.name == "" {
			t.Errorf("%#x: %+v", magic, got)
		}
	}
}

// TestDoctorCaches: directories that can be used, and that cannot.
func TestDoctorCaches(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cache := func(dir string, capacity size.Bytes) tier.Config {
		c := tier.DefaultConfig()
		c.Dir, c.Capacity = dir, capacity
		return c
	}
	for _, tc := range []struct {
		name, state string
		c           tier.Config
	}{
		{"there", findingOK, cache(dir, 1<<20)},
		{"not yet there", findingOK, cache(filepath.Join(dir, "a/b"), 1<<20)},
		{"too large", findingWarning, cache(dir, 1<<60)},
		{"a file", findingProblem, cache(file, 1<<20)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDoctor()
			d.checkCache(tc.c)
			if f := d.the(t, "cache "+tc.c.Dir); f.State != tc.state || (f.Advice == "") != (f.State == findingOK) {
				t.Fatalf("%+v", f)
			}
		})
	}
}

func TestDoctorOpens(t *testing.T) {
	const metrics = `# HELP millrace_fuse_opens_total Opened files
# TYPE millrace_fuse_opens_total counter
millrace_fuse_opens_total{mode="copy",reason="empty"} 0
millrace_fuse_opens_total{mode="copy",reason="not_cached"} 12
millrace_fuse_opens_total{mode="copy",reason="not_offered"} %d
millrace_fuse_opens_total{mode="passthrough",reason="complete"} 1.5e+06
millrace_fuse_opens_total_of_another 7
`
	want := map[openWay]int64{
		{"copy", "not_cached"}: 12, {"copy", "not_offered"}: 3, {"passthrough", "complete"}: 1_500_000,
	}
	if diff := cmp.Diff(want, opensOf(fmt.Sprintf(metrics, 3)), cmp.AllowUnexported(openWay{})); diff != "" {
		t.Fatal(diff)
	}
	for refused, state := range map[int]string{0: findingOK, 3: findingWarning} {
		d := newDoctor()
		d.tellOpens("mount /m", "/", opensOf(fmt.Sprintf(metrics, refused)))
		f := d.the(t, "mount /m")
		if f.State != state || !strings.Contains(f.Detail, "1500000 by passthrough, 12 copied since they were not wholly cached") {
			t.Errorf("%+v", f)
		}
	}
}

// TestDoctorMount finds a mount's counters by its data directory, or by that
// of an `up`.
func TestDoctorMount(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `millrace_fuse_opens_total{mode="copy",reason="switched_off"} 5`)
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	point, dir := t.TempDir(), t.TempDir()
	write := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"mount-0":{"http":%q},"master-0":{"grpc":"127.0.0.1:1"}}`, address)
		if err := os.WriteFile(filepath.Join(dir, "addresses.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	escaped := url.PathEscape(strings.TrimPrefix(point, "/"))
	write(filepath.Join(dir, "mounts", escaped))
	write(filepath.Join(dir, "up"))
	for name, set := range map[string]func(d *doctor){
		"of the configuration": func(d *doctor) { d.settings.FUSE.DataDir = filepath.Join(dir, "mounts") },
		"of mounts":            func(d *doctor) { d.dataDirs = []string{filepath.Join(dir, "mounts")} },
		"of up":                func(d *doctor) { d.dataDirs = []string{dir, filepath.Join(dir, "up")} },
	} {
		d := newDoctor()
		set(d)
		d.checkMount(t.Context(), fuse.Place{MountPoint: point, Path: "/", Masters: []string{"127.0.0.1:1"}})
		if f := d.the(t, "mount "+point); f.State != findingWarning || !strings.Contains(f.Detail, "5 copied since passthrough is switched off") {
			t.Errorf("%s: %+v", name, f)
		}
	}
	d := newDoctor()
	d.dataDirs = []string{filepath.Join(dir, "up")} // another cluster's
	d.settings.FUSE.DataDir, d.settings.Master.DataDir = dir, dir
	d.checkMount(t.Context(), fuse.Place{MountPoint: point, Path: "/", Masters: []string{"127.0.0.1:2"}})
	if f := d.the(t, "mount "+point); !strings.Contains(f.Detail, "is not known") {
		t.Errorf("%+v", f)
	}
}

func TestClockSkew(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 10, 500, time.UTC)
	for _, tc := range []struct{ there, want time.Duration }{
		{0, 0}, {-500, 0}, {-time.Second, 0}, // it tells whole seconds
		{time.Minute, time.Minute - 100}, {-time.Minute, -time.Minute + time.Second},
	} {
		if got := clockSkew(now.Add(tc.there), now, now.Add(100)); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.there, got, tc.want)
		}
	}
}

// TestDoctorClock: a host whose clock is wrong is a warning, and one with which
// no ticket holds a problem.
func TestDoctorClock(t *testing.T) {
	for skew, want := range map[time.Duration]string{0: findingOK, time.Minute: findingWarning, -10 * time.Minute: findingProblem} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
		}))
		d := newDoctor()
		d.checkClock(t.Context(), "clock", strings.TrimPrefix(server.URL, "http://"))
		server.Close()
		if f := d.the(t, "clock"); f.State != want {
			t.Errorf("%v: %+v", skew, f)
		}
	}
}

// TestDoctorWithoutCluster: what is wrong is a problem in JSON and exit 1, and
// the other checks are made all the same, also with a bad configuration.
func TestDoctorWithoutCluster(t *testing.T) {
	config := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(config, []byte("[worker]\nno_such_key = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"doctor", "-o", "json", "--masters", "127.0.0.1:1"},
		{"doctor", "-o", "json", "--config", config},
	} {
		var out, stderr bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		code := run(ctx, args, strings.NewReader(""), &out, &stderr)
		cancel()
		var found []finding
		if err := json.Unmarshal(out.Bytes(), &found); err != nil || code != exitFailed {
			t.Fatalf("%v: exit %d, %v\n%s%s", args, code, err, &out, &stderr)
		}
		d := &doctor{findings: found}
		wantBad := "cluster"
		if args[3] == "--config" {
			wantBad = "configuration"
		}
		if f := d.the(t, wantBad); f.State != findingProblem || f.Advice == "" {
			t.Errorf("%+v", f)
		}
		d.the(t, "passthrough")
		d.the(t, "open files")
	}
}
