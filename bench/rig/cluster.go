package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"millrace/internal/child"
	"millrace/test/role"
)

// stopPatience is how long `millrace up` may take to stop cleanly.
const stopPatience = 30 * time.Second

// Cluster is a running `millrace up` with ports of its own.
type Cluster struct {
	Binary     string
	MountPoint string // empty: not mounted
	Masters    string // for --masters
	proc       *child.Process
}

// ClusterConfig says what to run.
type ClusterConfig struct {
	Binary     string // bin/millrace
	URI        string // of the under-store
	MountPoint string // empty: no FUSE mount
	// MountOptions are as --mount-opt has them.
	MountOptions string
	DataDir      string   // made if it is missing
	CacheSize    string   // as --cache has it; empty: the default
	CacheDir     string   // empty: below DataDir
	Env          []string // added to this process's environment
	Stderr       io.Writer
}

// StartCluster runs `millrace up` and returns when reads work.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	args := []string{"up", cfg.URI}
	if cfg.MountPoint != "" {
		args = append(args, cfg.MountPoint)
	}
	// A memory tier in /dev/shm would stay behind.
	args = append(args, "--data-dir", cfg.DataDir, "--memory", "0", "--random-ports", "--log-level", "warn")
	if cfg.MountOptions != "" {
		args = append(args, "--mount-opt", cfg.MountOptions)
	}
	if cfg.CacheDir == "" {
		cfg.CacheDir = filepath.Join(cfg.DataDir, "cache")
	}
	if cfg.CacheSize != "" {
		args = append(args, "--cache", cfg.CacheDir+":"+cfg.CacheSize)
	}
	cmd := exec.Command(cfg.Binary, args...) //nolint:noctx // our own binary; ended by Stop, not by a context
	cmd.Env = append(os.Environ(), cfg.Env...)
	cmd.Stderr = cfg.Stderr
	stdout, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	// Asked to end rather than killed, it takes its mount away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	proc, err := child.Start(cmd)
	err = errors.Join(err, w.Close())
	if err != nil {
		return nil, errors.Join(err, stdout.Close())
	}
	c := &Cluster{Binary: cfg.Binary, MountPoint: cfg.MountPoint, proc: proc}
	if err := c.awaitReady(ctx, stdout); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	master, err := role.Addresses(cfg.DataDir, "master")
	if err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	c.Masters = master["grpc"]
	return c, nil
}

// awaitReady waits for the one line that `up` prints. It closes stdout.
func (c *Cluster) awaitReady(ctx context.Context, stdout io.ReadCloser) error {
	line := make(chan string, 1)
	go func() { // ends when the process closes its stdout, at the latest when Stop ends it
		s, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- s
		_ = stdout.Close()
	}()
	select {
	case s := <-line:
		if strings.HasPrefix(s, "ready ") {
			return nil
		}
		return fmt.Errorf("before it was ready: %w", c.proc.Ended())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// PID returns the daemon's process ID.
func (c *Cluster) PID() int { return c.proc.PID() }

// Stop ends the daemon cleanly.
func (c *Cluster) Stop() error { return c.proc.Terminate(stopPatience) }

// Run runs `millrace ARGS...` against the cluster, its output going to the
// given writers.
func (c *Cluster) Run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, c.Binary, args...)
	cmd.Env = append(os.Environ(), "MILLRACE_MASTERS="+c.Masters)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
