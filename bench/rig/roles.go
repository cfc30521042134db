package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Roles is a cluster of one master, one worker and any number of mounts, each
// a process of its own, so that each one's cost is known by itself.
type Roles struct {
	Master, Worker *Role

	cfg    RolesConfig
	mounts []*Role
	env    []string
}

// Role is one process of Roles.
type Role struct {
	addresses map[string]string
	proc      *child
}

// PID returns the process's ID.
func (r *Role) PID() int { return r.proc.cmd.Process.Pid }

// Address returns one of the addresses that the role listens on: grpc, data or
// http.
func (r *Role) Address(name string) string { return r.addresses[name] }

// RolesConfig says what to run.
type RolesConfig struct {
	Binary  string   // bin/millrace
	URI     string   // of the under-store, bound at /
	Options []string // of the under-store mount: KEY=VALUE
	Dir     string   // of all state; made if it is missing
	Cache   string   // as --cache has it
	Env     []string // added to this process's environment
	Stderr  io.Writer
}

// StartRoles runs a master and a worker, and returns when reads work.
func StartRoles(ctx context.Context, cfg RolesConfig) (*Roles, error) {
	r := &Roles{cfg: cfg, env: append(os.Environ(), cfg.Env...)}
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

const anyPort = "127.0.0.1:0"

func (r *Roles) start(ctx context.Context) (err error) {
	if r.Master, err = r.launch(ctx, "master", "--listen", anyPort, "--raft-listen", anyPort); err != nil {
		return err
	}
	r.env = append(r.env, "MILLRACE_MASTERS="+r.Master.Address("grpc"))
	if r.Worker, err = r.launch(ctx, "worker", "--listen", anyPort, "--data-listen", anyPort, "--cache", r.cfg.Cache); err != nil {
		return err
	}
	add := []string{"ufs", "add", "/", r.cfg.URI}
	for _, o := range r.cfg.Options {
		add = append(add, "--ufs-opt", o)
	}
	if err := r.Run(ctx, io.Discard, r.cfg.Stderr, add...); err != nil {
		return err
	}
	return r.Run(ctx, io.Discard, r.cfg.Stderr, "status", "--wait", "30s")
}

// Mount mounts the cluster at point with options as -o has them, and returns
// when it answers.
func (r *Roles) Mount(ctx context.Context, point, options string) (*Role, error) {
	if err := os.MkdirAll(point, 0o700); err != nil {
		return nil, err
	}
	args := []string{point}
	if options != "" {
		args = append(args, "-o", options)
	}
	m, err := r.launch(ctx, "mount", args...)
	if m != nil {
		r.mounts = append(r.mounts, m)
	}
	return m, err
}

// launch starts one role and waits until it tells its addresses, which it does
// when it serves. A role that was started is returned with an error too.
func (r *Roles) launch(ctx context.Context, name string, args ...string) (*Role, error) {
	dir := filepath.Join(r.cfg.Dir, name)
	args = append([]string{name, "--data-dir", dir, "--http-listen", anyPort, "--log-level", "warn"}, args...)
	cmd := exec.Command(r.cfg.Binary, args...) //nolint:noctx // our own binary; ended by Stop, not by a context
	cmd.Env, cmd.Stderr = r.env, r.cfg.Stderr
	proc, err := startChild(cmd)
	if err != nil {
		return nil, err
	}
	started := &Role{proc: proc}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-proc.done:
			return started, fmt.Errorf("millrace %s ended before it was ready: %w", name, proc.err)
		case <-ctx.Done():
			return started, context.Cause(ctx)
		}
		// A mount has a directory of its own below the one that it is given.
		for _, pattern := range []string{"addresses.json", "*/addresses.json"} {
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				continue
			}
			if started.addresses = addressesOf(files[0], name); started.Address("http") != "" {
				return started, nil
			}
		}
	}
}

// addressesOf returns the addresses of a role, nothing while they are not
// written.
func addressesOf(file, role string) map[string]string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var roles map[string]map[string]string
	if json.Unmarshal(b, &roles) != nil {
		return nil
	}
	for name, a := range roles {
		if strings.HasPrefix(name, role) {
			return a
		}
	}
	return nil
}

// Run runs `millrace ARGS...` against the cluster, its output going to the
// given writers.
func (r *Roles) Run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, r.cfg.Binary, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, stdout, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Stop ends the processes cleanly, the mounts first.
func (r *Roles) Stop() error {
	var list []error
	for _, role := range append(r.mounts, r.Worker, r.Master) {
		if role != nil {
			list = append(list, role.proc.stop(stopPatience))
		}
	}
	r.mounts = nil
	return errors.Join(list...)
}
