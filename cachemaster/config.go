package cachemaster

import (
	"errors"
	"fmt"
	"net"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/loadjob"
)

// Config is the [master] part of the configuration.
type Config struct {
	// ID names this master in the group. Empty: one is drawn at the first
	// start and kept in the data directory.
	ID string `toml:"id"`
	// Voters are the masters that found the group: it begins when all of them
	// are up for the first time. A master that is not among them waits to be
	// added. Empty: this one alone.
	Voters []Voter `toml:"voter"`
	// AdvertiseRaft is the address at which the other masters reach this
	// one's Raft listener. Empty: the listener's own.
	AdvertiseRaft string `toml:"advertise_raft"`
	// AdvertiseGRPC is the address at which clients and workers reach this
	// master. Empty: the listener's own.
	AdvertiseGRPC string `toml:"advertise_grpc"`

	// RaftHeartbeatTimeout is how long a follower waits for the leader before it
	// stands for election; each further one waits a tenth longer.
	RaftHeartbeatTimeout size.Duration `toml:"raft_heartbeat_timeout"`
	// RaftElectionTimeout is how long an election may take before another one.
	RaftElectionTimeout size.Duration `toml:"raft_election_timeout"`
	// RaftLeaderLeaseTimeout is how long a leader goes on without hearing
	// from a majority.
	RaftLeaderLeaseTimeout size.Duration `toml:"raft_leader_lease_timeout"`
	// RaftCommitTimeout is after what time without entries a leader tells
	// followers how far is committed.
	RaftCommitTimeout size.Duration `toml:"raft_commit_timeout"`
	// RaftSnapshotEntries is after how many log entries a snapshot is taken.
	RaftSnapshotEntries uint64 `toml:"raft_snapshot_entries"`
	// RaftSnapshotInterval is how often that is looked at, drawn anew each time
	// between it and its double: it bounds the log under a burst of changes.
	RaftSnapshotInterval size.Duration `toml:"raft_snapshot_interval"`
	// RaftTrailingEntries is how many log entries are kept behind a snapshot,
	// so that a master that was away for a while needs no snapshot.
	RaftTrailingEntries uint64 `toml:"raft_trailing_entries"`
	// ApplyTimeout bounds the wait for one change to be committed.
	ApplyTimeout size.Duration `toml:"apply_timeout"`

	// SuspectAfter is after what silence a worker is tried last.
	SuspectAfter size.Duration `toml:"suspect_after"`
	// LostAfter is after what silence a worker's blocks count as gone.
	LostAfter size.Duration `toml:"lost_after"`
	// WholeFileLimit is the length up to which one worker owns all of a file;
	// longer ones are spread over the workers by their blocks. All masters want
	// the same one; another one holds from the next heartbeat on, and moves files
	// to other owners. 0: an eighth of the smallest cache directory of all
	// workers.
	WholeFileLimit size.Bytes `toml:"whole_file_limit"`

	// HotRate is how many bytes per second of one block, or of a file that one
	// worker owns, other hosts may read from a worker before a further one serves
	// it too; a read of less than 64 KiB counts as that many, since it costs a
	// worker as much. The default is a fifth of a network of 10 Gb/s. 0: never.
	HotRate size.Bytes `toml:"hot_rate"`
	// HotReplicas is how many workers may serve a block beside its owner: 1 to
	// 100.
	HotReplicas int `toml:"hot_replicas"`
	// HotHold is for how long less than half of what asked for them must be read
	// before there are fewer again.
	HotHold size.Duration `toml:"hot_hold"`

	// BlockSize is the block size of under-store mounts that name none: a
	// multiple of 256 KiB up to 1 GiB.
	BlockSize size.Bytes `toml:"block_size"`
	// FreshnessTTL is for how long metadata is used on under-store mounts
	// that name no ttl.
	FreshnessTTL size.Duration `toml:"freshness_ttl"`
	// NeverTTL is for how long clients use metadata of under-store mounts
	// with freshness "never" without asking again.
	NeverTTL size.Duration `toml:"never_ttl"`
	// MissingTTL bounds for how long the answer that nothing is at a path is
	// used, whatever the freshness: data that never changes is added to.
	MissingTTL size.Duration `toml:"missing_ttl"`
	// TicketTTL is how long a ticket is valid.
	TicketTTL size.Duration `toml:"ticket_ttl"`
	// MetadataCacheBytes bounds the memory of the metadata cache.
	MetadataCacheBytes size.Bytes `toml:"metadata_cache_bytes"`
	// MaxListingEntries is up to how many entries a directory's listing is
	// kept in the metadata cache; a longer one is streamed and forgotten.
	MaxListingEntries int `toml:"max_listing_entries"`
	// ListAheadLooks is after how many looks at single files of a directory,
	// within its freshness, the directory is listed for the sake of further
	// ones: one request for up to a thousand files. 0: never.
	ListAheadLooks int `toml:"list_ahead_looks"`
	// ListAheadEntries is up to how many entries such a listing goes, four
	// requests by default. A longer directory's files are looked at one by one
	// again until its freshness ends.
	ListAheadEntries int `toml:"list_ahead_entries"`
	// UFSTimeout bounds one look at an under-store's file.
	UFSTimeout size.Duration `toml:"ufs_timeout"`
	// ProbeTimeout bounds the look at an under-store before it is added.
	ProbeTimeout size.Duration `toml:"probe_timeout"`

	// Jobs is how many load jobs run at a time; others wait.
	Jobs int `toml:"jobs"`
	// TasksPerWorker is how many load tasks of one job run on a worker at a
	// time: two, so that one is under way while the next one is sent.
	TasksPerWorker int `toml:"tasks_per_worker"`
	// TaskItems is how many items one load task has at most.
	TaskItems int `toml:"task_items"`
	// TaskBytes is after how many bytes a load task takes no further item.
	TaskBytes size.Bytes `toml:"task_bytes"`
	// ItemAttempts is how often an item of a load job is tried when its
	// worker breaks off or the under-store is unavailable. The waits between
	// double from half a second to ten, so that the default of 8 outlasts a
	// worker's restart.
	ItemAttempts int `toml:"item_attempts"`
	// JobCommitInterval is how often a running job's progress is committed.
	JobCommitInterval size.Duration `toml:"job_commit_interval"`
	// Job bounds a job's bookkeeping.
	Job loadjob.Config `toml:"job"`

	// WorkerTimeout bounds one question to a worker.
	WorkerTimeout size.Duration `toml:"worker_timeout"`
	// MaxClients is of how many mounts and SDK processes the counters are
	// kept, those that are gone included.
	MaxClients int `toml:"max_clients"`
	// ClientTTL is for how long the counters of a client that went away count
	// in the cluster's sums.
	ClientTTL size.Duration `toml:"client_ttl"`
	// StopTimeout bounds the wait for calls under way when the master stops.
	StopTimeout size.Duration `toml:"stop_timeout"`
}

