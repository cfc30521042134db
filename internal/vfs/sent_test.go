package vfs

import (
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
