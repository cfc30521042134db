// Package localfs is the under-store kind of a directory of this host, or of a
// file system that is mounted on it (NFS, Lustre, CephFS).
//
// The version tag is inode, change time in ns and length. The kernel's change
// time has the grain of its clock tick, so a file whose time stamps are within
// 2 s of the look is Unsettled.
//
// Symbolic links that stay below the root are followed, in listings too, as
// long as they do not lead back to a directory that the listing is in. Links
// that leave the root, broken links, sockets, pipes and devices are left out
// of listings; Stat answers errs.Permission for a link that leaves the root,
// errs.NotFound for the others.
//
// Invariants:
//   - Every name is resolved below the root by the kernel's or os.Root's
//     rules, component by component; a link swapped in at any moment does not
//     lead out.
//   - Every piece of bytes that Read passes on is followed by a look at the
//     file: bytes of another version are never passed on.
//   - A list keeps at most 65,536 names per directory level in memory, and
//     twice that while it reads a directory. A larger directory is read again
//     for each further 65,536.
package localfs
