package tier

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace/block"
	"millrace/internal/size"
	"millrace/internal/vfs"
)

// Medium is what a cache directory lies on.
type Medium string

// The media, fastest first.
const (
	Memory Medium = "memory" // tmpfs
	SSD    Medium = "ssd"
	HDD    Medium = "hdd"
)

// rank orders the media, fastest first.
func (m Medium) rank() int { return slices.Index([]Medium{Memory, SSD, HDD}, m) }

// Advice is who advises a directory's order of eviction.
type Advice string

// The advisers.
const (
	NoAdvice        Advice = "none"
	RistrettoAdvice Advice = "ristretto"
)

// Config is one cache directory.
type Config struct {
	// Dir is the directory that holds the cache; absolute. It is created if
	// it is missing, and must be empty or a cache directory of this cluster.
	Dir string `toml:"dir"`
	// Medium is what the directory lies on: "memory", "ssd" or "hdd".
	Medium Medium `toml:"medium"`
	// Capacity is how many bytes of the file system the cache may take, its
	// index and directories included; at least 4 MiB.
	Capacity size.Bytes `toml:"capacity"`
	// FreeShare is the share of the file system that stays free whatever the
	// capacity, so that others on it go on working; 0 to 0.9.
	FreeShare float64 `toml:"free_share"`
	// ReplicaShare is the share of the directory that replicas may take: files
	// that another worker owns, kept for the programs of this host; 0 to 1.
	// They go before others when room is needed.
	ReplicaShare float64 `toml:"replica_share"`
	// Advice is who names victims before the order of eviction does: "none",
	// or "ristretto", for memory alone. By replay of traces ristretto's advice
	// gains hits where sizes are mixed, and loses more where files are read in
	// shuffled epochs or one data set follows another.
	Advice Advice `toml:"advice"`
	// OpenFiles is how many descriptors of backing files are kept open for
	// the next read; those in use come on top. One takes about 1 KiB of memory,
	// most of it the kernel's, and saves the opening, half of a small read's
	// processor time. 1 to 1,000,000.
	OpenFiles int `toml:"open_files"`
	// ScrubInterval is how long one pass over all cached pages takes, which
	// compares them with their checksums; 0 switches that off, else at least
	// 1 minute. A small cache takes less: a page is due each minute.
	ScrubInterval size.Duration `toml:"scrub_interval"`
	// ScrubRate bounds the bytes that are compared in a second, so that
	// readers have the disk; a pass that would need more takes longer. At
	// least 4 KiB.
	ScrubRate size.Bytes `toml:"scrub_rate"`
	// MaxErrors is how many operations of the disk may fail within a minute
	// before the directory is taken out of service: its files are fetched
	// anew and kept in others. A disk that turns read-only or is gone is taken
	// out at once; a full one never is. At least 1.
	MaxErrors int `toml:"max_errors"`
	// ProbeInterval is how long after that the directory is looked at, to use
	// it again; the pause doubles with each failure, up to 32 times as long.
	// 10 ms to 1 hour.
	ProbeInterval size.Duration `toml:"probe_interval"`
}

const (
	minCapacity  = 4 << 20
	maxFreeShare = 0.9
	maxOpenFiles = 1_000_000
	minScrub     = size.Duration(time.Minute)
	minScrubRate = 4 << 10

	minProbeInterval = size.Duration(10 * time.Millisecond)
	maxProbeInterval = size.Duration(time.Hour)
)

// DefaultConfig returns the defaults: 10 % of the file system stays free, half
// of the directory may be replicas,
// 16,384 descriptors are kept, and a pass of the scrubber takes 7 days, or
// 32 MiB/s for more than 18 TiB: a quarter of what one hard disk gives. One
// bad sector costs one error, 8 in a minute are a bad disk; it is looked at
// after 10 seconds, and at least each 6 minutes. Dir and Capacity have none.
func DefaultConfig() Config {
	return Config{
		Medium: SSD, FreeShare: 0.10, ReplicaShare: 0.50, Advice: NoAdvice, OpenFiles: 16384,
		ScrubInterval: size.Duration(7 * 24 * time.Hour), ScrubRate: 32 * size.MiB,
		MaxErrors: 8, ProbeInterval: size.Duration(10 * time.Second),
	}
}

