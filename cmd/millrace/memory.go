package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"millrace/internal/daemon"
	"millrace/internal/errs"
	"millrace/internal/hostmem"
	"millrace/internal/size"
	"millrace/tier"
)

// sharedMemory is where Linux has a tmpfs for everybody.
const sharedMemory = "/dev/shm"

func addMemoryFlag(f *pflag.FlagSet, usage string) {
	f.Var(new(size.Bytes), "memory", usage)
	f.Lookup("memory").DefValue = "" // the usage says it
}

// memoryTier is the memory tier that a worker is to have.
type memoryTier struct {
	size  size.Bytes // 0: none
	given bool       // the user asked for it: what cannot be had is an error
	dir   string     // on a tmpfs
	own   bool       // dir was named after the data directory: nobody else has a use for it
}

func inMemory(c tier.Config) bool { return c.Medium == tier.Memory }

// memory returns what the settings say about the memory tier. given tells
// whether the user did, dataDir is the worker's, absolute.
func (w *Worker) memory(given bool, dataDir string) (memoryTier, error) {
	m := memoryTier{size: w.Memory, given: given, dir: w.MemoryDir}
	if m.size == 0 {
		return memoryTier{}, nil
	}
	if m.dir == "" {
		m.dir, m.own = daemon.NameFor(sharedMemory, dataDir), true
	}
	if i := slices.IndexFunc(w.Tiers, inMemory); i >= 0 {
		return m, usagef("%s is a cache directory in memory already: leave --memory and worker.memory out, or that directory", w.Tiers[i].Dir)
	}
	have, err := hostmem.Read()
	if err != nil {
		return m, err
	}
	if int64(m.size) > have.Total {
		return m, errs.E(errs.Invalid, "use memory tier", m.dir, fmt.Errorf("it is to have %s, and this %s has %s of memory",
			sizeText(int64(m.size)), place(have), sizeText(have.Total))).WithHint("give less with --memory, or 0 for none")
	}
	return m, nil
}

func place(m hostmem.Memory) string {
	if m.Limited {
		return "container"
	}
	return "machine"
}

// defaultMemory is the size of `up`'s memory tier when nobody says it: a
// quarter of the memory, and no more than half of what was available at the
// first start, which counts what the tier has taken since.
func defaultMemory(first size.Bytes) (size.Bytes, error) {
	have, err := hostmem.Read()
	most := size.Bytes(have.Available / 2)
	if first > 0 {
		most = first
	}
	return min(size.Bytes(have.Total/4), most), err
}

// ready makes the tier's directory if it is missing, and returns the tier and
// whether this made the directory. A tier that is to have more than its tmpfs
// can give takes what there is. Where nothing can be had, and the user did not
// ask for it, the tier's directory is "": there is none.
func (m *memoryTier) ready(ctx context.Context, log *slog.Logger, clusterID string) (c tier.Config, made bool, err error) {
	if m.size == 0 {
		return tier.Config{}, false, nil
	}
	c, made, err = m.make(ctx, log, clusterID)
	if err != nil && !m.given && !errors.Is(err, errs.Permission) {
		log.WarnContext(ctx, "there is no memory tier", "dir", m.dir, "size", sizeText(int64(m.size)), "err", err)
		return tier.Config{}, false, nil
	}
	return c, made, err
}

func (m *memoryTier) make(ctx context.Context, log *slog.Logger, clusterID string) (c tier.Config, made bool, err error) {
	c = tier.DefaultConfig()
	c.Medium, c.Dir = tier.Memory, m.dir
	total, free, err := tmpfsRoom(m.dir)
	if err != nil {
		return c, false, err
	}
	keep := int64(float64(total) * c.FreeShare)
	room := total - keep // what an earlier run took of it is the tier's already
	if _, err := os.Lstat(m.dir); errors.Is(err, os.ErrNotExist) {
		room = free - keep
	}
	c.Capacity = min(m.size, size.Bytes(max(room, 0)))
	if err := c.Validate(); err != nil {
		return c, false, errs.E(errs.NoSpace, "use memory tier", m.dir, fmt.Errorf("its tmpfs of %s has room for %s: %w",
			sizeText(total), sizeText(int64(c.Capacity)), err)).WithHint(moreSharedMemory)
	}
	if made, err = daemon.PrivateDir(m.dir); err != nil {
		return c, false, err
	}
	if c.Capacity < m.size {
		log.WarnContext(ctx, "the memory tier takes what its tmpfs has room for", "dir", m.dir,
			"wanted", sizeText(int64(m.size)), "takes", sizeText(int64(c.Capacity)), "tmpfs", sizeText(total), "hint", moreSharedMemory)
	}
	return c, made, m.clear(clusterID)
}

// moreSharedMemory is what to do when the tmpfs is small.
const moreSharedMemory = "make the tmpfs larger (docker run --shm-size, or mount -o remount,size=), or give less with --memory, 0 for none"

// tmpfsRoom returns what the tmpfs below dir has in all and free, in bytes.
func tmpfsRoom(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	parent := existingParent(dir)
	if err := unix.Statfs(parent, &st); err != nil {
		return 0, 0, errs.Wrap(err, "ask for free space of", dir)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return 0, 0, errs.E(errs.Unsupported, "use memory tier", dir, fmt.Errorf("%s is not on a tmpfs", parent)).
			WithHint("mount one there, name a directory on one with worker.memory_dir, or give --memory 0")
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// clear removes what an earlier life of the data directory left: its cluster
// is gone, and its pages are nobody's. A directory that the user named is not
// touched, and refused when it is opened.
func (m *memoryTier) clear(clusterID string) error {
	if !m.own {
		return nil
	}
	of, err := tier.ClusterOf(m.dir)
	if err != nil || of == "" || of == clusterID {
		return err
	}
	return removeContent(m.dir)
}

// removeContent empties a directory.
func removeContent(dir string) error {
	names, err := os.ReadDir(dir)
	for _, d := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, d.Name())))
	}
	return err
}

// heapShare is the share of a container's memory, less its memory tier, that
// the heap may take before it is collected harder.
const heapShare = 0.9

// limitHeap lets the garbage collector know of the limit of the container, in
// which what lies on a tmpfs counts too, unless GOMEMLIMIT says otherwise.
func limitHeap(tiers []tier.Config) error {
	if os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	have, err := hostmem.Read()
	if err == nil && have.Limited {
		debug.SetMemoryLimit(heapLimit(have.Total, tiers))
	}
	return err
}

func heapLimit(total int64, tiers []tier.Config) int64 {
	left := total
	for _, c := range tiers {
		if inMemory(c) {
			left -= int64(c.Capacity)
		}
	}
	// With almost nothing left, a limit would keep the collector busy for ever.
	return int64(heapShare * float64(max(left, total/4)))
}
