package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"millrace/test/role"
)

// readyPatience is how long a role may take until it is ready.
const readyPatience = 60 * time.Second

// Roles is a cluster of one master, one worker and any number of mounts, each
// a process of its own, so that each one's CPU time is known by itself.
type Roles struct {
	cfg    RolesConfig
	Master *Role
	Worker *Role
	mounts []*Role
}

// RolesConfig says what to run.
type RolesConfig struct {
	Binary  string // bin/millrace
	URI     string // of the under-store bound at /
	Options []string
	// Host is the address at which the worker's data plane listens; empty is
	// loopback's.
	Host   string
	Dir    string   // of all state; made if it is missing
	Cache  string   // as --cache has it
	Env    []string // added to this process's environment
	Stderr io.Writer
}

// Role is one process of a cluster.
type Role struct {
	role.Process

	dir       string // of addresses.json
	addresses map[string]string
}

// Address returns one of the addresses that the role listens on: grpc, data or
// http.
func (r *Role) Address(name string) string { return r.addresses[name] }

// StartRoles runs a master and a worker, and returns when reads work.
func StartRoles(ctx context.Context, cfg RolesConfig) (*Roles, error) {
	c := &Roles{cfg: cfg}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Roles) start(ctx context.Context) (err error) {
	const anyPort = "127.0.0.1:0"
	dir := filepath.Join(c.cfg.Dir, "master")
	if c.Master, err = c.launch(ctx, "master", dir, "--data-dir", dir, "--listen", anyPort, "--raft-listen", anyPort, "--http-listen", anyPort); err != nil {
		return err
	}
	data := anyPort
	if c.cfg.Host != "" {
		data = net.JoinHostPort(c.cfg.Host, "0")
	}
	dir = filepath.Join(c.cfg.Dir, "worker")
	if c.Worker, err = c.launch(ctx, "worker", dir, "--data-dir", dir, "--cache", c.cfg.Cache, "--listen", anyPort, "--data-listen", data, "--http-listen", anyPort); err != nil {
		return err
	}
	args := []string{"ufs", "add", "/", c.cfg.URI}
	for _, o := range c.cfg.Options {
		args = append(args, "--ufs-opt", o)
	}
	if err := c.Run(ctx, io.Discard, c.cfg.Stderr, args...); err != nil {
		return err
	}
	return c.Run(ctx, io.Discard, c.cfg.Stderr, "status", "--wait", readyPatience.String())
}

// Mount mounts the cluster at point, which is made, with options as -o has
// them, and returns when it answers.
func (c *Roles) Mount(ctx context.Context, point, options string) (*Role, error) {
	if err := os.MkdirAll(point, 0o755); err != nil {
		return nil, err
	}
	base := filepath.Join(c.cfg.Dir, "mounts")
	dir := filepath.Join(base, url.PathEscape(strings.TrimPrefix(point, "/")))
	args := []string{point, "--data-dir", base, "--http-listen", "127.0.0.1:0"}
	if options != "" {
		args = append(args, "-o", options)
	}
	r, err := c.launch(ctx, "mount", dir, args...)
	if err != nil {
		return nil, err
	}
	c.mounts = append(c.mounts, r)
	return r, nil
}

// Unmount ends a mount.
func (c *Roles) Unmount(r *Role) error {
	for i, m := range c.mounts {
		if m == r {
			c.mounts = append(c.mounts[:i], c.mounts[i+1:]...)
			break
		}
	}
	return r.stop()
}

// Stop ends all processes cleanly, mounts first.
func (c *Roles) Stop() error {
	var err error
	for _, m := range c.mounts {
		err = errors.Join(err, m.stop())
	}
	c.mounts = nil
	return errors.Join(err, c.Worker.stop(), c.Master.stop())
}

func (r *Role) stop() error {
	if r == nil {
		return nil
	}
	return r.Terminate(stopPatience)
}

// Run runs `millrace ARGS...` against the cluster, its output going to the
// given writers.
func (c *Roles) Run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, c.cfg.Binary, args...)
	cmd.Env = c.env()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (c *Roles) env() []string {
	env := append(os.Environ(), c.cfg.Env...)
	if c.Master != nil {
		env = append(env, "MILLRACE_MASTERS="+c.Master.Address("grpc"))
	}
	return append(env, "MILLRACE_CLUSTER_LOG_LEVEL=warn")
}

// launch starts a role and waits until it says that it is ready.
func (c *Roles) launch(ctx context.Context, name, dir string, args ...string) (*Role, error) {
	if err := os.RemoveAll(filepath.Join(dir, "addresses.json")); err != nil {
		return nil, err
	}
	cmd := exec.Command(c.cfg.Binary, append([]string{name}, args...)...) //nolint:noctx // our own binary; ended by stop, not by a context
	cmd.Env, cmd.Stderr = c.env(), c.cfg.Stderr
	// Asked to end rather than killed, a mount takes itself away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	r := &Role{Process: role.Process{Name: name}, dir: dir}
	if err := r.Start(cmd); err != nil {
		return nil, err
	}
	if err := r.awaitReady(ctx); err != nil {
		if r.Running() {
			err = errors.Join(err, r.stop())
		}
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	return r, nil
}

func (r *Role) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	err := r.Until(ctx, func() (err error) {
		r.addresses, err = role.Addresses(r.dir, r.Name)
		return err
	})
	if err != nil {
		return err
	}
	r.HTTP = r.Address("http")
	return r.Ready(ctx)
}
