package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/rig"
	"millrace/internal/child"
)

// patience bounds the start and the end of a peer.
const patience = 60 * time.Second

// place is what a peer mounts, and where it keeps what.
type place struct {
	endpoint rig.Endpoint
	bucket   string
	dir      string // of its own, for caches and metadata
	point    string // where it mounts
}

// peer is a file system of somebody else's.
type peer struct {
	name string
	// prepare runs first, once. A peer that has a layout of its own in the
	// bucket says so by copies, and gets the files by its mount.
	prepare func(p place) []string
	copies  bool
	mount   func(p place) []string // arguments; it stays in the foreground
}

// peers are run with their own defaults and a cache on the disk where they
// have one.
func peers() []peer {
	return []peer{
		{
			name:   "juicefs",
			copies: true,
			prepare: func(p place) []string {
				return []string{
					"format", "--storage", "s3", "--bucket", p.endpoint.URL + "/" + p.bucket + "-juicefs",
					"--access-key", p.endpoint.AccessKey, "--secret-key", p.endpoint.SecretKey, meta(p), "bench",
				}
			},
			mount: func(p place) []string {
				return []string{"mount", meta(p), p.point, "--cache-dir", filepath.Join(p.dir, "cache"), "--no-usage-report", "--max-fuse-io", "1M"}
			},
		},
		{
			name: "geesefs",
			mount: func(p place) []string {
				return []string{"-f", "--endpoint", p.endpoint.URL, "--region", p.endpoint.Region, p.bucket, p.point}
			},
		},
		{
			name: "rclone",
			mount: func(p place) []string {
				return []string{
					"mount", ":s3:" + p.bucket, p.point, "--s3-provider", "Other", "--s3-endpoint", p.endpoint.URL, "--s3-env-auth",
					"--read-only", "--vfs-cache-mode", "full", "--cache-dir", filepath.Join(p.dir, "cache"), "--config", os.DevNull,
				}
			},
		},
	}
}

func meta(p place) string { return "sqlite3://" + filepath.Join(p.dir, "meta.db") }

// mounted is a peer that runs.
type mounted struct {
	proc *child.Process
	p    place
}

// environment is what a peer finds the S3 server's keys in, and nothing else
// about S3.
func (p place) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	return append(env, "AWS_ACCESS_KEY_ID="+p.endpoint.AccessKey, "AWS_SECRET_ACCESS_KEY="+p.endpoint.SecretKey,
		"AWS_REGION="+p.endpoint.Region, "AWS_EC2_METADATA_DISABLED=true", "HOME="+p.dir)
}

// ready prepares a peer, once.
func (e peer) ready(ctx context.Context, p place) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	if e.prepare == nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, e.name, e.prepare(p)...)
	cmd.Env = p.environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", e.name, err, out)
	}
	return nil
}

// start mounts a peer and returns when something is mounted. Without its
// cache, which is then empty.
func (e peer) start(ctx context.Context, p place) (*mounted, error) {
	if err := errors.Join(os.RemoveAll(filepath.Join(p.dir, "cache")), os.MkdirAll(p.point, 0o755)); err != nil {
		return nil, err
	}
	out := child.NewTail(4 << 10)
	cmd := exec.Command(e.name, e.mount(p)...) //nolint:noctx // ended by stop, not by a context
	cmd.Env = p.environment()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	proc, err := child.Start(cmd)
	if err != nil {
		return nil, err
	}
	m := &mounted{proc, p}
	if err := m.await(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %s", e.name, err, strings.TrimSpace(out.String())), m.stop())
	}
	return m, nil
}

func (m *mounted) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if is, err := isMountPoint(m.p.point); is || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-m.proc.Done():
			return m.proc.Ended()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func isMountPoint(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &here), unix.Stat(filepath.Dir(dir), &above)); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

// stop unmounts and ends the process. Peers end in ways of their own: whatever
// status that gives, what counts is that nothing is left.
func (m *mounted) stop() error {
	err := unix.Unmount(m.p.point, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) { // nothing was mounted
		err = nil
	}
	timer := time.NewTimer(patience / 6)
	defer timer.Stop()
	select {
	case <-m.proc.Done():
	case <-timer.C:
		if m.proc.Running() {
			_ = m.proc.Terminate(patience)
		}
	}
	return err
}
