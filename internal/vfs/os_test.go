package vfs

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpread: ext4 is told once, and keeps it; others say that they cannot be.
func TestSpread(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := OS().Spread(dir)
		if st.Type != unix.EXT4_SUPER_MAGIC {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("no ext4, and %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&0x20000 == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}