// Voter is one master of the group.
type Voter struct {
	// ID is its name.
	ID string `toml:"id"`
	// Raft is the address of its Raft listener.
	Raft string `toml:"raft"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		RaftHeartbeatTimeout:   size.Duration(time.Second),
		RaftElectionTimeout:    size.Duration(time.Second),
		RaftLeaderLeaseTimeout: size.Duration(500 * time.Millisecond),
		RaftCommitTimeout:      size.Duration(50 * time.Millisecond),
		RaftSnapshotEntries:    8192,
		RaftSnapshotInterval:   size.Duration(10 * time.Second),
		RaftTrailingEntries:    8192,
		ApplyTimeout:           size.Duration(10 * time.Second),
		SuspectAfter:           size.Duration(3 * time.Second),
		LostAfter:              size.Duration(30 * time.Second),
		HotRate:                256 * size.MiB,
		HotReplicas:            4,
		HotHold:                size.Duration(30 * time.Second),
		BlockSize:              size.Bytes(block.DefaultBlockSize),
		FreshnessTTL:           size.Duration(time.Minute),
		NeverTTL:               size.Duration(time.Hour),
		MissingTTL:             size.Duration(time.Minute),
		TicketTTL:              size.Duration(time.Hour),
		MetadataCacheBytes:     256 * size.MiB,
		MaxListingEntries:      100_000,
		ListAheadLooks:         2,
		ListAheadEntries:       4000,
		UFSTimeout:             size.Duration(30 * time.Second),
		ProbeTimeout:           size.Duration(10 * time.Second),
		Jobs:                   4,
		TasksPerWorker:         2,
		TaskItems:              256,
		TaskBytes:              256 * size.MiB,
		ItemAttempts:           8,
		JobCommitInterval:      size.Duration(time.Second),
		Job:                    loadjob.DefaultConfig(),
		WorkerTimeout:          size.Duration(10 * time.Second),
		MaxClients:             1000,
		ClientTTL:              size.Duration(time.Hour),
		StopTimeout:            size.Duration(5 * time.Second),
	}
}

// Validate reports every value that is out of its range.
func (c Config) Validate() error {
	var found []error
	bad := func(key, format string, args ...any) {
		found = append(found, errs.E(errs.Invalid, "", key, fmt.Errorf(format, args...)))
	}
	for _, d := range []struct {
		key string
		val size.Duration
	}{
		{"raft_heartbeat_timeout", c.RaftHeartbeatTimeout},
		{"raft_election_timeout", c.RaftElectionTimeout},
		{"raft_leader_lease_timeout", c.RaftLeaderLeaseTimeout},
		{"raft_commit_timeout", c.RaftCommitTimeout},
		{"raft_snapshot_interval", c.RaftSnapshotInterval},
		{"apply_timeout", c.ApplyTimeout},
		{"suspect_after", c.SuspectAfter},
		{"hot_hold", c.HotHold},
		{"freshness_ttl", c.FreshnessTTL},
		{"never_ttl", c.NeverTTL},
		{"missing_ttl", c.MissingTTL},
		{"ticket_ttl", c.TicketTTL},
		{"ufs_timeout", c.UFSTimeout},
		{"probe_timeout", c.ProbeTimeout},
		{"job_commit_interval", c.JobCommitInterval},
		{"worker_timeout", c.WorkerTimeout},
		{"client_ttl", c.ClientTTL},
		{"stop_timeout", c.StopTimeout},
	} {
		if d.val < size.Duration(time.Millisecond) {
			bad(d.key, "must be at least 1ms, is %s", d.val)
		}
	}
	for _, n := range []struct {
		key string
		val int64
	}{
		{"raft_snapshot_entries", int64(min(c.RaftSnapshotEntries, 1<<62))},
		{"raft_trailing_entries", int64(min(c.RaftTrailingEntries, 1<<62))},
		{"metadata_cache_bytes", int64(c.MetadataCacheBytes)},
		{"max_listing_entries", int64(c.MaxListingEntries)},
		{"list_ahead_entries", int64(c.ListAheadEntries)},
		{"jobs", int64(c.Jobs)},
		{"tasks_per_worker", int64(c.TasksPerWorker)},
		{"task_items", int64(c.TaskItems)},
		{"task_bytes", int64(c.TaskBytes)},
		{"item_attempts", int64(c.ItemAttempts)},
		{"max_clients", int64(c.MaxClients)},
		{"hot_replicas", int64(c.HotReplicas)},
	} {
		if n.val < 1 {
			bad(n.key, "must be at least 1, is %d", n.val)
		}
	}
	if c.RaftElectionTimeout < c.RaftHeartbeatTimeout {
		bad("raft_election_timeout", "must not be below raft_heartbeat_timeout, %s", c.RaftHeartbeatTimeout)
	}
	if c.RaftLeaderLeaseTimeout > c.RaftHeartbeatTimeout {
		bad("raft_leader_lease_timeout", "must not be above raft_heartbeat_timeout, %s", c.RaftHeartbeatTimeout)
	}
	if c.LostAfter <= c.SuspectAfter {
		bad("lost_after", "must be above suspect_after, %s, is %s", c.SuspectAfter, c.LostAfter)
	}
	if c.ListAheadLooks < 0 {
		bad("list_ahead_looks", "must not be negative")
	}
	if c.HotRate < 0 {
		bad("hot_rate", "must not be negative")
	}
	if c.HotReplicas > maxHotReplicas {
		bad("hot_replicas", "must be at most %d, is %d", maxHotReplicas, c.HotReplicas)
	}
	if c.WholeFileLimit < 0 {
		bad("whole_file_limit", "must not be negative")
	}
	if err := (block.Geometry{BlockSize: int64(c.BlockSize)}).Validate(); err != nil {
		bad("block_size", "%w", err)
	}
	if err := c.Job.Validate(); err != nil {
		bad("job", "%w", err)
	}
	found = append(found, c.validateVoters()...)
	return errors.Join(found...)
}

func (c Config) validateVoters() []error {
	var found []error
	ids := make(map[string]bool)
	for i, v := range c.Voters {
		key := fmt.Sprintf("voter[%d]", i)
		if v.ID == "" || ids[v.ID] {
			found = append(found, errs.E(errs.Invalid, "", key+".id", fmt.Errorf("must be there and differ from the others', is %q", v.ID)))
		}
		ids[v.ID] = true
		if _, _, err := net.SplitHostPort(v.Raft); err != nil {
			found = append(found, errs.E(errs.Invalid, "", key+".raft", err))
		}
	}
	if len(c.Voters) > 0 && c.ID == "" {
		found = append(found, errs.E(errs.Invalid, "", "id", errors.New("must be given where voters are")))
	}
	return found
}
