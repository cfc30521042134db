package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Small is a file system in memory that is soon full.
type Small struct {
	// Dir is where it is mounted.
	Dir string
}

// NewSmall mounts a file system of so many bytes at dir, which is made.
func NewSmall(dir string, size int64) (*Small, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		return nil, fmt.Errorf("mount a small file system: %w", err)
	}
	return &Small{Dir: dir}, nil
}

// Fill takes all that is left of it. free gives it back.
func (s *Small) Fill() (free func() error, err error) {
	name := filepath.Join(s.Dir, "ballast")
	f, err := os.Create(name)
	if errors.Is(err, unix.ENOSPC) {
		return func() error { return nil }, nil // others have it all
	}
	for p := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(p)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return nil, err
	}
	return func() error {
		err := os.Remove(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // whoever empties the disk gave it back
		}
		return errors.Join(f.Close(), err)
	}, nil
}

// Close unmounts it, as soon as nobody uses it.
func (s *Small) Close() error { return unix.Unmount(s.Dir, unix.MNT_DETACH) }