// Validate reports every field that is out of range.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(c.Dir) {
		add("dir: %q is not an absolute path", c.Dir)
	}
	if c.Medium.rank() < 0 {
		add("medium: %q is not one of memory, ssd, hdd", c.Medium)
	}
	if c.Capacity < minCapacity {
		add("capacity: %d bytes is less than %d", c.Capacity, minCapacity)
	}
	share := func(field string, v, most float64) {
		if !(v >= 0 && v <= most) { // a NaN is out of range too
			add("%s: %v is out of range [0, %v]", field, v, most)
		}
	}
	share("free_share", c.FreeShare, maxFreeShare)
	share("replica_share", c.ReplicaShare, 1)
	switch {
	case c.Advice != NoAdvice && c.Advice != RistrettoAdvice:
		add("advice: %q is not one of none, ristretto", c.Advice)
	case c.Advice != NoAdvice && c.Medium != Memory:
		add("advice: %s advises memory, not %s", c.Advice, c.Medium)
	}
	if c.OpenFiles < 1 || c.OpenFiles > maxOpenFiles {
		add("open_files: %d is out of range [1, %d]", c.OpenFiles, maxOpenFiles)
	}
	if c.ScrubInterval != 0 && c.ScrubInterval < minScrub {
		add("scrub_interval: %v is less than %v", c.ScrubInterval, minScrub)
	}
	if c.ScrubRate < minScrubRate {
		add("scrub_rate: %d bytes is less than %d", c.ScrubRate, minScrubRate)
	}
	if c.MaxErrors < 1 {
		add("max_errors: %d is less than 1", c.MaxErrors)
	}
	if c.ProbeInterval < minProbeInterval || c.ProbeInterval > maxProbeInterval {
		add("probe_interval: %v is out of range [%v, %v]", c.ProbeInterval, minProbeInterval, maxProbeInterval)
	}
	return errors.Join(problems...)
}

// A part knows its directory by one byte. maxDirs bounds those of one store;
// the other numbers are for those that failed and came back.
const (
	maxDirs    = 64
	maxNumbers = 255
)

// ValidateAll reports every field that is out of range, and directories that
// cannot be used together. Each line begins with the index in cfgs and the
// field, as in "[1].dir: ".
func ValidateAll(cfgs []Config) error {
	if len(cfgs) == 0 {
		return errors.New("there is no cache directory")
	}
	if len(cfgs) > maxDirs {
		return fmt.Errorf("%d cache directories are given, at most %d are allowed", len(cfgs), maxDirs)
	}
	var problems []error
	for i, c := range cfgs {
		if err := c.Validate(); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				problems = append(problems, fmt.Errorf("[%d].%s", i, line))
			}
		}
		for j, other := range cfgs[:i] {
			switch {
			case filepath.Clean(other.Dir) == filepath.Clean(c.Dir):
				problems = append(problems, fmt.Errorf("[%d].dir: %s is given twice, as [%d] too", i, c.Dir, j))
			case inside(c.Dir, other.Dir) || inside(other.Dir, c.Dir):
				problems = append(problems, fmt.Errorf("[%d].dir: %s and [%d] %s are one inside the other", i, c.Dir, j, other.Dir))
			}
		}
	}
	return errors.Join(problems...)
}

// inside reports whether path is below dir.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}

