package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func openFile(t *testing.T, fsys FS, name string) File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func allocated(t *testing.T, f File) int64 {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Allocated(fi)
}

func TestOSAllocation(t *testing.T) {
	f := openFile(t, OS(), filepath.Join(t.TempDir(), "f"))
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, f); n != 0 {
		t.Fatalf("a sparse file takes %d bytes", n)
	}
	if err := f.Fallocate(0, 256<<10); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("SKIPPED: this file system has no fallocate")
	} else if err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, f); n < 256<<10 {
		t.Fatalf("%d bytes after fallocate", n)
	}
	data := bytes.Repeat([]byte{7}, 64<<10)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.PunchHole(0, 256<<10); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, f); n != 0 {
		t.Fatalf("%d bytes after a punch", n)
	}
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, len(data))) {
		t.Fatalf("a hole does not read as zeros: %v", err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != 1<<20 {
		t.Fatal(fi.Size(), err)
	}
}

func TestOSLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	a, b := openFile(t, OS(), name), openFile(t, OS(), name)
	if err := a.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := b.Lock(); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Lock(); err != nil {
		t.Fatal(err)
	}
}

func TestOSLease(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f := openFile(t, OS(), name)
	if err := f.Lease(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("SKIPPED: this file system has no leases")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := f.Unlease(); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); !errors.Is(err, ErrShared) {
		t.Fatal(err)
	}
	// A mapping outlives its descriptor, and the kernel still knows.
	m, err := syscall.Mmap(int(other.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); !errors.Is(err, ErrShared) {
		t.Fatal(err)
	}
	if err := syscall.Munmap(m); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); err != nil {
		t.Fatal(err)
	}
}

func TestOSRoom(t *testing.T) {
	room, err := OS().Statfs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if room.BlockSize < 512 || room.Total < room.Free || room.Total == 0 {
		t.Fatalf("%+v", room)
	}
	if _, err := OS().Statfs(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for _, text := range []string{"first and longer", "second"} {
		if err := WriteFileAtomic(OS(), dir, name+".tmp", name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(OS(), name, 100)
		if err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	ffs := Faulty(OS(), Rule{Ops: []string{"sync"}, Err: "EIO"})
	if err := WriteFileAtomic(ffs, dir, name+".tmp", name, []byte("third")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if got, err := ReadFile(OS(), name, 3); err != nil || string(got) != "sec" {
		t.Fatalf("%q, %v", got, err)
	}
}

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
		"syncdir": ffs.SyncDir(dir), "truncate": f.Truncate(1), "sync": f.Sync(), "syncfs": f.SyncFS(),
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
