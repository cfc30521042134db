package blockio

import (
	"errors"
	"fmt"
	"time"

	"millrace/internal/size"
)

// ServerConfig bounds what a Server spends on its peers.
type ServerConfig struct {
	// MaxConnections bounds the connections of all listeners; more are refused.
	MaxConnections int `toml:"max_connections"`
	// MaxRequests bounds the requests in flight on one connection; a client
	// that sends more waits. Those that wait for an under-store which does not
	// answer count, so there are more of them than a connection can carry: one
	// that waits costs a goroutine, about 8 KiB, one that sends what cannot go
	// by sendfile 256 KiB.
	MaxRequests int `toml:"max_requests"`
	// MaxHandles bounds the open files of one connection.
	MaxHandles int `toml:"max_handles"`
	// MaxTicketBytes bounds the sum of the encoded tickets of one
	// connection's open files.
	MaxTicketBytes size.Bytes `toml:"max_ticket_bytes"`
	// HandshakeTimeout is how long a new connection may take to say hello.
	HandshakeTimeout size.Duration `toml:"handshake_timeout"`
	// IdleTimeout is how long a connection may go without a whole frame while
	// none of its requests is in flight.
	IdleTimeout size.Duration `toml:"idle_timeout"`
	// WriteTimeout is how long a peer may take to receive one frame, of at
	// most 1 MiB.
	WriteTimeout size.Duration `toml:"write_timeout"`
	// RequestTimeout bounds a request whose client set no deadline, or a
	// longer one.
	RequestTimeout size.Duration `toml:"request_timeout"`
	// DrainTimeout is how long requests in flight may go on after the server
	// was told to stop.
	DrainTimeout size.Duration `toml:"drain_timeout"`
	// CongestionControl is that of the TCP connections: a name that the kernel
	// knows, "host" for what the host has, or "auto" for the same unless that
	// is bbr, whose pacing costs CPU: then cubic.
	CongestionControl string `toml:"congestion_control"`
	// DescriptorUIDs are the users, beside root and the server's own, whose
	// programs on this host may be given descriptors.
	DescriptorUIDs []int `toml:"descriptor_uids"`
}

// DefaultServerConfig returns the values that suit a worker.
func DefaultServerConfig() ServerConfig {
	return ServerConfig{
		MaxConnections:    1024,
		MaxRequests:       256,
		MaxHandles:        16384,
		MaxTicketBytes:    16 * size.MiB,
		HandshakeTimeout:  size.Duration(10 * time.Second),
		IdleTimeout:       size.Duration(15 * time.Minute),
		WriteTimeout:      size.Duration(30 * time.Second),
		RequestTimeout:    size.Duration(5 * time.Minute),
		DrainTimeout:      size.Duration(5 * time.Second),
		CongestionControl: congestionAuto,
	}
}

// Validate reports every field that is out of range.
func (c ServerConfig) Validate() error {
	return errors.Join(
		inRange("max_connections", c.MaxConnections, 1, 1<<20),
		inRange("max_requests", c.MaxRequests, 1, 4096),
		inRange("max_handles", c.MaxHandles, 1, 1<<24),
		inRange("max_ticket_bytes", c.MaxTicketBytes, 1<<20, size.GiB),
		inRange("handshake_timeout", c.HandshakeTimeout, size.Duration(time.Millisecond), size.Duration(time.Hour)),
		inRange("idle_timeout", c.IdleTimeout, size.Duration(time.Millisecond), size.Duration(24*time.Hour)),
		inRange("write_timeout", c.WriteTimeout, size.Duration(time.Millisecond), size.Duration(time.Hour)),
		inRange("request_timeout", c.RequestTimeout, size.Duration(time.Millisecond), size.Duration(24*time.Hour)),
		inRange("drain_timeout", c.DrainTimeout, 0, size.Duration(time.Hour)),
		ValidCongestionControl(c.CongestionControl),
	)
}

// ClientConfig bounds what a Conn spends and waits for.
type ClientConfig struct {
	// MaxRequests bounds the requests in flight on one connection, and half of
	// it those that are no reads; the server's bound holds too. More wait for
	// their turn.
	MaxRequests int `toml:"max_requests"`
	// HandshakeTimeout bounds connecting and the handshake.
	HandshakeTimeout size.Duration `toml:"handshake_timeout"`
	// WriteTimeout is how long the server may take to receive what was sent.
	WriteTimeout size.Duration `toml:"write_timeout"`
	// CancelTimeout is how long the server may take to end a request that was
	// canceled; after that the connection counts as dead.
	CancelTimeout size.Duration `toml:"cancel_timeout"`

	// BootID and WorkerID tell the server who calls; both may be empty.
	BootID   string `toml:"-"`
	WorkerID string `toml:"-"`
	Token    []byte `toml:"-"` // reserved for security
	// Peer names the server in errors; empty is the address that is dialed.
	Peer string `toml:"-"`
}

// DefaultClientConfig returns the values that suit clients and workers.
func DefaultClientConfig() ClientConfig {
	return ClientConfig{
		MaxRequests:      256,
		HandshakeTimeout: size.Duration(5 * time.Second),
		WriteTimeout:     size.Duration(30 * time.Second),
		CancelTimeout:    size.Duration(10 * time.Second),
	}
}

// Validate reports every field that is out of range.
func (c ClientConfig) Validate() error {
	return errors.Join(
		inRange("max_requests", c.MaxRequests, 1, 4096),
		inRange("handshake_timeout", c.HandshakeTimeout, size.Duration(time.Millisecond), size.Duration(time.Hour)),
		inRange("write_timeout", c.WriteTimeout, size.Duration(time.Millisecond), size.Duration(time.Hour)),
		inRange("cancel_timeout", c.CancelTimeout, size.Duration(time.Millisecond), size.Duration(time.Hour)),
		inRange("boot_id's length", len(c.BootID), 0, maxIDText),
		inRange("worker_id's length", len(c.WorkerID), 0, maxIDText),
		inRange("token's length", len(c.Token), 0, maxToken),
	)
}

func inRange[T int | size.Bytes | size.Duration](field string, v, least, most T) error {
	if v < least || v > most {
		return fmt.Errorf("%s: %v is not in [%v, %v]", field, v, least, most)
	}
	return nil
}
