package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/child"
)

// patience bounds the start and the stop of a role.
const patience = 60 * time.Second

// cluster is a master, a worker and a mount, each a process of its own.
type cluster struct {
	binary, dir, point    string
	env                   []string
	master, worker, mount *role
	masters               string
}

// role is one process, which is started again and again.
type role struct {
	name    string
	dataDir string // of its addresses.json
	log     string
	args    []string
	listens map[string]string // flag -> name in addresses.json

	mu     sync.Mutex        // of what the starts of it change
	chosen map[string]string // flag -> address
	proc   *child.Process    // nil before the first start

	epoch atomic.Int64 // of ends
	up    atomic.Bool
}

func newCluster(binary, dir, cache string, size int64, env []string) *cluster {
	in := func(name string) string { return filepath.Join(dir, name) }
	c := &cluster{binary: binary, dir: dir, point: in("mnt"), env: env}
	c.master = &role{
		name: "master", dataDir: in("master"), args: []string{"--data-dir", in("master")},
		listens: map[string]string{"--listen": "grpc", "--raft-listen": "raft", "--http-listen": "http"},
	}
	c.worker = &role{
		name: "worker", dataDir: in("worker"),
		args:    []string{"--data-dir", in("worker"), "--cache", fmt.Sprintf("%s:%d", cache, size)},
		listens: map[string]string{"--listen": "grpc", "--data-listen": "data", "--http-listen": "http"},
	}
	c.mount = &role{
		name: "mount", dataDir: filepath.Join(in("mount"), url.PathEscape(strings.TrimPrefix(c.point, "/"))),
		args: []string{c.point, "--data-dir", in("mount")}, listens: map[string]string{"--http-listen": "http"},
	}
	for _, r := range c.roles() {
		r.log = in(r.name + ".log")
	}
	return c
}

func (c *cluster) roles() []*role { return []*role{c.master, c.worker, c.mount} }

func (c *cluster) mountEpoch() int64 { return c.mount.epoch.Load() }
func (c *cluster) mountIsUp() bool   { return c.mount.up.Load() }

// start starts all roles and binds the bucket.
func (c *cluster) start(ctx context.Context) error {
	if err := os.Mkdir(c.point, 0o700); err != nil {
		return err
	}
	if err := c.startRole(ctx, c.master); err != nil {
		return err
	}
	c.masters = c.master.chosen["--listen"]
	if err := c.startRole(ctx, c.worker); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ufs", "add", "/", "s3://" + bucket, "--ufs-opt", "ttl=" + ttl.String()},
		{"status", "--wait", patience.String()},
	} {
		if err := c.run(ctx, io.Discard, args...); err != nil {
			return err
		}
	}
	return c.startRole(ctx, c.mount)
}

// startRole starts a role and waits until it is ready. Its ports are those of
// its first start.
func (c *cluster) startRole(ctx context.Context, r *role) error {
	args := append([]string{r.name}, r.args...)
	for flag := range r.listens {
		addr := "127.0.0.1:0"
		if r.chosen != nil {
			addr = r.chosen[flag]
		}
		args = append(args, flag, addr)
	}
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.binary, args...)
	cmd.Env = append(append(os.Environ(), c.env...), "MILLRACE_FUSE_UNMOUNT_TIMEOUT=1s")
	if c.masters != "" {
		cmd.Env = append(cmd.Env, "MILLRACE_MASTERS="+c.masters)
	}
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := child.Start(cmd)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.proc = proc
	r.mu.Unlock()
	return c.await(ctx, r)
}

// process returns the latest process of the role, or nil.
func (r *role) process() *child.Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc
}

func (c *cluster) await(ctx context.Context, r *role) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := r.ready(ctx)
		if err == nil {
			r.up.Store(true)
			return nil
		}
		if p := r.process(); !p.Running() {
			return fmt.Errorf("the %s: %w", r.name, p.Ended())
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the %s is not ready: %w", r.name, err)
		}
	}
}

func (c *cluster) awaitAll(ctx context.Context) error {
	for _, r := range c.roles() {
		if err := c.await(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (r *role) ready(ctx context.Context) error {
	if r.chosen == nil {
		chosen, err := r.addresses()
		if err != nil {
			return err
		}
		r.chosen = chosen
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.chosen["--http-listen"]+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // it only explains
		return errors.New(strings.TrimSpace(string(text)))
	}
	return nil
}

func (r *role) addresses() (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(r.dataDir, "addresses.json"))
	if err != nil {
		return nil, err
	}
	var roles map[string]map[string]string
	if err := json.Unmarshal(b, &roles); err != nil {
		return nil, err
	}
	chosen := map[string]string{}
	for flag, name := range r.listens {
		for _, names := range roles {
			if names[name] != "" {
				chosen[flag] = names[name]
			}
		}
		if chosen[flag] == "" {
			return nil, fmt.Errorf("%s has no address %s", b, name)
		}
	}
	return chosen, nil
}

// leave says that the role is about to end.
func (r *role) leave() {
	r.epoch.Add(1)
	r.up.Store(false)
}

func (r *role) kill() {
	if p := r.process(); p != nil {
		p.Kill()
	}
}

// terminate ends the process by SIGTERM, which must be clean.
func (r *role) terminate() error {
	if err := r.process().Terminate(patience); err != nil {
		return fmt.Errorf("the %s: %w", r.name, err)
	}
	return nil
}

// stop ends all roles, the last one started first.
func (c *cluster) stop() error {
	for _, r := range slices.Backward(c.roles()) {
		r.leave()
		if err := r.terminate(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) kill() {
	for _, r := range slices.Backward(c.roles()) {
		r.kill()
	}
	_ = unix.Unmount(c.point, unix.MNT_DETACH) // what a killed mount left
}

// run runs `millrace args...`.
func (c *cluster) run(ctx context.Context, stdout io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, c.binary, args...)
	// Tools give up soon by themselves; a master that is ended twice in a row,
	// on a busy machine, is away for longer.
	cmd.Env = append(append(os.Environ(), c.env...), "MILLRACE_MASTERS="+c.masters, "MILLRACE_CLIENT_RETRY_FOR=30s")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("millrace %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return nil
}

// showLogs prints the end of each role's log.
func (c *cluster) showLogs() {
	const most = 4 << 10
	for _, r := range c.roles() {
		b, err := os.ReadFile(r.log)
		if err != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "the end of the %s's log:\n%s\n", r.name, b[max(0, len(b)-most):])
	}
}
