package tier

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/testenv"
	"millrace/internal/vfs"
)

// The tests of this file have a file system of their own, whose state they
// change under a running store.

func mount(t *testing.T, source, target, fsType string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		t.Skipf("NOT TESTED: mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) }) // it may be unmounted already
}

func mountPoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// onDisk returns a running store with a directory on disk, which comes first,
// and another one.
func storeOn(t *testing.T, disk string) *Store {
	t.Helper()
	s := openTiers(t, t.TempDir(), []spec{{"one", SSD, 16 * mib}, {"two", HDD, 16 * mib}}, withFS(vfs.OS()), func(_ *Options, c *Config) {
		if c.Medium == SSD {
			c.Dir = disk
		}
		c.ProbeInterval = size.Duration(20 * time.Millisecond)
	})
	run(t, s)
	return s
}

// until waits for the states of the directories.
func until(t *testing.T, s *Store, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for states(s) != want {
		select {
		case <-ctx.Done():
			t.Fatalf("the directories are %s, want %s: %+v", states(s), want, s.Status())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// forgotten waits until nothing of f is cached.
func forgotten(t *testing.T, s *Store, f File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, n := s.Cached(f.ID); n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("a file of the failed directory is not forgotten")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestDiskTurnsReadOnly: the kernel refuses all writes, for a while.
func TestDiskTurnsReadOnly(t *testing.T) {
	testenv.Require(t, testenv.Root)
	disk := mountPoint(t)
	mount(t, "tmpfs", disk, "tmpfs", 0, "size=32m,mode=700")
	s := storeOn(t, disk)
	f, g := testFile("f", "1", 2*page), testFile("g", "1", page)
	fill(t, s, f)
	wantAt(t, s, f, "disk")
	mount(t, disk, disk, "", unix.MS_BIND, "")
	if err := unix.Mount("", disk, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := fillRange(s, g, g.Geometry().Whole()); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	until(t, s, "failed ok")
	forgotten(t, s, f)
	if err := s.Status()[0].Reason; !errors.Is(err, syscall.EROFS) {
		t.Errorf("the reason is %v", err)
	}
	fill(t, s, g)
	fill(t, s, f)
	mustRead(t, s, f, 2)
	wantAt(t, s, f, "two")
	if err := unix.Unmount(disk, 0); err != nil {
		t.Fatal(err)
	}
	until(t, s, "ok ok")
	mustRead(t, s, f, 2)
	h := testFile("h", "1", page)
	fill(t, s, h)
	wantAt(t, s, h, "disk")
}

// TestDiskOfErrors has ext4 find an error, on which it turns read-only. The
// store lets go of all that is on it, so that it can be unmounted, checked and
// mounted again, and then has what was there.
func TestDiskOfErrors(t *testing.T) {
	testenv.Require(t, testenv.Root)
	disk, image := mountPoint(t), filepath.Join(t.TempDir(), "image")
	sh := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	for _, args := range [][]string{
		{"truncate", "-s", "64M", image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mount", "-o", "loop,errors=remount-ro", image, disk},
	} {
		if out, err := sh(args...); err != nil {
			t.Skipf("NOT TESTED: an ext4 on a loop device cannot be had here: %v: %s", err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	device, err := sh("findmnt", "-no", "SOURCE", disk)
	if err != nil {
		t.Skipf("NOT TESTED: findmnt: %v: %s", err, device)
	}
	cache := filepath.Join(disk, "cache")
	s := storeOn(t, cache)
	f, g := testFile("f", "1", 2*page), testFile("g", "1", page)
	fill(t, s, f)
	wantAt(t, s, f, "cache")
	if err := s.current()[0].checkpoint(0); err != nil {
		t.Fatal(err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("1"), 0); err != nil {
		t.Skipf("NOT TESTED: ext4 cannot be told to fail: %v", err)
	}
	_ = fillRange(s, g, g.Geometry().Whole())
	until(t, s, "failed ok")
	forgotten(t, s, f)
	fill(t, s, g)
	wantAt(t, s, g, "two")
	if out, err := sh("umount", disk); err != nil {
		t.Fatalf("the store has something open: %v: %s", err, out)
	}
	// A program that left our namespace of mounts while this one was there
	// keeps it alive, and read-only.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		users, err := sh("losetup", "-j", image)
		if err == nil && users == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Skipf("NOT TESTED: another namespace has the file system: %v: %s", err, users)
		}
	}
	for _, args := range [][]string{{"e2fsck", "-fy", image}, {"mount", "-o", "loop", image, disk}} {
		var exit *exec.ExitError
		if out, err := sh(args...); err != nil && (args[0] != "e2fsck" || !errors.As(err, &exit) || exit.ExitCode() > 1) {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	until(t, s, "ok ok")
	mustRead(t, s, f, 2)
	wantAt(t, s, f, "cache")
}

// TestDiskUnmounted: what is below the mount point is not filled in its
// place.
func TestDiskUnmounted(t *testing.T) {
	testenv.Require(t, testenv.Root)
	disk, elsewhere := mountPoint(t), mountPoint(t)
	mount(t, "tmpfs", disk, "tmpfs", 0, "size=32m,mode=700")
	mount(t, disk, elsewhere, "", unix.MS_BIND, "")
	s := storeOn(t, disk)
	f := testFile("f", "1", 2*page)
	fill(t, s, f)
	if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	until(t, s, "failed ok")
	forgotten(t, s, f)
	if err := s.current()[0].mayReturn(); err == nil || !strings.Contains(err.Error(), "another file system") {
		t.Errorf("an empty mount point: %v", err)
	}
	if names, err := os.ReadDir(disk); err != nil || len(names) != 0 {
		t.Errorf("the mount point has %v, %v", names, err)
	}
	mount(t, elsewhere, disk, "", unix.MS_BIND, "")
	until(t, s, "ok ok")
	mustRead(t, s, f, 2)
}
