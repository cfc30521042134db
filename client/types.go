package client

import (
	"time"

	"millrace/block"
)

// Entry is one file or directory of the namespace as a master described it.
// An Entry that was given out is not changed any more.
type Entry struct {
	Path  string    `json:"path"` // absolute and clean
	Dir   bool      `json:"dir"`
	Size  int64     `json:"size"`  // bytes; 0 for directories
	MTime time.Time `json:"mtime"` // zero if unknown

	// The rest is of files only.
	Tag       string        `json:"version,omitempty"`
	FileID    block.FileID  `json:"-"`
	BlockSize int64         `json:"block_size,omitempty"` // bytes
	MountID   uint64        `json:"-"`                    // under-store mount
	Ticket    *block.Ticket `json:"-"`                    // nil unless it was asked for
	// Spread says that no replica is to be kept on the hosts that read it.
	Spread bool `json:"-"`
	// CachedBytes is how much of the file workers have; 0 unless asked for.
	CachedBytes int64 `json:"cached_bytes"`

	// ValidUntil is how long the answer may be used without asking again; the
	// zero time is an answer that must not be kept at all.
	ValidUntil time.Time `json:"-"`
}

// The values of Info.Type.
const (
	TypeFile = "file"
	TypeDir  = "dir"
)

// Info is an Entry as the command line prints it.
type Info struct {
	Path        string     `json:"path"`
	Type        string     `json:"type"` // TypeFile or TypeDir
	Size        int64      `json:"size"`
	MTime       *time.Time `json:"mtime"` // RFC 3339; nil if unknown
	CachedBytes int64      `json:"cached_bytes"`
}

// Info returns what is printed of the entry.
func (e *Entry) Info() Info {
	i := Info{Path: e.Path, Type: TypeFile, Size: e.Size, CachedBytes: e.CachedBytes}
	if e.Dir {
		i.Type = TypeDir
	}
	if !e.MTime.IsZero() {
		t := e.MTime.UTC()
		i.MTime = &t
	}
	return i
}

// FileInfo is a file as `stat` prints it.
type FileInfo struct {
	Info
	Version   string          `json:"version,omitempty"`
	FileID    string          `json:"file_id,omitempty"`
	BlockSize int64           `json:"block_size,omitempty"`
	Blocks    []BlockLocation `json:"blocks,omitzero"` // those that are cached somewhere
}

// FileInfo returns what `stat` prints of the entry and its blocks.
func (e *Entry) FileInfo(blocks []BlockLocation) FileInfo {
	i := FileInfo{Info: e.Info()}
	if !e.Dir {
		i.Version, i.FileID, i.BlockSize, i.Blocks = e.Tag, e.FileID.String(), e.BlockSize, blocks
	}
	return i
}

// StatOptions say what Stat brings beside the attributes.
type StatOptions struct {
	WithTicket bool
	WithCached bool
}

// ListOptions say what List yields.
type ListOptions struct {
	// Recursive yields every file below the path, and no directories, in byte
	// order of the path; else the children of the path are yielded, in an
	// order that is the same while nothing changes.
	Recursive   bool
	WithTickets bool
	WithCached  bool
	// After skips every path up to and including this one. Recursive only.
	After string
}

// BlockLocation says where a block of a file is cached.
type BlockLocation struct {
	Index       uint32   `json:"index"`
	CachedBytes int64    `json:"cached_bytes"`
	Workers     []string `json:"workers"`
}

// Usage sums what is at and below a path.
type Usage struct {
	Path        string `json:"path"`
	Files       int64  `json:"files"`
	Bytes       int64  `json:"bytes"`
	CachedBytes int64  `json:"cached_bytes"`
}

// Freed sums what Free dropped from the workers' caches.
type Freed struct {
	Path  string `json:"path"`
	Files int64  `json:"files"`
	Bytes int64  `json:"bytes"`
}

// UFSMount binds a path of the namespace to an under-store.
type UFSMount struct {
	ID        uint64            `json:"id"`
	Path      string            `json:"path"`
	URI       string            `json:"uri"`
	Options   map[string]string `json:"options"` // names secrets, never holds them
	BlockSize int64             `json:"block_size"`
	Freshness string            `json:"freshness"` // "ttl", "never", "always"
	TTLMillis int64             `json:"ttl_ms"`
}

// Job states as the command line prints them.
const (
	JobPlanning  = "planning"
	JobRunning   = "running"
	JobSucceeded = "succeeded"
	JobFailed    = "failed"
	JobCanceled  = "canceled"
)

// JobSums count the files or the bytes of a load job. In a final state that
// is not JobCanceled, Listed = Loaded + AlreadyCached + Failed + Gone.
type JobSums struct {
	Listed        int64 `json:"listed"`
	Loaded        int64 `json:"loaded"`
	AlreadyCached int64 `json:"already_cached"`
	Failed        int64 `json:"failed"`
	Gone          int64 `json:"gone"`
}

// Job is the state of a load job.
type Job struct {
	ID       string     `json:"id"`
	State    string     `json:"state"` // JobPlanning ... JobCanceled
	Paths    []string   `json:"paths"`
	Files    JobSums    `json:"files"`
	Bytes    JobSums    `json:"bytes"`
	Started  time.Time  `json:"started"`
	Finished *time.Time `json:"finished"` // nil: not yet
	Error    string     `json:"error"`    // empty: none
}

// Final reports whether the job's state will not change any more.
func (j *Job) Final() bool {
	return j.State == JobSucceeded || j.State == JobFailed || j.State == JobCanceled
}

// Status is the state of the cluster.
type Status struct {
	ClusterID string         `json:"cluster_id"`
	Leader    string         `json:"leader"` // a master's ID; empty when there is none
	Serving   bool           `json:"serving"`
	Masters   []MasterStatus `json:"masters"`
	Workers   []WorkerStatus `json:"workers"`
	UFS       []UFSMount     `json:"ufs"`
	Counters  Counters       `json:"counters"`
}

// MasterStatus is one master of a Status.
type MasterStatus struct {
	ID      string `json:"id"`
	Address string `json:"address"` // gRPC
	State   string `json:"state"`   // "leader", "follower", "candidate"
}

// WorkerStatus is one worker of a Status.
type WorkerStatus struct {
	ID          string       `json:"id"`
	Address     string       `json:"address"` // gRPC
	DataAddress string       `json:"data_address"`
	HTTPAddress string       `json:"http_address"`
	State       string       `json:"state"` // "live", "suspect", "lost", "draining"
	Tiers       []TierStatus `json:"tiers"`
}

// TierStatus is one cache directory of a worker.
type TierStatus struct {
	Medium        string `json:"medium"`
	Dir           string `json:"dir"`
	CapacityBytes int64  `json:"capacity_bytes"`
	UsedBytes     int64  `json:"used_bytes"`
	HeldBytes     int64  `json:"held_bytes"`
	State         string `json:"state"`
}

// Counters are sums over the cluster's processes since each started.
type Counters struct {
	BytesServed      int64            `json:"bytes_served"`
	UFSBytesRead     int64            `json:"ufs_bytes_read"`
	UFSListBytes     int64            `json:"ufs_list_bytes"`
	UFSRequests      map[string]int64 `json:"ufs_requests"`
	PageHits         int64            `json:"page_hits"`
	PageMisses       int64            `json:"page_misses"`
	ChecksumErrors   int64            `json:"checksum_errors"`
	EvictedBytes     int64            `json:"evicted_bytes"`
	OpensPassthrough int64            `json:"opens_passthrough"`
	OpensCopy        int64            `json:"opens_copy"`
}
