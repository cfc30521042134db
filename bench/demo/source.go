package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"millrace/bench/rig"
	"millrace/client"
)

// mountPoint makes a directory to mount on, or says why there is no mount.
func (d *demo) mountPoint() (dir, why string) {
	if os.Geteuid() != 0 {
		return "", "it needs root"
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return "", "/dev/fuse cannot be opened"
	}
	if err := f.Close(); err != nil {
		return "", err.Error()
	}
	dir = filepath.Join(d.dir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err.Error()
	}
	return dir, ""
}

// source says how the cluster's files are read: through its mount, or by the
// SDK where there is none.
func (d *demo) source(ctx context.Context, cluster *rig.Cluster) (src rig.Source, through string, closeSource func() error, err error) {
	if cluster.MountPoint != "" {
		return rig.Dir(cluster.MountPoint), "through the mount", func() error { return nil }, nil
	}
	cfg := client.DefaultConfig()
	cfg.Masters = []string{cluster.Masters}
	c, err := client.Dial(ctx, cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, "", nil, errors.Join(errors.New("connect the SDK"), err)
	}
	open := func(ctx context.Context, key string) (rig.File, error) { return c.Open(ctx, "/"+key) }
	return open, "by the SDK", c.Close, nil
}
