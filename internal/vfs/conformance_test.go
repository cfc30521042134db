package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
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

// TestConformance holds every file system to what the block store expects.
func TestConformance(t *testing.T) {
	systems := map[string]func(t *testing.T) (FS, string){
		"OS": func(t *testing.T) (FS, string) { t.Helper(); return OS(), t.TempDir() },
		"Mem": func(t *testing.T) (FS, string) {
			t.Helper()
			m := NewMem(64<<20, 1000)
			if err := m.MkdirAll("/tmp/x", 0o700); err != nil {
				t.Fatal(err)
			}
			return m, "/tmp/x"
		},
		"Faulty": func(t *testing.T) (FS, string) { t.Helper(); return Faulty(OS()), t.TempDir() },
	}
	cases := map[string]func(t *testing.T, fsys FS, dir string){
		"names": conformNames, "errors": conformErrors, "content": conformContent, "unlinked": conformUnlinked,
		"allocation": conformAllocation, "lock": conformLock, "lease": conformLease, "room": conformRoom,
		"atomic": conformAtomic,
	}
	for system, open := range systems {
		for name, test := range cases {
			t.Run(system+"/"+name, func(t *testing.T) {
				fsys, dir := open(t)
				test(t, fsys, dir)
			})
		}
	}
}

func conformNames(t *testing.T, fsys FS, dir string) {
	t.Helper()
	a, b := filepath.Join(dir, "d/e/a"), filepath.Join(dir, "d/b")
	if err := errors.Join(fsys.MkdirAll(filepath.Dir(a), 0o700), fsys.MkdirAll(filepath.Dir(a), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{a, b} {
		if _, err := openFile(t, fsys, name).WriteAt([]byte(filepath.Base(name)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := fsys.Rename(a, b); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if text, err := ReadFile(fsys, b, 10); err != nil || string(text) != "a" {
		t.Fatalf("%q, %v", text, err)
	}
	entries, err := fsys.ReadDir(filepath.Join(dir, "d"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() != (e.Name() == "e") {
			t.Fatal(e)
		}
		names = append(names, e.Name())
	}
	if slices.Sort(names); !slices.Equal(names, []string{"b", "e"}) {
		t.Fatal(names)
	}
	if err := fsys.Spread(dir); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := errors.Join(fsys.Remove(b), fsys.Remove(filepath.Dir(a)), fsys.SyncDir(dir)); err != nil {
		t.Fatal(err)
	}
}

func conformErrors(t *testing.T, fsys FS, dir string) {
	t.Helper()
	name, none := filepath.Join(dir, "f"), filepath.Join(dir, "none")
	openFile(t, fsys, name)
	open := func(name string, flag int) error {
		f, err := fsys.OpenFile(name, flag, 0o600)
		if err == nil {
			_ = f.Close()
		}
		return err
	}
	_, readDir := fsys.ReadDir(none)
	_, stat := fsys.Stat(none)
	for _, tc := range []struct {
		what      string
		got, want error
	}{
		{"open", open(none, os.O_RDWR), fs.ErrNotExist},
		{"open below nothing", open(filepath.Join(none, "x"), os.O_CREATE|os.O_RDWR), fs.ErrNotExist},
		{"exclusive", open(name, os.O_CREATE|os.O_EXCL|os.O_RDWR), fs.ErrExist},
		{"open a directory", open(dir, os.O_RDWR), syscall.EISDIR},
		{"mkdir below a file", fsys.MkdirAll(filepath.Join(name, "x"), 0o700), syscall.ENOTDIR},
		{"remove", fsys.Remove(none), fs.ErrNotExist},
		{"remove a full directory", fsys.Remove(dir), syscall.ENOTEMPTY},
		{"rename", fsys.Rename(none, name), fs.ErrNotExist},
		{"readdir", readDir, fs.ErrNotExist},
		{"stat", stat, fs.ErrNotExist},
		{"syncdir", fsys.SyncDir(none), fs.ErrNotExist},
		{"spread", fsys.Spread(none), fs.ErrNotExist},
	} {
		if !errors.Is(tc.got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a write to a file open for reading: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a read of a closed file: %v", err)
	}
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a second close: %v", err)
	}
}

func conformContent(t *testing.T, fsys FS, dir string) {
	t.Helper()
	f := openFile(t, fsys, filepath.Join(dir, "f"))
	want := make([]byte, 50_000)
	for i, w := range []struct{ off, n int }{{10_000, 9000}, {0, 1}, {4095, 2}, {18_000, 12_288}, {49_999, 1}} {
		for j := range w.n {
			want[w.off+j] = byte(i + 1)
		}
		if n, err := f.WriteAt(want[w.off:w.off+w.n], int64(w.off)); n != w.n || err != nil {
			t.Fatal(n, err)
		}
	}
	check := func(length int) {
		t.Helper()
		got := make([]byte, length+10)
		if n, err := f.ReadAt(got, 0); n != length || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want[:length]) {
			t.Fatalf("read of %d bytes: %d, %v, or other bytes", length, n, err)
		}
	}
	check(50_000)
	if n, err := f.ReadAt(make([]byte, 7), 60_000); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
	if err := f.Truncate(20_000); err != nil {
		t.Fatal(err)
	}
	check(20_000)
	clear(want[20_000:])
	if err := errors.Join(f.Truncate(40_000), f.Sync(), f.SyncFS()); err != nil {
		t.Fatal(err)
	}
	check(40_000)
	if err := f.PunchHole(5000, 10_000); errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EOPNOTSUPP) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	clear(want[5000:15_000])
	check(40_000)
}

// conformUnlinked reads and writes a file whose name went, and whose name
// another file has by now.
func conformUnlinked(t *testing.T, fsys FS, dir string) {
	t.Helper()
	name := filepath.Join(dir, "f")
	f := openFile(t, fsys, name)
	if _, err := f.WriteAt([]byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	if err := fsys.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := openFile(t, fsys, name).WriteAt([]byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("er"), 3); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "older" {
		t.Fatalf("%q, %v", got, err)
	}
	if text, err := ReadFile(fsys, name, 10); err != nil || string(text) != "new" {
		t.Fatalf("%q, %v", text, err)
	}
}

func conformAllocation(t *testing.T, fsys FS, dir string) {
	t.Helper()
	f := openFile(t, fsys, filepath.Join(dir, "f"))
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

func conformLock(t *testing.T, fsys FS, dir string) {
	t.Helper()
	name := filepath.Join(dir, "lock")
	a, b := openFile(t, fsys, name), openFile(t, fsys, name)
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

func conformLease(t *testing.T, fsys FS, dir string) {
	t.Helper()
	name := filepath.Join(dir, "f")
	f := openFile(t, fsys, name)
	if err := f.Lease(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("SKIPPED: this file system has no leases")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := f.Unlease(); err != nil {
		t.Fatal(err)
	}
	if err := f.Unlease(); !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	other, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); !errors.Is(err, ErrShared) {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("an open of a leased file: %v", err)
	}
}

func conformRoom(t *testing.T, fsys FS, dir string) {
	t.Helper()
	room, err := fsys.Statfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if room.BlockSize < 512 || room.Total < room.Free || room.Total == 0 {
		t.Fatalf("%+v", room)
	}
	if _, err := fsys.Statfs(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func conformAtomic(t *testing.T, fsys FS, dir string) {
	t.Helper()
	name := filepath.Join(dir, "f")
	for _, text := range []string{"first and longer", "second"} {
		if err := WriteFileAtomic(fsys, dir, name+".tmp", name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(fsys, name, 100)
		if err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	ffs := Faulty(fsys, Rule{Ops: []string{"sync"}, Err: "EIO"})
	if err := WriteFileAtomic(ffs, dir, name+".tmp", name, []byte("third")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if got, err := ReadFile(ffs, name, 3); err != nil || string(got) != "sec" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestLeaseSeesMappings: a mapping outlives its descriptor, and the kernel
// still knows.
func TestLeaseSeesMappings(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f := openFile(t, OS(), name)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := syscall.Mmap(int(other.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("SKIPPED: this file system has no leases")
	} else if !errors.Is(err, ErrShared) {
		t.Fatal(err)
	}
	if err := syscall.Munmap(m); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(); err != nil {
		t.Fatal(err)
	}
}
