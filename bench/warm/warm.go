package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"millrace/bench/rig"
	"millrace/internal/size"
	"millrace/internal/wait"
)

const readers = 8 // of small files, as a data loader does

// build is one binary and its running cluster.
type build struct {
	binary  string
	cluster *rig.Cluster
	costs   map[string][]rig.Cost // by data set
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("warm", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "interleaved runs")
	small := flags.Int("small", 10000, "number of small files")
	each := 100 * size.KiB
	flags.TextVar(&each, "size", each, "size of a small file")
	big := size.Bytes(1 << 30)
	flags.TextVar(&big, "big", big, "size of the large file; 0 for none")
	cache := flags.String("cache", "", "directory below which the caches are; /dev/shm is the memory tier")
	options := flags.String("o", "", "mount options")
	pause := flags.Duration("pause", 0, "before each measurement, for what is kept for a while alone to be let go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("which binaries?")
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount and to drop the kernel's caches")
	}
	dir, err := os.MkdirTemp("", "millrace-warm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	caches, err := os.MkdirTemp(*cache, "millrace-warm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(caches)) }()
	sets := []rig.Dataset{rig.Small(*small, int64(each))}
	if big > 0 {
		sets = append(sets, rig.Big(1, int64(big)))
	}
	source := filepath.Join(dir, "source")
	for _, set := range sets {
		if err := rig.CopySet(ctx, source, set); err != nil {
			return err
		}
	}
	var all []*build
	defer func() {
		for _, b := range all {
			err = errors.Join(err, b.cluster.Stop())
		}
	}()
	for i, binary := range flags.Args() {
		b, err := start(ctx, binary, source, filepath.Join(dir, strconv.Itoa(i)), filepath.Join(caches, strconv.Itoa(i)), *options)
		if err != nil {
			return err
		}
		all = append(all, b)
		for _, set := range sets { // cold, and every byte is compared
			if err := rig.ReadFiles(ctx, rig.Dir(b.cluster.MountPoint), set, readers, true); err != nil {
				return fmt.Errorf("%s: %w", binary, err)
			}
		}
	}
	for i := range *runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, *runs)
		for _, set := range sets {
			for _, b := range all {
				if err := wait.For(ctx, *pause); err != nil {
					return err
				}
				if err := b.measure(ctx, set); err != nil {
					return fmt.Errorf("%s, %s: %w", b.binary, set.Name, err)
				}
			}
		}
	}
	return table(os.Stdout, sets, all)
}

// start runs a build over the source and mounts it.
func start(ctx context.Context, binary, source, dir, cache, options string) (*build, error) {
	mountPoint := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		return nil, err
	}
	c, err := rig.StartCluster(ctx, rig.ClusterConfig{
		Binary: binary, URI: "file://" + source, MountPoint: mountPoint, MountOptions: options,
		DataDir: filepath.Join(dir, "data"), CacheDir: cache, CacheSize: "6GiB", Stderr: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	return &build{binary: binary, cluster: c, costs: map[string][]rig.Cost{}}, nil
}

// measure reads a data set once, small files in an order of its own.
func (b *build) measure(ctx context.Context, set rig.Dataset) error {
	n := readers
	if len(set.Objects) == 1 {
		n = 1
	}
	set.Objects = slices.Clone(set.Objects)
	rand.Shuffle(len(set.Objects), func(i, j int) { set.Objects[i], set.Objects[j] = set.Objects[j], set.Objects[i] })
	if err := rig.DropCaches(); err != nil {
		return err
	}
	before, err := rig.CPU(b.cluster.PID())
	if err != nil {
		return err
	}
	self, started := rig.SelfCPU(), time.Now()
	if err := rig.ReadFiles(ctx, rig.Dir(b.cluster.MountPoint), set, n, false); err != nil {
		return err
	}
	cost := rig.Cost{Wall: time.Since(started), Client: rig.SelfCPU() - self}
	after, err := rig.CPU(b.cluster.PID())
	if err != nil {
		return err
	}
	cost.Daemon = after - before
	b.costs[set.Name] = append(b.costs[set.Name], cost)
	return nil
}

func table(w io.Writer, sets []rig.Dataset, all []*build) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "set\tbuild\trate\tdaemon CPU\tlowest to highest\treader's CPU\tmost RSS\t")
	for _, set := range sets {
		per, unit := float64(set.Bytes())/(1<<30), "s/GiB"
		if len(set.Objects) > 1 {
			per, unit = float64(len(set.Objects))/1e6, "us/file"
		}
		for _, b := range all {
			costs := b.costs[set.Name]
			daemon := sorted(costs, func(c rig.Cost) time.Duration { return c.Daemon })
			client := sorted(costs, func(c rig.Cost) time.Duration { return c.Client })
			wall := sorted(costs, func(c rig.Cost) time.Duration { return c.Wall })
			rss, err := rig.PeakRSS(b.cluster.PID())
			if err != nil {
				return err
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%.3g %s\t%.3g to %.3g\t%.3g %s\t%d MiB\t\n", set.Name, b.binary,
				rig.Rate(set, wall[len(wall)/2]), daemon[len(daemon)/2].Seconds()/per, unit,
				daemon[0].Seconds()/per, daemon[len(daemon)-1].Seconds()/per,
				client[len(client)/2].Seconds()/per, unit, rss>>20)
		}
	}
	return t.Flush()
}

func sorted(costs []rig.Cost, of func(rig.Cost) time.Duration) []time.Duration {
	var v []time.Duration
	for _, c := range costs {
		v = append(v, of(c))
	}
	slices.Sort(v)
	return v
}
