package localfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/ufstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// put replaces a file by another inode.
func put(t testing.TB, dir, path string, data []byte) {
	t.Helper()
	name := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(dir), "put")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tmp.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := tmp.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		t.Fatal(err)
	}
}

func fixture(chunk int) func(t *testing.T) ufstest.Fixture {
	return func(t *testing.T) ufstest.Fixture {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return ufstest.Fixture{
			Open: func(t testing.TB, observer ufs.Observer) ufs.Store {
				t.Helper()
				s, err := open(ufs.Config{URI: "file://" + dir, Observer: observer})
				if err != nil {
					t.Fatal(err)
				}
				s.chunk = chunk
				return s
			},
			OpenWith: func(t testing.TB, options map[string]string) ufs.Store {
				t.Helper()
				s, err := Open(t.Context(), ufs.Config{URI: "file://" + dir, Options: options})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Put: func(t testing.TB, path string, data []byte) { t.Helper(); put(t, dir, path, data) },
			PutMany: func(t testing.TB, n int, object func(int) (string, []byte)) {
				t.Helper()
				for i := range n {
					path, data := object(i)
					put(t, dir, path, data)
				}
			},
			Delete: func(t testing.TB, path string) {
				t.Helper()
				if err := os.Remove(filepath.Join(dir, path)); err != nil {
					t.Fatal(err)
				}
			},
			Mkdir: func(t testing.TB, path string) {
				t.Helper()
				if err := os.Mkdir(filepath.Join(dir, path), 0o755); err != nil {
					t.Fatal(err)
				}
			},
		}
	}
}

func TestConformance(t *testing.T) { ufstest.Run(t, fixture(1<<16)) }

// TestConformanceInChunks reads each directory again for every few names.
func TestConformanceInChunks(t *testing.T) { ufstest.Run(t, fixture(150)) }

func openDir(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := open(ufs.Config{URI: "file://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenInvalid(t *testing.T) {
	for _, cfg := range []ufs.Config{
		{URI: "file://relative"},
		{URI: "file:///a\x00b"},
		{URI: "s3://a"},
		{URI: "file:///tmp", Options: map[string]string{"endpoint": "x"}},
	} {
		if _, err := Open(t.Context(), cfg); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := Open(t.Context(), ufs.Config{URI: "file:///nowhere", Options: map[string]string{"ttl": "1s"}}); err != nil {
		t.Errorf("opening looks at the directory: %v", err)
	}
}

func TestMissingRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	s := openDir(t, dir)
	if _, err := s.Stat(t.Context(), ""); !errors.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if info, err := s.Stat(t.Context(), ""); err != nil || info.Type != ufs.Dir {
		t.Errorf("got %+v, %v", info, err)
	}
}

// TestNothingLeadsOut has links out of the root, at the end and in the middle
// of paths.
func TestNothingLeadsOut(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "root")
	put(t, base+"/outside", "secret", []byte("secret"))
	put(t, dir, "in/file", []byte("inside"))
	for link, target := range map[string]string{
		"abs": base + "/outside/secret", "rel": "../outside/secret", "dir": base + "/outside", "up": "..",
		"broken": "nothing", "ok": "in/file", "okdir": "in", "in/loop": "..", "self": "self",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openDir(t, dir)
	for path, want := range map[string]errs.Kind{
		"abs": errs.Permission, "rel": errs.Permission, "dir": errs.Permission, "dir/secret": errs.Permission,
		"up": errs.Permission, "up/outside/secret": errs.Permission, "broken": errs.NotFound, "self": errs.NotFound, "pipe": errs.NotFound,
	} {
		if _, err := s.Stat(t.Context(), path); errs.KindOf(err) != want {
			t.Errorf("Stat(%q): %v, want %v", path, err, want)
		}
		_, err := s.Read(t.Context(), ufs.Object{Path: path, Tag: "x", Length: 6}, block.Extent{Length: 6})
		if kind := errs.KindOf(err); kind != want && path != "pipe" {
			t.Errorf("Read(%q): %v, want %v", path, err, want)
		} else if err == nil {
			t.Errorf("Read(%q) succeeds", path)
		}
	}
	list := func(opts ufs.ListOptions) []string {
		var got []string
		for info, err := range s.List(t.Context(), "", opts) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, info.Path)
		}
		return got
	}
	if diff := cmp.Diff([]string{"in", "ok", "okdir"}, list(ufs.ListOptions{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"in/file", "ok", "okdir/file"}, list(ufs.ListOptions{Recursive: true})); diff != "" {
		t.Error(diff)
	}
	info, err := s.Stat(t.Context(), "ok")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Read(t.Context(), ufs.Object{Path: "ok", Tag: info.Tag, Length: info.Size}, block.Extent{Length: 6})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "inside" {
		t.Errorf("through a link: %q, %v", got, err)
	}
}

// TestOverwrittenInPlace changes the file under an open reader, in place and
// without changing its length.
func TestOverwrittenInPlace(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, bytes.Repeat([]byte("a"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	s := openDir(t, dir)
	info, err := s.Stat(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Read(t.Context(), ufs.Object{Path: "f", Tag: info.Tag, Length: 1000}, block.Extent{Length: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.ReadFull(r, make([]byte, 500)); err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	// The change time has the grain of the kernel's tick: write until it moved.
	for now := info; now.Tag == info.Tag; {
		if err := os.WriteFile(name, bytes.Repeat([]byte("b"), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		if now, err = s.Stat(t.Context(), "f"); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.Read(make([]byte, 500)); n != 0 || !errors.Is(err, errs.Stale) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestUnsettled(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "f", []byte("x"))
	s := openDir(t, dir)
	made, err := s.Stat(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		age  time.Duration
		want bool
	}{{0, true}, {time.Second, true}, {settleTime + time.Second, false}, {time.Hour, false}} {
		s.now = func() time.Time { return made.MTime.Add(tc.age) }
		info, err := s.Stat(t.Context(), "f")
		if err != nil {
			t.Fatal(err)
		}
		if info.Unsettled != tc.want {
			t.Errorf("at the age %v: unsettled %v", tc.age, info.Unsettled)
		}
		for listed, err := range s.List(t.Context(), "", ufs.ListOptions{}) {
			if err != nil || listed.Unsettled != tc.want {
				t.Errorf("at the age %v: listed as %+v, %v", tc.age, listed, err)
			}
		}
	}
}
