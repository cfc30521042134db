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

	"millrace/internal/child"
)

// Roles is a cluster whose master, worker and mount are processes of their
// own, so that each one's cost can be told.
type Roles struct {
	Master, Worker, Mount *Role

	binary string
	env    []string
}

// Role is one process of Roles.
type Role struct {
	HTTP string // address of its operations server
	proc *child.Process
}

// PID returns the process's ID.
func (r *Role) PID() int { return r.proc.PID() }

// RolesConfig says what to run.
type RolesConfig struct {
	Binary     string // bin/millrace
	DataDir    string // made if it is missing
	MountPoint string
	URI        string            // of the under-store, bound at /
	Options    map[string]string // of the under-store mount
	Env        []string          // added to this process's environment
	Stderr     io.Writer
}

// StartRoles starts master, worker and mount, each when the one before is
// ready.
func StartRoles(ctx context.Context, cfg RolesConfig) (_ *Roles, err error) {
	r := &Roles{binary: cfg.Binary, env: append(os.Environ(), cfg.Env...)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop())
		}
	}()
	dir := func(role string) string { return filepath.Join(cfg.DataDir, role) }
	const port = "127.0.0.1:0"
	var addresses map[string]string
	if r.Master, addresses, err = r.start(ctx, cfg, "master", dir("master"),
		"--listen", port, "--raft-listen", port); err != nil {
		return nil, err
	}
	r.env = append(r.env, "MILLRACE_MASTERS="+addresses["grpc"])
	if r.Worker, _, err = r.start(ctx, cfg, "worker", dir("worker"),
		"--listen", port, "--data-listen", port, "--cache", dir("cache")+":1GiB"); err != nil {
		return nil, err
	}
	add := []string{"ufs", "add", "/", cfg.URI}
	for k, v := range cfg.Options {
		add = append(add, "--ufs-opt", k+"="+v)
	}
	if err = r.Run(ctx, io.Discard, cfg.Stderr, add...); err != nil {
		return nil, err
	}
	if err = r.Run(ctx, io.Discard, cfg.Stderr, "status", "--wait", "30s"); err != nil {
		return nil, err
	}
	r.Mount, _, err = r.start(ctx, cfg, "mount", dir("mount"), cfg.MountPoint)
	return r, err
}

// start starts one role and waits until it tells its addresses, which it does
// when it serves.
func (r *Roles) start(ctx context.Context, cfg RolesConfig, role, dir string, args ...string) (*Role, map[string]string, error) {
	args = append([]string{role}, args...)
	args = append(args, "--data-dir", dir, "--http-listen", "127.0.0.1:0", "--log-level", "warn")
	cmd := exec.Command(cfg.Binary, args...) //nolint:noctx // our own binary; ended by Stop, not by a context
	cmd.Env, cmd.Stderr = r.env, cfg.Stderr
	proc, err := child.Start(cmd)
	if err != nil {
		return nil, nil, err
	}
	started := &Role{proc: proc}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-proc.Done():
			return started, nil, fmt.Errorf("millrace %s ended before it was ready: %w", role, proc.Err())
		case <-ctx.Done():
			return started, nil, context.Cause(ctx)
		}
		// A mount has a directory of its own below the one that it is given.
		for _, name := range []string{"addresses.json", "*/addresses.json"} {
			files, err := filepath.Glob(filepath.Join(dir, name))
			if err != nil || len(files) == 0 {
				continue
			}
			if a := addressesOf(files[0], role); a["http"] != "" {
				started.HTTP = a["http"]
				return started, a, nil
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

// Run runs `millrace ARGS...` against the cluster.
func (r *Roles) Run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, r.binary, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, stdout, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Stop ends the processes cleanly, the mount first.
func (r *Roles) Stop() error {
	var list []error
	for _, role := range []*Role{r.Mount, r.Worker, r.Master} {
		if role != nil {
			list = append(list, role.proc.Terminate(stopPatience))
		}
	}
	return errors.Join(list...)
}
