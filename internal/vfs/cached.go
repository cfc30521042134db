package vfs

import (
	"math/bits"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadCached fills b, which is not empty, with the bytes at off if the kernel
// has them in memory: it does not wait for the disk. False says that ReadAt is
// to be asked, also where f is wrapped or its file system cannot tell.
func ReadCached(f File, b []byte, off int64) bool {
	file, ok := OSFile(f)
	if !ok {
		return false
	}
	// Package unix allocates for each call of Preadv2.
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	high := uint64(off) >> 1 >> (bits.UintSize - 1)                                                                                           // of what a register does not hold
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, file.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), uintptr(high), unix.RWF_NOWAIT) //nolint:gosec // as in package unix
	return errno == 0 && int(n) == len(b)
}

// Cached reports whether the kernel has all of [off, off+n) in memory, or is
// reading it already.
func Cached(f File, off, n int64) bool {
	file, ok := OSFile(f)
	if !ok {
		return false
	}
	pageSize := int64(os.Getpagesize())
	pages, err := cachedPages(int(file.Fd()), off, n)
	return err == nil && int64(pages) == (off+n-1)/pageSize-off/pageSize+1
}

// cachedPages returns how many pages of [off, off+n) are in the page cache:
// cachestat(2), since Linux 6.5.
func cachedPages(fd int, off, n int64) (uint64, error) {
	extent := [2]uint64{uint64(off), uint64(n)}
	var found struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, uintptr(fd), uintptr(unsafe.Pointer(&extent)), uintptr(unsafe.Pointer(&found)), 0, 0, 0) //nolint:gosec // package unix has no wrapper
	if errno != 0 {
		return 0, errno
	}
	return found.cached, nil
}
