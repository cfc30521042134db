package cacheworker

import (
	"errors"
	"fmt"
	"math"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/size"
)

// Config is what an operator may set of a worker, beside its addresses,
// directories and masters.
type Config struct {
	// Heartbeat is how often each master hears from the worker. Masters
	// suspect a worker after 3 s of silence.
	Heartbeat size.Duration `toml:"heartbeat"`
	// MasterTimeout bounds each call to a master.
	MasterTimeout size.Duration `toml:"master_timeout"`
	// ReportInterval is how long changes of cached blocks are gathered before
	// they are reported.
	ReportInterval size.Duration `toml:"report_interval"`
	// ReportQueue bounds the blocks whose change a master has not been told
	// yet, about 64 bytes each; past it a full report takes their place.
	ReportQueue int `toml:"report_queue"`
	// ReadaheadMax bounds what is fetched ahead of one sequential reader; 0
	// switches read-ahead off. It is never more than 1/8 of the smallest cache
	// directory.
	ReadaheadMax size.Bytes `toml:"readahead_max"`
	// FetchSize is the most that one request to an under-store asks for. A
	// longer miss is several requests at a time.
	FetchSize size.Bytes `toml:"fetch_size"`
	// FetchConcurrency bounds the requests in flight to one under-store mount.
	FetchConcurrency int `toml:"fetch_concurrency"`
	// MaxInflightBytes bounds the bytes asked for and not yet received, over
	// all under-stores. One under-store mount alone has at most 3/4 of them,
	// and the more others are busy the less; each may always send one request.
	MaxInflightBytes size.Bytes `toml:"max_inflight_bytes"`
	// LoadConcurrency bounds the items of one under-store mount that load
	// tasks work on at a time; those of all of them are at most twice as many.
	LoadConcurrency int `toml:"load_concurrency"`
	// PeerTimeout bounds each request to another worker for what that has cached,
	// and four times the question to a master who has it: then the under-store
	// is asked.
	PeerTimeout size.Duration `toml:"peer_timeout"`
	// DrainTimeout is how long requests in flight may go on once the worker
	// was told to stop.
	DrainTimeout size.Duration `toml:"drain_timeout"`
	// CongestionControl is TCP's on the data plane: a name that the kernel
	// knows, "host" for what the host has, or "auto" for the same unless that
	// is bbr. That sends by timers, which costs a worker half as much CPU again
	// and gains nothing within a cluster: cubic takes its place.
	CongestionControl string `toml:"congestion_control"`
	// DescriptorUIDs are the numeric users, beside root and the worker's own,
	// whose programs on this host may be given descriptors of cached files;
	// all others read through the worker. A descriptor cannot be taken back:
	// name those who may read all that the cluster holds.
	DescriptorUIDs []int `toml:"descriptor_uids"`
}

// DefaultConfig returns the values that suit a host with a fast network: a
// sequential reader has two to four requests of 4 MiB under way, which cost the
// CPU of a GET half as often as 2 MiB, and 256 MiB in flight are what 64
// connections to S3 need at 50 ms and 80 MB/s each.
func DefaultConfig() Config {
	return Config{
		Heartbeat:         size.Duration(time.Second),
		MasterTimeout:     size.Duration(5 * time.Second),
		ReportInterval:    size.Duration(100 * time.Millisecond),
		ReportQueue:       100_000,
		ReadaheadMax:      16 * size.MiB,
		FetchSize:         4 * size.MiB,
		FetchConcurrency:  64,
		MaxInflightBytes:  256 * size.MiB,
		LoadConcurrency:   16,
		PeerTimeout:       size.Duration(time.Second),
		DrainTimeout:      size.Duration(5 * time.Second),
		CongestionControl: "auto",
		DescriptorUIDs:    []int{},
	}
}

// Validate reports every field that is out of range.
func (c Config) Validate() error {
	const page = size.Bytes(block.PageSize)
	return errors.Join(
		inRange("heartbeat", c.Heartbeat, size.Duration(10*time.Millisecond), size.Duration(time.Minute)),
		inRange("master_timeout", c.MasterTimeout, size.Duration(10*time.Millisecond), size.Duration(10*time.Minute)),
		inRange("report_interval", c.ReportInterval, size.Duration(time.Millisecond), size.Duration(time.Minute)),
		inRange("report_queue", c.ReportQueue, reportBatch, 10_000_000),
		inRange("readahead_max", c.ReadaheadMax, 0, size.GiB),
		inRange("fetch_size", c.FetchSize, page, size.GiB),
		inRange("fetch_concurrency", c.FetchConcurrency, 1, 10_000),
		inRange("max_inflight_bytes", c.MaxInflightBytes, c.FetchSize, 1024*size.GiB),
		inRange("load_concurrency", c.LoadConcurrency, 1, 10_000),
		inRange("peer_timeout", c.PeerTimeout, size.Duration(10*time.Millisecond), size.Duration(10*time.Minute)),
		inRange("drain_timeout", c.DrainTimeout, 0, size.Duration(time.Hour)),
		blockio.ValidCongestionControl(c.CongestionControl),
		c.validateUIDs(),
	)
}

func (c Config) validateUIDs() error {
	for _, uid := range c.DescriptorUIDs {
		if uid < 0 || uid > math.MaxUint32 {
			return fmt.Errorf("descriptor_uids: %d is no user ID", uid)
		}
	}
	return nil
}

func inRange[T int | size.Bytes | size.Duration](field string, v, least, most T) error {
	if v < least || v > most {
		return fmt.Errorf("%s: %v is not in [%v, %v]", field, v, least, most)
	}
	return nil
}
