package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"millrace/fuse"
	"millrace/tier"
)

// cacheFS is a file system that caches are often on, or should not be.
type cacheFS struct {
	name    string
	trouble string // why it is no place for a cache; empty: it is one
}

// cacheFSOf names a file system by the magic number of statfs(2).
func cacheFSOf(magic int64) cacheFS {
	const stacked = "it is stacked on another file system: its files cannot be handed to the kernel, so that all reads are copied"
	const remote = "it is not local: a cache on it is no faster than what it caches"
	const ecryptfs, fuseFS = 0xf15f, 0x65735546
	switch magic {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return cacheFS{"overlayfs", stacked}
	case ecryptfs:
		return cacheFS{"ecryptfs", stacked}
	case fuseFS:
		return cacheFS{"a FUSE file system", stacked}
	case unix.NFS_SUPER_MAGIC:
		return cacheFS{"NFS", remote}
	case unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return cacheFS{"SMB", remote}
	case unix.CEPH_SUPER_MAGIC:
		return cacheFS{"CephFS", remote}
	case unix.V9FS_MAGIC:
		return cacheFS{"9p", remote}
	case unix.EXT4_SUPER_MAGIC:
		return cacheFS{name: "ext4"}
	case unix.XFS_SUPER_MAGIC:
		return cacheFS{name: "xfs"}
	case unix.BTRFS_SUPER_MAGIC:
		return cacheFS{name: "btrfs"}
	case unix.TMPFS_MAGIC:
		return cacheFS{name: "tmpfs"}
	default:
		return cacheFS{name: fmt.Sprintf("file system %#x", magic)}
	}
}

// checkCaches looks at the cache directories of the configuration.
func (d *doctor) checkCaches() {
	for _, c := range d.settings.Worker.Tiers {
		d.checkCache(c)
	}
}

func (d *doctor) checkCache(c tier.Config) {
	check := "cache " + c.Dir
	if place, ok := fuse.Lookup(c.Dir); ok {
		d.problem(check, "it is below the mount of Millrace on "+place.MountPoint, "choose a directory on a local disk")
		return
	}
	there := existingParent(c.Dir)
	if err := unix.Access(there, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		d.problem(check, fmt.Sprintf("this user may not use %s: %v", there, err), "run the doctor as the worker's user, or change the directory's owner")
		return
	}
	if fi, err := os.Stat(c.Dir); err == nil && !fi.IsDir() {
		d.problem(check, "it is no directory", "name a directory")
		return
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.problem(check, err.Error(), "check the disk and its file system")
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(there, &st); err != nil {
		d.problem(check, err.Error(), "check the disk and its file system")
		return
	}
	kind := cacheFSOf(st.Type)
	total, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	detail := fmt.Sprintf("%s, %s of %s free, may take %s", kind.name, sizeText(free), sizeText(total), sizeText(int64(c.Capacity)))
	switch most := int64(float64(total) * (1 - c.FreeShare)); {
	case st.Flags&unix.ST_RDONLY != 0:
		d.problem(check, detail+"; it is mounted read-only", "mount it for writing; look into the kernel's log for why it is not")
	case kind.trouble != "":
		d.warn(check, detail+"; "+kind.trouble, "choose a directory on ext4 or xfs on a local disk (of a container: a volume)")
	case int64(c.Capacity) > most:
		d.warn(check, fmt.Sprintf("%s, which is more than the %s that may be taken with a free share of %.0f %%", detail, sizeText(most), 100*c.FreeShare),
			"give it a smaller capacity, or a file system of its own")
	case st.Files > 0 && st.Ffree < st.Files/20:
		d.warn(check, fmt.Sprintf("%s; only %d of %d inodes are free", detail, st.Ffree, st.Files), "make the file system anew with more inodes (mkfs.ext4 -i 16384)")
	default:
		d.ok(check, "%s", detail)
	}
}

// checkSharedMemory looks whether the tmpfs holds the memory tier.
func (d *doctor) checkSharedMemory() {
	dir, want := sharedMemory, int64(d.settings.Worker.Memory)
	if d.settings.Worker.MemoryDir != "" {
		dir = d.settings.Worker.MemoryDir
	}
	total, free, err := tmpfsRoom(dir)
	switch {
	case err != nil && want > 0:
		d.problem(dir, err.Error(), hintOf(err, moreSharedMemory))
	case err != nil:
		d.warn(dir, err.Error(), "a memory tier needs a tmpfs; without one nothing is to be done")
	case total < want:
		d.warn(dir, fmt.Sprintf("it has %s in all, and the memory tier is to have %s", sizeText(total), sizeText(want)), moreSharedMemory)
	default:
		d.ok(dir, "%s of %s free", sizeText(free), sizeText(total))
	}
}