// Options is what a Store needs from its surroundings. All fields may be left
// zero.
type Options struct {
	// FS is the file system below the store; nil is the machine's own.
	FS vfs.FS
	// ClusterID is the cluster that the cached bytes belong to. A directory
	// of another cluster is refused; one that has none yet is bound to this
	// one. Empty accepts any directory and binds none.
	ClusterID string
	// OnChange is told each block whose cached bytes changed, by fills,
	// evictions, drops and failed checks. Calls for one file come one after
	// the other and the last one tells the state that holds; a state may be
	// told twice. It must be fast, and may call Store.Cached, Usage and
	// Blocks, but nothing that fills or drops. It is not called by Open.
	OnChange func(BlockState)
	// Moves bounds the moves between tiers; the zero value is DefaultMoves.
	Moves MoveConfig
	// Refetch is asked for pages that the scrubber found damaged. Without it
	// they are dropped.
	Refetch Refetch
	// BootID is this boot of the machine; the zero value reads the kernel's.
	BootID [16]byte
}

// File is one version of one file, as its ticket has it.
type File struct {
	ID                block.FileID
	MountID           uint64 // under-store mount
	Path, Tag         string
	Length, BlockSize int64 // in bytes
	// Replica says that another worker owns the file: what is kept of it, if
	// nothing is yet, takes part in the replicas' share of a directory, and goes
	// before what is owned.
	Replica bool
	// Piecewise says of a replica that other blocks of the file may be owned
	// here: all that is kept of it is kept as owned.
	Piecewise bool
}

// FileOf returns the file that a ticket grants.
func FileOf(t *block.Ticket) File {
	return File{
		ID: t.FileID, MountID: t.MountID, Path: t.Path, Tag: t.Tag,
		Length: t.Length, BlockSize: t.BlockSize,
	}
}

// Geometry returns the file's division into blocks and pages.
func (f File) Geometry() block.Geometry {
	return block.Geometry{Length: f.Length, BlockSize: f.BlockSize}
}

func (f File) validate() error {
	if err := f.Geometry().Validate(); err != nil {
		return err
	}
	switch {
	case f.ID.IsZero():
		return errors.New("file has no ID")
	case len(f.Path) > block.MaxPathLength:
		return fmt.Errorf("path has %d bytes, at most %d are allowed", len(f.Path), block.MaxPathLength)
	case len(f.Tag) > block.MaxTagLength:
		return fmt.Errorf("version tag has %d bytes, at most %d are allowed", len(f.Tag), block.MaxTagLength)
	}
	return nil
}

// BlockState is what a store holds of one block.
type BlockState struct {
	File        block.FileID
	Index       uint32
	CachedBytes int64
	Whole       bool // every page of the block is there
}

// DirStatus is the state of one cache directory.
type DirStatus struct {
	Medium   Medium
	Dir      string
	Capacity int64 // bytes that it may take
	Limit    int64 // bytes of them that its file system has room for; 0 unless State is StateOK
	Used     int64 // bytes charged: pages, index, directories, reservations and Held
	Held     int64 // bytes of files that are out of the cache but not yet proven free
	Replicas int64 // bytes that count of the replicas' share: the lengths of their files
	State    string
	Reason   error // why it failed; nil unless it did
}

// The states of a directory.
const (
	StateOK     = "ok"
	StateFailed = "failed" // out of service: reads go on without it until its disk is well again
	StateClosed = "closed"
)

// Stats counts what a store did since it was opened.
type Stats struct {
	FilledPages    int64
	FilledBytes    int64
	EvictedBytes   int64 // cached bytes given up for others
	EvictedFiles   int64
	ChecksumErrors int64 // pages that did not match their checksum, or could not be read
	NoSpace        int64 // reservations refused
	PromotedFiles  int64 // moved into a faster tier
	PromotedBytes  int64
	DemotedFiles   int64 // moved into a slower tier, in place of being evicted
	DemotedBytes   int64
	MovesDropped   int64 // promotions not done because too many were waiting
	ScrubbedPages  int64 // compared by the scrubber
	ScrubbedBytes  int64
	RepairedPages  int64 // damaged, and written again in place
	ScrubDropped   int64 // pages that the scrubber found damaged and that could not be repaired
	IOErrors       int64 // failed operations on the disk
	CachedBytes    int64 // now
	CachedFiles    int64 // now
}
