package tier

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"millrace/internal/errs"
)

// ClusterOf returns the cluster that a cache directory belongs to, without
// opening it: "" for one that belongs to none yet, or is no cache directory.
func ClusterOf(dir string) (string, error) {
	name := filepath.Join(dir, formatFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", errs.Wrap(err, "read", name)
	}
	var info formatInfo
	if err := json.Unmarshal(data, &info); err != nil {
		return "", errs.E(errs.Invalid, "read", name, err)
	}
	return info.ClusterID, nil
}
