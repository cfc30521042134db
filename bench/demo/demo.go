package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"millrace/bench/rig"
)

const (
	bucket       = "millrace-demo"
	smallReaders = 8
	bareReaders  = 8
)

// demo is one run: its directory, its server, and what it reads.
type demo struct {
	dir    string
	server *rig.Server
	bare   *rig.Bare
	sets   []rig.Dataset
	drop   func() error // forgets the kernel's caches, where that is allowed
	rows   []row
}

type row struct {
	phase string
	set   rig.Dataset
	cost  rig.Cost
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := flags.String("millrace", "bin/millrace", "the binary to show")
	quick := flags.Bool("quick", false, "a tenth of the data")
	if err := flags.Parse(args); err != nil {
		return err
	}
	d := &demo{sets: []rig.Dataset{rig.Big(2, 256<<20), rig.Small(2000, 100<<10)}, drop: rig.DropCaches}
	if *quick {
		d.sets = []rig.Dataset{rig.Big(2, 25<<20), rig.Small(200, 100<<10)}
	}
	if d.dir, err = os.MkdirTemp("", "millrace-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()

	if err := d.startServer(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.server.Stop()) }()
	return d.show(ctx, *binary)
}

func (d *demo) startServer(ctx context.Context) error {
	start := time.Now()
	server, err := rig.StartServer(ctx, filepath.Join(d.dir, "s3"))
	if err != nil {
		return err
	}
	d.server = server
	d.bare = rig.NewBare(server.Endpoint, bucket, bareReaders)
	if err := d.bare.CreateBucket(ctx); err != nil {
		return errors.Join(err, server.Stop())
	}
	if err := d.bare.Fill(ctx, d.sets...); err != nil {
		return errors.Join(err, server.Stop())
	}
	say("A real S3 server runs on %s, and its bucket s3://%s holds", server.Endpoint.URL, bucket)
	for _, set := range d.sets {
		say("  %5d objects of %s", len(set.Objects), size(set.Objects[0].Size))
	}
	say("generated in %.1f s.\n", time.Since(start).Seconds())
	return nil
}

func (d *demo) show(ctx context.Context, binary string) (err error) {
	mountPoint, why := d.mountPoint()
	if why != "" {
		say("No FUSE mount here: %s. The files are read by the Go SDK instead.\n", why)
	}
	if err := d.drop(); err != nil {
		say("The kernel's caches cannot be dropped (%v), so local disk and warm reads may come from them.\n", err)
		d.drop = func() error { return nil }
	}
	cluster, err := rig.StartCluster(ctx, rig.ClusterConfig{
		Binary: binary, URI: "s3://" + bucket, MountPoint: mountPoint,
		DataDir: filepath.Join(d.dir, "data"), CacheSize: "4GiB",
		Env: d.server.Env(), Stderr: os.Stderr,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()

	source, through, closeSource, err := d.source(ctx, cluster)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	say("$ millrace up s3://%s %s\nready.\n", bucket, mountPoint)

	if err := d.phases(ctx, cluster, source, through); err != nil {
		return err
	}
	fmt.Println()
	d.print(os.Stdout)
	return d.verdict(ctx, source, through)
}

// phases reads the bucket in each way in turn.
func (d *demo) phases(ctx context.Context, cluster *rig.Cluster, source rig.Source, through string) error {
	viaFiles := func(src rig.Source) func(rig.Dataset) error {
		return func(set rig.Dataset) error { return rig.ReadFiles(ctx, src, set, readers(set), false) }
	}
	direct := func(set rig.Dataset) error { return d.bare.Read(ctx, set, bareReaders) }
	if err := d.measure(ctx, cluster, "direct from S3", direct); err != nil {
		return err
	}
	if err := d.measure(ctx, cluster, "cold "+through, viaFiles(source)); err != nil {
		return err
	}
	say("\nNow the cache is emptied, and a load job fills it:\n")
	for _, args := range [][]string{{"free", "/"}, {"load", "/"}} {
		say("$ millrace %s %s", args[0], args[1])
		if err := cluster.Run(ctx, os.Stdout, os.Stderr, args...); err != nil {
			return err
		}
	}
	if err := d.measure(ctx, cluster, "warm "+through, viaFiles(source)); err != nil {
		return err
	}
	return d.measure(ctx, cluster, "local disk", viaFiles(rig.Dir(d.server.BucketDir(bucket))))
}

// measure runs read on every data set and keeps what it cost.
func (d *demo) measure(ctx context.Context, cluster *rig.Cluster, phase string, read func(rig.Dataset) error) error {
	for _, set := range d.sets {
		if err := d.drop(); err != nil {
			return err
		}
		cost, err := rig.Measure(d.server, cluster.PID(), func() error { return read(set) })
		if err != nil {
			return fmt.Errorf("%s, %s: %w", phase, set.Name, err)
		}
		d.rows = append(d.rows, row{phase, set, cost})
		say("%-24s %-5s  %s", phase, set.Name, rig.Rate(set, cost.Wall))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// verdict compares every byte once more, and holds the warm phase to its
// promise.
func (d *demo) verdict(ctx context.Context, source rig.Source, through string) error {
	var warm int64
	for _, r := range d.rows {
		if r.phase == "warm "+through {
			warm += r.cost.Gets + r.cost.Others
		}
	}
	for _, set := range d.sets {
		if err := rig.ReadFiles(ctx, source, set, smallReaders, true); err != nil {
			return fmt.Errorf("comparing bytes: %w", err)
		}
	}
	say("\nEvery byte was compared with its source.")
	if warm != 0 {
		return fmt.Errorf("the warm phase asked S3 %d times, and should not have asked at all", warm)
	}
	say("The warm phase asked S3 for nothing.")
	return nil
}

func readers(set rig.Dataset) int {
	if set.Name == "small" {
		return smallReaders
	}
	return 1
}
