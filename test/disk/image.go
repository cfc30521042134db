package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/wait"
)

// Image is an ext4 file system in a file, mounted or not.
type Image struct {
	// Dir is where it is mounted.
	Dir  string
	file string
}

// NewImage makes a file system of so many bytes in a new file, and mounts it at
// dir, which is made.
func NewImage(ctx context.Context, file, dir string, size int64) (*Image, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", file); err != nil {
		return nil, err
	}
	m := &Image{Dir: dir, file: file}
	return m, m.mount(ctx)
}

// mount mounts it, which replays its journal. Its loop device goes with it.
func (m *Image) mount(ctx context.Context) error {
	return command(ctx, "mount", "-o", "loop,noatime", "-t", "ext4", m.file, m.Dir)
}

const (
	extShutdown         = 0x8004587d // EXT4_IOC_SHUTDOWN
	shutdownWithoutSync = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// Cut cuts its power: what did not reach the disk is lost, and all that uses it
// sees I/O errors.
func (m *Image) Cut() error {
	d, err := os.Open(m.Dir)
	if err != nil {
		return err
	}
	if err = unix.IoctlSetPointerInt(int(d.Fd()), extShutdown, shutdownWithoutSync); err != nil {
		err = fmt.Errorf("cut the power of %s: %w", m.Dir, err)
	}
	return errors.Join(err, d.Close())
}

// Restore mounts it again after its power was cut. It waits until nobody uses it
// any more.
func (m *Image) Restore(ctx context.Context) error {
	// A process that is just being started elsewhere may have it still.
	for err := unix.Unmount(m.Dir, 0); err != nil; err = unix.Unmount(m.Dir, 0) {
		if e := wait.For(ctx, 10*time.Millisecond); !errors.Is(err, unix.EBUSY) || e != nil {
			return fmt.Errorf("unmount %s: %w", m.Dir, errors.Join(err, e))
		}
	}
	return m.mount(ctx)
}

// Close unmounts it, as soon as nobody uses it.
func (m *Image) Close() error { return unix.Unmount(m.Dir, unix.MNT_DETACH) }

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
