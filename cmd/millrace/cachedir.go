package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/tier"
)

// parseCache reads DIR:SIZE[:ssd|hdd]. DIR may hold colons.
func parseCache(s string) (tier.Config, error) {
	c := tier.DefaultConfig()
	rest := s
	dir, last, ok := cutLast(rest, ":")
	if m := tier.Medium(last); ok && (m == tier.SSD || m == tier.HDD) {
		c.Medium = m
		rest = dir
		dir, last, ok = cutLast(rest, ":")
	}
	if !ok || dir == "" {
		return c, fmt.Errorf("--cache %q: want DIR:SIZE or DIR:SIZE:ssd or DIR:SIZE:hdd", s)
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

// defaultShare is the share of what is free, or already the cache's, that a
// cache takes when nobody says how much.
const defaultShare = 0.8

// defaultCache is the cache directory of `up` when none is given.
func defaultCache(dir string) (tier.Config, error) {
	c := tier.DefaultConfig()
	c.Dir = dir
	var st unix.Statfs_t
	if err := unix.Statfs(existingParent(dir), &st); err != nil {
		return c, errs.Wrap(err, "ask for free space of", dir)
	}
	used, err := diskUsage(dir)
	if err != nil {
		return c, errs.Wrap(err, "measure", dir)
	}
	free := float64(st.Bavail) * float64(st.Bsize)
	c.Capacity = size.Bytes(defaultShare * (free + float64(used)))
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

// diskUsage sums what the files below dir take on the disk, in bytes. A
// directory that is not there takes none.
func diskUsage(dir string) (int64, error) {
	const statBlock = 512
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				if st, ok := fi.Sys().(*syscall.Stat_t); ok {
					sum += st.Blocks * statBlock
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}
