package fsm

import (
	"cmp"
	"maps"
	"slices"

	"millrace/block"
)

// Freshness says how long under-store metadata may be used.
type Freshness string

// The freshnesses of an under-store mount.
const (
	FreshTTL    Freshness = "ttl"    // for a time; then it is asked again
	FreshNever  Freshness = "never"  // data does not change, or changes are told
	FreshAlways Freshness = "always" // every use asks
)

// Mount binds a path of the namespace to an under-store.
type Mount struct {
	ID        uint64            `json:"id"` // never reused
	Path      Path              `json:"path"`
	URI       string            `json:"uri"`
	Options   map[string]string `json:"options,omitempty"`
	BlockSize int64             `json:"block_size"`
	Freshness Freshness         `json:"freshness"`
	TTLMillis int64             `json:"ttl_ms"`
	// Changed is the log index of the mount's last change: what was learned
	// of the under-store before it does not hold.
	Changed uint64 `json:"changed"`
}

// Addresses say where a worker is reached.
type Addresses struct {
	GRPC       string `json:"grpc"`
	Data       string `json:"data"`
	HTTP       string `json:"http,omitempty"`
	UnixSocket string `json:"unix_socket,omitempty"`
	BootID     string `json:"boot_id,omitempty"`
}

// Worker is a registered worker.
type Worker struct {
	ID            string    `json:"id"`
	Addresses     Addresses `json:"addresses"`
	CapacityBytes int64     `json:"capacity_bytes"`
	// SmallestDirBytes is the capacity of its smallest cache directory.
	SmallestDirBytes int64 `json:"smallest_dir_bytes"`
	// Draining says that it owns no blocks: it is to leave.
	Draining bool `json:"draining,omitempty"`
}

// Master is a master of the group that has been heard of.
type Master struct {
	ID   string `json:"id"`
	GRPC string `json:"grpc"`
	HTTP string `json:"http,omitempty"`
}

// Sums count files or bytes of a load job.
type Sums struct {
	Listed        int64 `json:"listed"`
	Loaded        int64 `json:"loaded"`
	AlreadyCached int64 `json:"already_cached"`
	Failed        int64 `json:"failed"`
	Gone          int64 `json:"gone"`
}

// Cursor is a place in the listing of a load job.
type Cursor struct {
	PathIndex int  `json:"path_index"`
	After     Path `json:"after,omitempty"`
}

// Job is what is committed of a load job.
type Job struct {
	ID             string `json:"id"` // sorts by time of submission
	Paths          []Path `json:"paths"`
	State          string `json:"state"`
	Cursor         Cursor `json:"cursor"`
	Files          Sums   `json:"files"`
	Bytes          Sums   `json:"bytes"`
	Error          string `json:"error,omitempty"`
	StartedMillis  int64  `json:"started_ms"`
	FinishedMillis int64  `json:"finished_ms,omitempty"` // 0: not yet
}

// Final reports whether the job changes no more.
func (j *Job) Final() bool { return j.FinishedMillis != 0 }

// State is one version of everything that is replicated. It is immutable.
type State struct {
	Index     uint64 `json:"index"`      // of the last log entry applied
	Term      uint64 `json:"term"`       // of that entry
	ClusterID string `json:"cluster_id"` // empty before the cluster was bootstrapped

	MountsVersion uint64  `json:"mounts_version"` // grows with each change of Mounts; 0 is no table
	Mounts        []Mount `json:"mounts"`         // in byte order of the path
	LastMountID   uint64  `json:"last_mount_id"`
	// InvalidatedIndex is the log index of the last change that makes cached
	// metadata wrong. Changes of the mount table are the only ones so far.
	InvalidatedIndex uint64 `json:"invalidated_index"`

	Workers        map[string]Worker `json:"workers"`
	PlacementEpoch uint64            `json:"placement_epoch"`  // grows when the owners of blocks may change
	WholeFileLimit int64             `json:"whole_file_limit"` // bytes

	Masters map[string]Master `json:"masters"`
	Jobs    map[string]Job    `json:"jobs"`
	// JobsIndex is the log index of the last change of a job.
	JobsIndex uint64 `json:"jobs_index"`
}

// clone returns a copy whose tables may be changed.
func (s *State) clone() *State {
	c := *s
	c.Mounts = slices.Clone(s.Mounts)
	c.Workers = maps.Clone(s.Workers)
	c.Masters = maps.Clone(s.Masters)
	c.Jobs = maps.Clone(s.Jobs)
	return &c
}

func emptyState() *State {
	return &State{Workers: map[string]Worker{}, Masters: map[string]Master{}, Jobs: map[string]Job{}}
}

// MountByID returns the mount with that ID.
func (s *State) MountByID(id uint64) (Mount, bool) {
	i := slices.IndexFunc(s.Mounts, func(m Mount) bool { return m.ID == id })
	if i < 0 {
		return Mount{}, false
	}
	return s.Mounts[i], true
}

// mountIndex returns where the mount at path is, or belongs.
func (s *State) mountIndex(path Path) (int, bool) {
	return slices.BinarySearchFunc(s.Mounts, path, func(m Mount, p Path) int { return cmp.Compare(m.Path, p) })
}

// Placement returns the workers that own blocks, in the order of their IDs.
func (s *State) Placement() block.Placement {
	p := block.Placement{Epoch: s.PlacementEpoch, WholeFileLimit: s.WholeFileLimit}
	for _, id := range slices.Sorted(maps.Keys(s.Workers)) {
		if s.Workers[id].Draining {
			continue
		}
		p.Workers = append(p.Workers, block.PlacedWorker{
			ID: block.WorkerID(id), Weight: uint64(max(s.Workers[id].CapacityBytes, 0)),
		})
	}
	return p
}
