package cacheworker

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/oklog/ulid/v2"

	"millrace/block"
	"millrace/internal/errs"
)

// identityFile holds the identity in the worker's data directory.
const identityFile = "id"

// Identity is who a worker is: kept in its data directory, for as long as
// that lives.
type Identity struct {
	WorkerID  block.WorkerID `json:"worker_id"`  // a ULID, minted once
	ClusterID string         `json:"cluster_id"` // "" before the first contact with a master
	// StartEpoch is greater at each start of the worker, so that masters can
	// tell the reports of one run from those of another.
	StartEpoch uint64 `json:"start_epoch"`
}

// LoadIdentity reads the identity that a worker keeps in dataDir. It is the
// zero Identity when there is none yet.
func LoadIdentity(dataDir string) (Identity, error) {
	name := filepath.Join(dataDir, identityFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, nil
	}
	if err != nil {
		return Identity{}, errs.Wrap(err, "read worker identity", name)
	}
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return Identity{}, errs.E(errs.Corrupt, "read worker identity", name, err)
	}
	if _, err := ulid.ParseStrict(string(id.WorkerID)); err != nil {
		return Identity{}, errs.E(errs.Corrupt, "read worker identity", name, fmt.Errorf("worker ID %q: %w", id.WorkerID, err))
	}
	return id, nil
}

// identity is the worker's Identity with its place on the disk.
type identity struct {
	name string // of the file

	mu sync.Mutex
	id Identity
}

// startIdentity loads the identity or mints one, and begins a new epoch.
func startIdentity(dataDir string, now time.Time) (*identity, error) {
	id, err := LoadIdentity(dataDir)
	if err != nil {
		return nil, err
	}
	if id.WorkerID == "" {
		u, err := ulid.New(ulid.Timestamp(now), rand.Reader)
		if err != nil {
			return nil, errs.Wrap(err, "mint worker ID", "")
		}
		id.WorkerID = block.WorkerID(u.String())
	}
	// The clock keeps the epoch growing should the file be restored from an
	// older copy.
	id.StartEpoch = max(id.StartEpoch+1, uint64(max(now.UnixMilli(), 0)))
	i := &identity{name: filepath.Join(dataDir, identityFile), id: id}
	return i, i.save(id)
}

func (i *identity) save(id Identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return errs.Wrap(err, "encode worker identity", "")
	}
	return errs.Wrap(renameio.WriteFile(i.name, append(b, '\n'), 0o600), "write worker identity", i.name)
}

func (i *identity) current() Identity {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id
}

// join takes the cluster ID that a master told at first contact, and refuses
// any other one later.
func (i *identity) join(clusterID string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case clusterID == "" || clusterID == i.id.ClusterID:
		return nil
	case i.id.ClusterID != "":
		return errs.E(errs.Invalid, "join cluster", clusterID, fmt.Errorf("this worker belongs to cluster %s", i.id.ClusterID)).
			WithHint("give the worker a data directory of its own, or the masters of its cluster")
	}
	id := i.id
	id.ClusterID = clusterID
	if err := i.save(id); err != nil {
		return err
	}
	i.id = id
	return nil
}

// BootID returns the ID of the host's boot: equal IDs share Unix sockets and
// the page cache.
func BootID() (string, error) {
	const name = "/proc/sys/kernel/random/boot_id"
	b, err := os.ReadFile(name)
	if err != nil {
		return "", errs.Wrap(err, "read boot ID", name)
	}
	return strings.TrimSpace(string(b)), nil
}
