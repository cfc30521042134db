package client

import (
	"errors"
	"fmt"
	"time"

	"millrace/internal/size"
)

// Config is the section [client]: how the SDK, and with it the FUSE mount and
// the command line, talks to the cluster.
type Config struct {
	// Masters are the gRPC addresses of the masters, HOST:PORT. One that
	// answers is enough; the leader is found through it.
	Masters []string `toml:"-"`
	// HostID tells the host of this process from others: a worker that says the
	// same is of this host. "" is the boot ID of the machine.
	HostID string `toml:"-"`

	// CallTimeout bounds one attempt at a master.
	CallTimeout size.Duration `toml:"call_timeout"`
	// MasterSilence is after what time without an answer of a master the others
	// are asked whether one of them leads now, as after the leader's machine
	// froze.
	MasterSilence size.Duration `toml:"master_silence"`
	// RetryFor is how long a call is repeated while no leader answers it.
	RetryFor size.Duration `toml:"retry_for"`
	// ReadTimeout bounds one attempt at a worker.
	ReadTimeout size.Duration `toml:"read_timeout"`
	// ReadRetryFor is how long a read is repeated while no worker can serve
	// it; then the reader gets an error.
	ReadRetryFor size.Duration `toml:"read_retry_for"`
	// Owners is how many workers are tried for a block, best first, before
	// the read waits a moment and begins again with as many more: 1 to 16.
	Owners int `toml:"owners"`
	// HedgeShare is of which part of the reads, when their worker is slow against
	// its own history, a second worker is asked: 0 to 1, 0 for none. Where a worker
	// does not answer at all, or has not for 2 s, others always are.
	HedgeShare float64 `toml:"hedge_share"`
	// TCPConnections is how many connections a worker on another host gets;
	// they are pipelined. 1 to 64.
	TCPConnections int `toml:"tcp_connections"`
	// UnixConnections is how many connections a worker on this host gets: 1 to
	// 64.
	UnixConnections int `toml:"unix_connections"`
	// ReadParallel bounds the pieces of one large read that are under way at
	// once: 1 to 64.
	ReadParallel int `toml:"read_parallel"`
	// IdleHandles is how many files that nobody reads stay registered on each
	// connection to a worker, so that they open again without a round trip:
	// 0 to 8192.
	IdleHandles int `toml:"idle_handles"`
	// ShortCircuit lets a worker on this host hand out descriptors of files
	// that it has cached whole, which are then read without it.
	ShortCircuit bool `toml:"short_circuit"`
	// Descriptors bounds the descriptors of cached files that are kept, 1 to
	// 1048576; 0 is a quarter of the files that the process may have open beyond
	// 512, at most 16384. Files for which there is none are read through the
	// worker.
	Descriptors int `toml:"descriptors"`
	// EntryCache is how many files stay known for as long as the master's
	// answer about them is valid, so that they open without a master: 1 to
	// 1048576.
	EntryCache int `toml:"entry_cache"`
}

// DefaultConfig returns the defaults, without masters.
func DefaultConfig() Config {
	return Config{
		CallTimeout:     size.Duration(30 * time.Second),
		MasterSilence:   size.Duration(time.Second),
		RetryFor:        size.Duration(30 * time.Second),
		ReadTimeout:     size.Duration(20 * time.Second),
		ReadRetryFor:    size.Duration(90 * time.Second),
		Owners:          3,
		HedgeShare:      0.05,
		TCPConnections:  4,
		UnixConnections: 2,
		ReadParallel:    4,
		IdleHandles:     8192,
		ShortCircuit:    true,
		EntryCache:      16384,
	}
}

// Validate checks the ranges of all fields.
func (c *Config) Validate() error {
	var list []error
	bad := func(field string, v any, want string) {
		list = append(list, fmt.Errorf("client.%s: %v: want %s", field, v, want))
	}
	if len(c.Masters) == 0 {
		list = append(list, errors.New("client.masters: want at least one HOST:PORT"))
	}
	for _, d := range []struct {
		field string
		v     size.Duration
	}{
		{"call_timeout", c.CallTimeout},
		{"master_silence", c.MasterSilence},
		{"retry_for", c.RetryFor},
		{"read_timeout", c.ReadTimeout},
		{"read_retry_for", c.ReadRetryFor},
	} {
		if d.v.Std() < time.Millisecond || d.v.Std() > 24*time.Hour {
			bad(d.field, d.v, "1ms to 24h")
		}
	}
	if !(c.HedgeShare >= 0 && c.HedgeShare <= 1) { // not what is no number either
		bad("hedge_share", c.HedgeShare, "0 to 1")
	}
	for _, n := range []struct {
		field       string
		v, low, top int
	}{
		{"owners", c.Owners, 1, 16},
		{"tcp_connections", c.TCPConnections, 1, 64},
		{"unix_connections", c.UnixConnections, 1, 64},
		{"read_parallel", c.ReadParallel, 1, 64},
		{"idle_handles", c.IdleHandles, 0, 8192},
		{"descriptors", c.Descriptors, 0, 1 << 20},
		{"entry_cache", c.EntryCache, 1, 1 << 20},
	} {
		if n.v < n.low || n.v > n.top {
			bad(n.field, n.v, fmt.Sprintf("%d to %d", n.low, n.top))
		}
	}
	return errors.Join(list...)
}
