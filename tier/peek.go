package tier

import (
	"errors"
	"io/fs"

	"millrace/internal/vfs"
)

// ClusterOf returns the cluster that a cache directory belongs to, without
// opening it: "" for one that belongs to none yet, or is no cache directory.
func ClusterOf(dir string) (string, error) {
	info, err := readFormat(vfs.OS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return info.ClusterID, err
}
