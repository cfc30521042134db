package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// OS returns the machine's file system.
func OS() FS { return osFS{} }

type osFS struct{}

// OpenFile makes its own system call: os.OpenFile tries to wait for regular
// files with epoll, which refuses them, at the price of five more.
func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(name, flag|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(perm.Perm()))
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &osFile{os.NewFile(uintptr(fd), name)}, nil
}

func (osFS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }
func (osFS) Rename(oldName, newName string) error         { return os.Rename(oldName, newName) }
func (osFS) Remove(name string) error                     { return os.Remove(name) }
func (osFS) Stat(name string) (fs.FileInfo, error)        { return os.Lstat(name) }

func (osFS) ReadDir(name string) (_ []fs.DirEntry, err error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.ReadDir(-1) // os.ReadDir would sort
}

func (osFS) SyncDir(name string) (err error) {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}

// Spread sets ext4's flag for the top of directory hierarchies (chattr +T).
func (osFS) Spread(name string) (err error) {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	const topDir = 0x20000 // FS_TOPDIR_FL of linux/fs.h
	fd := int(d.Fd())
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		return errors.ErrUnsupported
	}
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
	if err != nil {
		return &fs.PathError{Op: "set flags", Path: name, Err: err}
	}
	return nil
}

func (osFS) Statfs(name string) (Room, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &st) }); err != nil {
		return Room{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	unit := st.Frsize
	if unit <= 0 {
		unit = st.Bsize
	}
	return Room{
		BlockSize:   unit,
		Total:       scaled(st.Blocks, unit),
		Free:        scaled(st.Bavail, unit),
		TotalInodes: scaled(st.Files, 1),
		FreeInodes:  scaled(st.Ffree, 1),
	}, nil
}

// scaled multiplies without overflow: some file systems report 2^64-1 blocks.
func scaled(n uint64, unit int64) int64 {
	if limit := uint64(math.MaxInt64 / unit); n > limit {
		return math.MaxInt64
	}
	return int64(n) * unit
}

type osFile struct{ *os.File }

func (f *osFile) Fallocate(off, n int64) error {
	return f.fallocate("fallocate", unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *osFile) PunchHole(off, n int64) error {
	return f.fallocate("punch hole", unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, off, n)
}

func (f *osFile) fallocate(op string, mode uint32, off, n int64) error {
	return f.control(op, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

func (f *osFile) SyncFS() error { return f.control("syncfs", unix.Syncfs) }

func (f *osFile) Lock() error {
	err := f.control("flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", f.Name(), ErrLocked)
	}
	return err
}

func (f *osFile) Lease() error {
	err := f.setLease(unix.F_WRLCK)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return ErrShared
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EACCES):
		// EINVAL: this file system has no leases; EACCES: the file is not
		// ours and we may not lease others' (CAP_LEASE).
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

func (f *osFile) Unlease() error { return f.setLease(unix.F_UNLCK) }

func (f *osFile) setLease(kind int) error {
	return f.control("lease", func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, kind)
		return err
	})
}

// control runs fn on the descriptor, which stays open meanwhile.
func (f *osFile) control(op string, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = c.Control(func(fd uintptr) {
		opErr = retry(func() error { return fn(int(fd)) })
	})
	if err == nil && opErr != nil {
		err = &fs.PathError{Op: op, Path: f.Name(), Err: opErr}
	}
	return err
}

// retry repeats a system call that a signal interrupted.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
