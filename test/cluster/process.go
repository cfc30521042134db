package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"millrace/test/hosts"
	"millrace/test/role"
)

// Process is one role of a cluster, which may be started again and again; it
// keeps its addresses and its directory.
type Process struct {
	role.Process

	// Dir holds its configuration, its log, and what is its own.
	Dir string

	role   string
	host   hosts.Place
	ports  map[string]int // by the names of addresses.json
	args   []string       // further ones of the command
	binary string
	env    []string
}

// DiskDir is below which the process keeps everything that is on a disk: its
// state, and its cache if it is a worker.
func (p *Process) DiskDir() string { return filepath.Join(p.Dir, "disk") }

// DataDir is where the process keeps its state.
func (p *Process) DataDir() string { return filepath.Join(p.DiskDir(), "data") }

// Address returns where it listens: "grpc", "http", and "raft" of a master or
// "data" of a worker.
func (p *Process) Address(name string) string {
	return net.JoinHostPort(p.host.Address, strconv.Itoa(p.ports[name]))
}

// CacheDir is a worker's cache directory. It need not be there before the first
// start.
func (p *Process) CacheDir() string { return filepath.Join(p.DiskDir(), "cache") }

// MemoryDir is the directory of a worker's tier in memory.
func (p *Process) MemoryDir() string { return filepath.Join(p.Dir, "memory") }

// Point is where a mount is mounted.
func (p *Process) Point() string { return filepath.Join(p.Dir, "mnt") }

// ConfigFile is its configuration.
func (p *Process) ConfigFile() string { return filepath.Join(p.Dir, "config.toml") }

// LogFile is what it wrote, at all its starts.
func (p *Process) LogFile() string { return filepath.Join(p.Dir, "log") }

func (p *Process) configure(toml string) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(p.ConfigFile(), []byte(toml), 0o600)
}

// Start starts it and does not wait for it.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(slices.Clone(p.host.Enter), p.binary, p.role, "--config", p.ConfigFile())
	args = append(args, p.args...)
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	return p.Process.Start(cmd)
}

// Terminate ends it by SIGTERM, which must be clean.
func (p *Process) Terminate(patience time.Duration) error {
	return p.explain(p.Process.Terminate(patience))
}

// Ready waits until it says that it is ready.
func (p *Process) Ready(ctx context.Context) error { return p.explain(p.Process.Ready(ctx)) }

// explain adds the end of the log to an error.
func (p *Process) explain(err error) error {
	if err != nil {
		err = fmt.Errorf("%w; its log ends with:\n%s", err, p.LogTail())
	}
	return err
}

// Wipe removes its state, and its cache if it is a worker, as a new disk does.
// It must have ended.
func (p *Process) Wipe() error {
	return errors.Join(empty(p.DataDir()), empty(p.CacheDir()), empty(p.MemoryDir()))
}

// empty removes what is in a directory, which may be missing, and leaves the
// directory itself: it may be a mount point.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Leads reports whether it is a master that says it leads.
func (p *Process) Leads(ctx context.Context) bool {
	n, err := p.Metric(ctx, "millrace_master_leader")
	return err == nil && n == 1
}

// LogTail returns the end of its log.
func (p *Process) LogTail() string {
	const most = 8 << 10
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
