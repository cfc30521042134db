package vfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// TestTellsSent: a file system on a disk tells, one in memory does not, for
// its pages are nowhere else, and nothing is sent from a wrapped one.
func TestTellsSent(t *testing.T) {
	testenv.Require(t, testenv.Tmpfs)
	memory, err := os.MkdirTemp(testenv.TmpfsDir, "millrace-vfs-") //nolint:usetesting // that is no tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	for name, tc := range map[string]struct {
		fsys FS
		dir  string
		want bool
	}{
		"disk": {OS(), t.TempDir(), true}, "memory": {OS(), memory, false}, "wrapped": {Faulty(OS()), t.TempDir(), false},
	} {
		t.Run(name, func(t *testing.T) {
			var st unix.Statfs_t
			if err := unix.Statfs(tc.dir, &st); err != nil {
				t.Fatal(err)
			}
			if tc.want && st.Type != unix.EXT4_SUPER_MAGIC && st.Type != unix.XFS_SUPER_MAGIC {
				t.Skip("SKIPPED, NOT TESTED: temporary files are on no such disk")
			}
			f := openFile(t, tc.fsys, filepath.Join(tc.dir, "f"))
			if tells, err := TellsSent(f); err != nil || tells {
				t.Fatalf("an empty file: %v, %v", tells, err)
			}
			if _, err := f.WriteAt([]byte("something"), 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := f.DropCache(0, 9); tc.want && errors.Is(err, errors.ErrUnsupported) {
				t.Skip("SKIPPED, NOT TESTED: this kernel has no cachestat")
			}
			if tells, err := TellsSent(f); err != nil || tells != tc.want {
				t.Fatalf("%v, %v", tells, err)
			}
		})
	}
}

// TestReadCached: what is in memory is read, what is on the disk alone is not.
func TestReadCached(t *testing.T) {
	f := openFile(t, OS(), filepath.Join(t.TempDir(), "f"))
	text := []byte("something that is longer than nothing")
	if _, err := f.WriteAt(text, 5000); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if !ReadCached(f, b, 5000) {
		t.Skip("SKIPPED, NOT TESTED: the file system of temporary files does not tell what is in memory")
	}
	if !bytes.Equal(b, text) {
		t.Errorf("%q", b)
	}
	if ReadCached(f, b, 5001) {
		t.Error("bytes behind the end")
	}
	other := openFile(t, Faulty(OS()), filepath.Join(t.TempDir(), "f"))
	if ReadCached(other, b, 0) || Cached(other, 0, 1) {
		t.Error("a wrapped file is read past its wrapping")
	}
	whole, all := int64(5000+len(text)), Cached(f, 5000, 1)
	if err := f.DropCache(0, whole); err != nil {
		t.Skip("SKIPPED, NOT TESTED: this kernel or file system keeps what it has in memory")
	}
	// ReadCached comes last: the kernel may begin to read for it.
	if !all || Cached(f, 5000, 1) || Cached(f, 4096, whole-4096) || ReadCached(f, b, 5000) {
		t.Error("it is said to be in memory")
	}
	if _, err := f.ReadAt(b, 5000); err != nil {
		t.Fatal(err)
	}
	if !ReadCached(f, b, 5000) || !Cached(f, 5000, int64(len(text))) {
		t.Error("it is said not to be in memory")
	}
}
