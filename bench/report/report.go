package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"millrace/bench/rig"
	"millrace/internal/size"
)

const bucket = "millrace-bench"

// report is one run of the yardstick.
type report struct {
	dir     string
	server  *rig.Server
	cluster *rig.Cluster
	bare    *rig.Bare
	sets    []rig.Dataset
	samples samples
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	binary := flags.String("millrace", "bin/millrace", "the binary to measure")
	runs := flags.Int("runs", 5, "interleaved runs")
	big := size.Bytes(512 << 20)
	flags.TextVar(&big, "big", big, "size of the large object")
	small := flags.Int("small", 2000, "number of 100 KiB objects")
	out := flags.String("json", "bench/out/report.json", "where the JSON goes; empty for nowhere")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount and to drop the kernel's caches")
	}
	r := &report{sets: []rig.Dataset{rig.Big(1, int64(big)), rig.Small(*small, 100<<10)}, samples: samples{}}
	if r.dir, err = os.MkdirTemp("", "millrace-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	if err := r.measure(ctx, *binary, *runs); err != nil {
		return err
	}
	results := r.results(*runs)
	results.print(os.Stdout)
	if *out == "" {
		return nil
	}
	return results.save(*out)
}

func (r *report) measure(ctx context.Context, binary string, runs int) (err error) {
	if r.server, err = rig.StartServer(ctx, filepath.Join(r.dir, "s3")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.server.Stop()) }()
	r.bare = rig.NewBare(r.server.Endpoint, bucket, maxReaders)
	if err := r.bare.CreateBucket(ctx); err != nil {
		return err
	}
	if err := r.bare.Fill(ctx, r.sets...); err != nil {
		return err
	}
	mountPoint := filepath.Join(r.dir, "mnt")
	if err := os.Mkdir(mountPoint, 0o755); err != nil {
		return err
	}
	r.cluster, err = rig.StartCluster(ctx, rig.ClusterConfig{
		Binary: binary, URI: "s3://" + bucket, MountPoint: mountPoint,
		DataDir: filepath.Join(r.dir, "data"), CacheSize: "8GiB",
		Env: r.server.Env(), Stderr: os.Stderr,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.cluster.Stop()) }()
	for i := range runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, runs)
		if err := r.once(ctx); err != nil {
			return err
		}
	}
	return nil
}

// The ways of reading, in the order in which each run takes them.
const (
	wayBare  = "bare S3 client"
	wayCold  = "mount, cold"
	wayWarm  = "mount, warm"
	wayLocal = "local disk"
)

// Concurrency of the readers: the bare client's best on two cores, and what a
// data loader does.
const (
	bareBig      = 8
	bareSmall    = 32
	smallReaders = 8
	maxReaders   = 32
)

// once takes each way of reading on each data set, one after the other, so
// that a machine that gets slower does so for all of them.
func (r *report) once(ctx context.Context) error {
	mount, local := rig.Dir(r.cluster.MountPoint), rig.Dir(r.server.BucketDir(bucket))
	for _, set := range r.sets {
		if err := r.cluster.Run(ctx, io.Discard, os.Stderr, "free", "/"); err != nil {
			return err
		}
		bareReaders, fileReaders := bareBig, 1
		if set.Name == "small" {
			bareReaders, fileReaders = bareSmall, smallReaders
		}
		files := func(src rig.Source) func() error {
			return func() error { return rig.ReadFiles(ctx, src, set, fileReaders, false) }
		}
		for _, w := range []struct {
			name string
			read func() error
		}{
			{wayBare, func() error { return r.bare.Read(ctx, set, bareReaders) }},
			{wayCold, files(mount)},
			{wayWarm, files(mount)},
			{wayLocal, files(local)},
		} {
			if err := rig.DropCaches(); err != nil {
				return err
			}
			cost, err := rig.Measure(r.server, r.cluster.PID(), w.read)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", w.name, set.Name, err)
			}
			r.samples.add(set.Name, w.name, cost)
		}
		if err := rig.ReadFiles(ctx, mount, set, fileReaders, true); err != nil {
			return fmt.Errorf("comparing bytes: %w", err)
		}
	}
	return nil
}
