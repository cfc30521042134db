// Package vfs is the small part of a file system that the block store stands
// on, as interfaces, so that tests can put failures under it.
//
// OS is the machine's own file system. Faulty wraps any FS and fails
// operations by rules that print and parse:
//
//	write path~data/ nth=3 err=EIO
//	fallocate,write path~index/ from=1 err=ENOSPC
//
// NewMem is a file system in memory that can lose its power: Crash gives what
// the next start of the machine would find, chosen by a seed.
//
// Invariants:
//   - Errors of the operating system pass unchanged under errors.Is, so that
//     callers can ask for syscall.ENOSPC or fs.ErrNotExist.
//   - What a file system cannot do is errors.ErrUnsupported.
//   - Every FS passes the same suite, TestConformance.
//   - Nothing here buffers: a write that returned is in the kernel.
package vfs
