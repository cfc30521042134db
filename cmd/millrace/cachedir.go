package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"millrace/fuse"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/tier"
)

// parseCache reads DIR:SIZE[:memory|ssd|hdd]. DIR may hold colons.
func parseCache(s string) (tier.Config, error) {
	c := tier.DefaultConfig()
	rest := s
	dir, last, ok := cutLast(rest, ":")
	if m := tier.Medium(last); ok && (m == tier.Memory || m == tier.SSD || m == tier.HDD) {
		c.Medium = m
		rest = dir
		dir, last, ok = cutLast(rest, ":")
	}
	if !ok || dir == "" {
		return c, fmt.Errorf("--cache %q: want DIR:SIZE or DIR:SIZE:MEDIUM, where MEDIUM is memory, ssd or hdd", s)
	}
	var err error
	if c.Capacity, err = size.ParseBytes(last); err != nil {
		return c, fmt.Errorf("--cache %q: %w", s, err)
	}
	if c.Dir, err = absolute(dir); err != nil {
		return c, fmt.Errorf("--cache %q: %w", s, err)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("--cache %q: %w", s, err)
	}
	return c, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// defaultShare is the share of what is free that a cache takes when nobody
// says how much.
const defaultShare = 0.8

// defaultCache is the cache directory of `up` when none is given. Its capacity
// is that of the first start, since what is free then counts what the cache
// will hold, or more when the disk has been given more room.
func defaultCache(dir string, first size.Bytes) (tier.Config, error) {
	c := tier.DefaultConfig()
	c.Dir = dir
	var st unix.Statfs_t
	if err := unix.Statfs(existingParent(dir), &st); err != nil {
		return c, errs.Wrap(err, "ask for free space of", dir)
	}
	free := float64(st.Bavail) * float64(st.Bsize)
	c.Capacity = max(first, size.Bytes(defaultShare*free))
	if err := c.Validate(); err != nil {
		return c, errs.E(errs.NoSpace, "use cache directory", dir, err).WithHint("name another with --cache DIR:SIZE")
	}
	return c, nil
}

// existingParent is the deepest directory on the way to path that exists.
func existingParent(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// apart refuses directories below the mount point: the mount would hide them,
// and a cache that reads itself through itself waits for ever.
func (p *plan) apart() error {
	point, err := resolveMountPoint(p.mountPoint)
	if err != nil {
		return err
	}
	dirs := map[string]string{"data directory": p.dataDir}
	if p.memory.dir != "" {
		dirs["memory directory"] = p.memory.dir
	}
	for _, c := range p.caches {
		dirs["cache directory"] = c.Dir
	}
	for _, what := range slices.Sorted(maps.Keys(dirs)) {
		dir, err := resolve(dirs[what])
		if err != nil {
			return err
		}
		if dir == point || strings.HasPrefix(dir, point+"/") {
			return errs.E(errs.Invalid, "use "+what, dirs[what], fmt.Errorf("it is below the mount point %s, which would hide it", p.mountPoint)).
				WithHint("choose a directory elsewhere, or another mount point")
		}
	}
	return nil
}

// outside refuses what would make a local under-store contain its own cache or
// its own mount: the one would be cached in itself, the other never end.
func (p *plan) outside() error {
	dir, local := strings.CutPrefix(p.uri, "file://")
	if !local {
		return nil
	}
	root, err := resolve(filepath.Clean("/" + dir))
	if err != nil {
		return err
	}
	inside := []string{p.dataDir}
	if p.memory.dir != "" {
		inside = append(inside, p.memory.dir)
	}
	for _, c := range p.caches {
		inside = append(inside, c.Dir)
	}
	for i, dir := range inside {
		if inside[i], err = resolve(dir); err != nil {
			return err
		}
	}
	if p.mountPoint != "" {
		point, err := resolveMountPoint(p.mountPoint)
		if err != nil {
			return err
		}
		inside = append(inside, point)
	}
	for _, dir := range inside {
		if root == "/" || dir == root || strings.HasPrefix(dir, root+"/") {
			return errs.E(errs.Invalid, "use directory", dir, fmt.Errorf("it is inside the under-store %s", p.uri)).
				WithHint("choose another one with --data-dir or --cache, or another mount point")
		}
	}
	return nil
}

// resolveMountPoint is resolve that never asks what is mounted there, which
// may be dead.
func resolveMountPoint(point string) (string, error) {
	if _, err := os.Readlink(point); err == nil {
		return resolve(point)
	}
	dir, err := resolve(filepath.Dir(point))
	return filepath.Join(dir, filepath.Base(point)), err
}

// resolve follows the symbolic links of a path whose end need not exist.
func resolve(path string) (string, error) {
	parent := existingParent(path)
	target, err := filepath.EvalSymlinks(parent)
	if err != nil {
		return "", errs.Wrap(err, "resolve", path)
	}
	return filepath.Join(target, strings.TrimPrefix(path, parent)), nil
}

// readyCaches makes the memory tier's directory, checks what would go wrong
// with all cache directories, and returns them with no more open files than
// this process may have.
func (n *node) readyCaches(ctx context.Context, clusterID string) ([]tier.Config, error) {
	caches := slices.Clone(n.settings.Worker.Tiers)
	memory, made, err := n.memory.ready(ctx, n.log, clusterID)
	if made {
		n.made = append(n.made, n.memory.dir)
	}
	if err != nil {
		return nil, err
	}
	if memory.Dir != "" {
		caches = append(caches, memory)
	}
	if len(caches) == 0 {
		return nil, errs.E(errs.Invalid, "start", "worker", errors.New("there is no cache directory")).
			WithHint("give one with --cache DIR:SIZE or [[worker.tier]], or a memory tier with --memory SIZE")
	}
	if err := limitHeap(caches); err != nil {
		return nil, err
	}
	limit, err := openFilesLimit()
	if err != nil {
		return nil, err
	}
	// Connections, readers and the index need the other half.
	most := max(limit/2/uint64(len(caches)), 1)
	for i := range caches {
		c := &caches[i]
		if place, ok := fuse.Lookup(c.Dir); ok {
			return nil, errs.E(errs.Invalid, "use cache directory", c.Dir, fmt.Errorf("it is below the mount of Millrace on %s", place.MountPoint)).
				WithHint("choose a directory on a local disk")
		}
		if uint64(c.OpenFiles) <= most {
			continue
		}
		if most < fewFiles {
			n.log.WarnContext(ctx, "few open files are allowed: the cache keeps fewer open than it would",
				"dir", c.Dir, "limit", limit, "kept", most, "configured", c.OpenFiles, "hint", moreFiles)
		}
		c.OpenFiles = int(most)
	}
	return caches, nil
}

// fewFiles is how many open files of a cache directory are worth a warning: with
// fewer, many hits must open theirs first.
const fewFiles = 1024

// moreFiles is what to do when too few files may be open.
const moreFiles = "raise the limit with ulimit -n, or LimitNOFILE= of the service"

// openFilesLimit returns how many files this process may have open.
func openFilesLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, errs.Wrap(err, "ask for the limit of open files", "")
	}
	return limit.Cur, nil
}

// explainCache says what to do about a cache directory that cannot be used.
func explainCache(err error) error {
	var hint string
	switch {
	case errors.Is(err, unix.EROFS):
		hint = "the file system is mounted read-only: mount it read-write, or name another directory with --cache DIR:SIZE"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = "the file system is full: make room, or name another directory with --cache DIR:SIZE"
	case errors.Is(err, fs.ErrPermission):
		hint = "this user may not write there: change its owner, or name another directory with --cache DIR:SIZE"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		hint = "too few open files are allowed: " + moreFiles
	default:
		return err
	}
	var named *errs.Error
	if !errors.As(err, &named) {
		return err
	}
	return named.WithHint(hint)
}
