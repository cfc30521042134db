// Package disk makes file systems to which everything happens that happens to
// disks: full ones and such that lose power. It needs root, and is for tests.
//
// A Small one is a tmpfs of a few MiB. An Image is an ext4 file system in a file;
// its power is cut by ext4's own shutdown call, after which nothing more reaches
// the disk, also not what is only in memory, and every write and sync fails.
//
// Mounts end with the mount namespace that they were made in, which should be
// one of the program's own.
package disk
