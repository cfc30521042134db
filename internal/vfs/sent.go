package vfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// TellsSent reports whether DropCache tells of bytes that were sent from the
// file system of f and that the peer has not received yet: it sends the first
// bytes of f, which is not empty and is on the disk, to itself and asks while
// they are under way and when they arrived. False also where f has no
// descriptor. Other users of f make it false, never true.
func TellsSent(f File) (bool, error) {
	file, ok := OSFile(f)
	if !ok {
		return false, nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }() // nothing was promised
	const some = 64
	var from int64
	n, err := unix.Sendfile(pair[0], int(file.Fd()), &from, some)
	switch {
	case errors.Is(err, unix.EINVAL), err == nil && n == 0: // nothing can be sent from this file system
		return false, nil
	case err != nil:
		return false, err
	}
	if err := f.DropCache(0, int64(n)); !errors.Is(err, ErrShared) {
		return false, unlessUnsupported(err)
	}
	var room [some]byte
	if _, err := unix.Read(pair[1], room[:]); err != nil {
		return false, err
	}
	err = f.DropCache(0, int64(n))
	return err == nil, unlessUnsupported(err)
}

// unlessUnsupported returns err if it is none of the answers of DropCache.
func unlessUnsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ErrShared) {
		return nil
	}
	return err
}
