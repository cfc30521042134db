package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

const (
	busyEvery    = 100 * time.Millisecond
	probeTimeout = 10 * time.Second
	maxStacked   = 16 // mounts on one mount point that are cleared
)

// Unmount ends the mount at mountPoint. While programs have files open there
// it waits until ctx ends and then returns errs.Busy. lazy takes the mount
// out of sight at once; its open files go on until they are closed.
func Unmount(ctx context.Context, mountPoint string, lazy bool) error {
	point, err := canonical(mountPoint)
	if err != nil {
		return errs.Wrap(err, "unmount", mountPoint)
	}
	all, err := mounts()
	if err != nil {
		return errs.Wrap(err, "unmount", mountPoint)
	}
	m, ok := topmost(all, point)
	switch {
	case !ok:
		return errs.E(errs.NotFound, "unmount", mountPoint, errors.New("nothing is mounted here"))
	case !m.ours():
		return errs.E(errs.Invalid, "unmount", mountPoint, fmt.Errorf("this is a mount of type %s, not of Millrace", m.fsType))
	case lazy:
		return errs.Wrap(detach(ctx, point), "unmount", mountPoint)
	}
	if err := unmountWhenIdle(ctx, point); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return errs.E(errs.Busy, "unmount", mountPoint, errors.New("programs have files open, or their working directory, on the mount")).
				WithHint("end them (fuser -vm " + mountPoint + " names them), wait longer, or unmount with --lazy")
		}
		return errs.Wrap(err, "unmount", mountPoint)
	}
	return nil
}

// unmountWhenIdle unmounts, and waits while the mount is in use. When ctx
// ends first, it returns EBUSY.
func unmountWhenIdle(ctx context.Context, point string) error {
	ticker := time.NewTicker(busyEvery)
	defer ticker.Stop()
	for {
		err := unmountOnce(context.WithoutCancel(ctx), point, 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}

// detach takes the mount out of sight; what is open stays until it is closed.
func detach(ctx context.Context, point string) error {
	return unmountOnce(ctx, point, unix.MNT_DETACH)
}

// unmountOnce asks the kernel, or fusermount where this process may not.
func unmountOnce(ctx context.Context, point string, flags int) error {
	err := unix.Unmount(point, flags|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		bin, lookErr := exec.LookPath(name)
		if lookErr != nil {
			continue
		}
		args := []string{"-u", point}
		if flags&unix.MNT_DETACH != 0 {
			args = []string{"-u", "-z", point}
		}
		out, runErr := exec.CommandContext(ctx, bin, args...).CombinedOutput() //nolint:gosec // fusermount, on a mount point that the user named
		switch {
		case runErr == nil:
			return nil
		case bytes.Contains(out, []byte("busy")):
			return unix.EBUSY
		default:
			return fmt.Errorf("%s: %w: %s", name, runErr, bytes.TrimSpace(out))
		}
	}
	return fmt.Errorf("%w, and there is no fusermount3", err)
}

// abort ends the connection of a mount, and with it all copies of the mount in
// other mount namespaces: whoever waits for it, or asks it later, gets
// ENOTCONN. It tries the kernel's control directory, which also works for the
// owner of a mount without other rights, and where that is mounted nowhere, as
// in containers, one of its own.
func abort(m mountEntry) error {
	name := strconv.FormatUint(uint64(m.minor), 10) + "/abort"
	err := os.WriteFile(filepath.Join("/sys/fs/fuse/connections", name), []byte("1"), 0o600)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir, err := openControl()
	if err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer func() { _ = unix.Close(dir) }() // nothing was written by it
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat "+name, err)
	}
	_, err = unix.Write(fd, []byte("1"))
	return errors.Join(os.NewSyscallError("write "+name, err), unix.Close(fd))
}

// openControl returns the control directory of all connections, as a mount
// that has no place in the tree and ends when it is closed.
func openControl() (dir int, err error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }() // the mount stays
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// canonical resolves the symbolic links of the directory that the mount point
// is in, and the mount point itself only if it is a link, so that a mount
// which does not answer is not asked.
func canonical(mountPoint string) (string, error) {
	point, err := filepath.Abs(mountPoint)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(point))
	if err != nil {
		return "", err
	}
	point = filepath.Join(dir, filepath.Base(point))
	if _, err := os.Readlink(point); err == nil { // which, unlike lstat, asks no mount
		return filepath.EvalSymlinks(point)
	}
	return point, nil
}

// clearDead unmounts what a run that crashed left at a mount point. A mount
// of Millrace that is alive is errs.Busy.
func clearDead(ctx context.Context, point string) (cleared int, err error) {
	for range maxStacked {
		all, err := mounts()
		if err != nil {
			return cleared, err
		}
		m, ok := topmost(all, point)
		if !ok || !m.ours() {
			return cleared, nil
		}
		if alive, err := answers(ctx, point); err != nil {
			return cleared, err
		} else if alive {
			return cleared, errs.E(errs.Busy, "", "", errors.New("already a mount of Millrace")).
				WithHint("millrace umount " + point)
		}
		if err := detach(ctx, point); err != nil {
			return cleared, fmt.Errorf("clear the dead mount: %w", err)
		}
		cleared++
	}
	return cleared, errs.E(errs.Busy, "", "", fmt.Errorf("more than %d mounts are stacked here", maxStacked))
}

// answers asks a mount for its statistics, which is the one question that the
// kernel never answers from its caches: a mount whose process is gone says
// ENOTCONN. One that says nothing for some seconds is an error; the goroutine
// that waits for it ends when the mount does, since nothing else ends such a
// system call.
func answers(ctx context.Context, point string) (alive bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	result := make(chan error, 1)
	go func() {
		var s unix.Statfs_t
		result <- unix.Statfs(point, &s)
	}()
	select {
	case err := <-result:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return false, nil
		}
		return err == nil, err
	case <-ctx.Done():
		return false, errs.E(errs.Busy, "", "", errors.New("a mount of Millrace is here and does not answer")).
			WithHint("end its process, or: umount -l " + point)
	}
}
