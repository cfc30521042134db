package vfs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRules(t *testing.T) {
	for _, text := range []string{
		"write path~data/ nth=3 err=EIO",
		"open,mkdir from=2 err=ENOSPC",
		"write path~x short=100 err=EIO",
		"any err=EROFS",
		"lease err=shared",
	} {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(text, r.String()); diff != "" {
			t.Fatal(diff)
		}
	}
	for _, text := range []string{"", "dance err=EIO", "write", "write err=EWHAT", "write nth=x err=EIO", "write color=red err=EIO"} {
		if r, err := ParseRule(text); err == nil {
			t.Fatalf("%q became %v", text, r)
		}
	}
}

func TestFaulty(t *testing.T) {
	dir := t.TempDir()
	must := func(text string) Rule {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ffs := Faulty(OS(), must("write path~victim nth=2 short=3 err=EIO"), must("read from=2 err=ENOENT"))
	f, other := openFile(t, ffs, filepath.Join(dir, "victim")), openFile(t, ffs, filepath.Join(dir, "other"))
	for i, want := range []error{nil, syscall.EIO, nil} {
		n, err := f.WriteAt([]byte("12345"), int64(10*i))
		if !errors.Is(err, want) || err != nil && n != 3 {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
		if _, err := other.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []error{nil, fs.ErrNotExist, fs.ErrNotExist} {
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, want) {
			t.Fatalf("read %d: %v", i, err)
		}
	}
	if n := ffs.Fired(); n != 3 {
		t.Fatalf("%d fired", n)
	}
	if _, ok := OSFile(f); ok {
		t.Fatal("a wrapped file gives its descriptor away")
	}
	ffs.Set(must("any err=EIO"))
	name := filepath.Join(dir, "n")
	for op, err := range map[string]error{
		"mkdir": ffs.MkdirAll(name, 0o700), "rename": ffs.Rename(name, name), "remove": ffs.Remove(name),
		"syncdir": ffs.SyncDir(dir), "spread": ffs.Spread(dir), "truncate": f.Truncate(1), "sync": f.Sync(), "syncfs": f.SyncFS(),
		"lock": f.Lock(), "lease": f.Lease(), "unlease": f.Unlease(), "fallocate": f.Fallocate(0, 1), "punch": f.PunchHole(0, 1),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", op, err)
		}
	}
	ffs.Set()
	if err := f.Truncate(1); err != nil {
		t.Fatal(err)
	}
}
