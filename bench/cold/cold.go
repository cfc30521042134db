package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"millrace/bench/rig"
	"millrace/internal/size"
)

const (
	bucket    = "bench"
	readers   = 8 // of small files, as a data loader does
	bareBig   = 8 // the bare client at its best on two processors
	bareSmall = 32
)

// cost is what one measurement took: CPU of the mount, the worker and the
// master, in this order, and of this process.
type cost struct {
	wall  time.Duration
	roles [3]time.Duration
	self  time.Duration
}

// build is one binary and its running cluster.
type build struct {
	binary string
	point  string
	roles  *rig.Roles
	mount  *rig.Role
	costs  map[string][]cost // by work
}

// work is one thing that is measured of each build.
type work struct {
	name    string
	set     rig.Dataset
	bare    int // readers of the bare client
	mounted bool
	do      func(ctx context.Context, b *build, set rig.Dataset) error
}

func works(big, small rig.Dataset) []work {
	load := func(path string) func(context.Context, *build, rig.Dataset) error {
		return func(ctx context.Context, b *build, _ rig.Dataset) error {
			return b.roles.Run(ctx, io.Discard, io.Discard, "load", path)
		}
	}
	return []work{
		{"seq", big, bareBig, true, func(ctx context.Context, b *build, set rig.Dataset) error {
			return rig.Sequential(ctx, filepath.Join(b.point, filepath.FromSlash(set.Objects[0].Key)))
		}},
		{"small", small, bareSmall, true, func(ctx context.Context, b *build, set rig.Dataset) error {
			return rig.Epoch(ctx, b.point, set, readers, 1)
		}},
		{"load", big, bareBig, false, load("/big")},
		{"loads", small, bareSmall, false, load("/small")},
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("cold", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "interleaved runs")
	small := flags.Int("small", 5000, "number of objects of 100 KiB")
	big := size.Bytes(1 << 30)
	flags.TextVar(&big, "big", big, "size of the large object")
	only := flags.String("only", "seq,small,load,loads", "what is measured")
	options := flags.String("o", "", "mount options")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("which binaries?")
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount and to drop the kernel's caches")
	}
	dir, err := os.MkdirTemp("", "millrace-cold-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := rig.StartServer(ctx, filepath.Join(dir, "s3"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	bare := rig.NewBare(server.Endpoint, bucket, bareSmall)
	if err := bare.CreateBucket(ctx); err != nil {
		return err
	}
	all := works(rig.Big(1, int64(big)), rig.Small(*small, 100<<10))
	wanted := strings.Split(*only, ",")
	all = slices.DeleteFunc(all, func(w work) bool { return !slices.Contains(wanted, w.name) })
	if err := fill(ctx, bare, all); err != nil {
		return err
	}
	var builds []*build
	defer func() {
		for _, b := range builds {
			err = errors.Join(err, b.roles.Stop())
		}
	}()
	for i, binary := range flags.Args() {
		b := &build{binary: binary, point: filepath.Join(dir, "mnt", strconv.Itoa(i)), costs: map[string][]cost{}}
		b.roles, err = rig.StartRoles(ctx, rig.RolesConfig{
			Binary: binary, URI: "s3://" + bucket + "/", Options: []string{"freshness=never"},
			Dir: filepath.Join(dir, strconv.Itoa(i)), Cache: filepath.Join(dir, "cache", strconv.Itoa(i)) + ":16GiB",
			Env: server.Env(), Stderr: os.Stderr,
		})
		if err != nil {
			return err
		}
		builds = append(builds, b)
	}
	bares := map[string][]cost{}
	for i := range *runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, *runs)
		for _, w := range all {
			if err := measureAll(ctx, w, bare, bares, builds, *options); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return table(os.Stdout, all, bares, builds)
}

// fill puts every data set into the bucket once.
func fill(ctx context.Context, bare *rig.Bare, all []work) error {
	var sets []rig.Dataset
	for _, w := range all {
		if !slices.ContainsFunc(sets, func(d rig.Dataset) bool { return d.Name == w.set.Name }) {
			sets = append(sets, w.set)
		}
	}
	return bare.Fill(ctx, sets...)
}

// measureAll does a work by the bare client and by every build.
func measureAll(ctx context.Context, w work, bare *rig.Bare, bares map[string][]cost, builds []*build, options string) error {
	if err := rig.DropCaches(); err != nil {
		return err
	}
	self, started := rig.SelfCPU(), time.Now()
	if err := bare.Read(ctx, w.set, w.bare); err != nil {
		return err
	}
	bares[w.name] = append(bares[w.name], cost{wall: time.Since(started), self: rig.SelfCPU() - self})
	for _, b := range builds {
		if err := b.measure(ctx, w, options); err != nil {
			return fmt.Errorf("%s: %w", b.binary, err)
		}
	}
	return nil
}

// measure does a work once, with nothing cached, through a mount of its own if
// it needs one.
func (b *build) measure(ctx context.Context, w work, options string) (err error) {
	if err := b.roles.Run(ctx, io.Discard, os.Stderr, "free", "/"); err != nil {
		return err
	}
	if w.mounted {
		if b.mount, err = b.roles.Mount(ctx, b.point, options); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, b.roles.Unmount(b.mount))
			b.mount = nil
		}()
	}
	if err := rig.DropCaches(); err != nil {
		return err
	}
	before, err := b.cpu()
	if err != nil {
		return err
	}
	self, started := rig.SelfCPU(), time.Now()
	if err := w.do(ctx, b, w.set); err != nil {
		return err
	}
	c := cost{wall: time.Since(started), self: rig.SelfCPU() - self}
	after, err := b.cpu()
	if err != nil {
		return err
	}
	for i := range c.roles {
		c.roles[i] = after[i] - before[i]
	}
	b.costs[w.name] = append(b.costs[w.name], c)
	return nil
}

// cpu returns the CPU time of the roles.
func (b *build) cpu() (all [3]time.Duration, err error) {
	for i, r := range []*rig.Role{b.mount, b.roles.Worker, b.roles.Master} {
		if r == nil {
			continue
		}
		if all[i], err = rig.CPU(r.PID()); err != nil {
			return all, err
		}
	}
	return all, nil
}

// table prints medians, and of what is compared the lowest and the highest.
func table(to io.Writer, all []work, bares map[string][]cost, builds []*build) error {
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "work\tbuild\trate\tx bare\tlowest to highest\tCPU\tlowest to highest\tmount\tworker\tmaster\treader\t")
	for _, w := range all {
		per, unit := float64(w.set.Bytes())/(1<<30), "s/GiB"
		if len(w.set.Objects) > 1 {
			per, unit = float64(len(w.set.Objects))/1e6, "us"
		}
		bare := bares[w.name]
		of := func(costs []cost, f func(c cost) time.Duration) []float64 {
			var v []float64
			for _, c := range costs {
				v = append(v, f(c).Seconds()/per)
			}
			slices.Sort(v)
			return v
		}
		wall := func(costs []cost) time.Duration {
			return time.Duration(median(of(costs, func(c cost) time.Duration { return c.wall })) * per * float64(time.Second))
		}
		fmt.Fprintf(t, "%s\tbare\t%s\t\t\t\t\t\t\t\t%.3g\t\n", w.name, rig.Rate(w.set, wall(bare)), median(of(bare, func(c cost) time.Duration { return c.self })))
		for _, b := range builds {
			costs := b.costs[w.name]
			var ratios []float64
			for i := range costs {
				ratios = append(ratios, bare[i].wall.Seconds()/costs[i].wall.Seconds())
			}
			slices.Sort(ratios)
			cpu := of(costs, func(c cost) time.Duration { return c.roles[0] + c.roles[1] + c.roles[2] })
			fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%.2f to %.2f\t%.3g %s\t%.3g to %.3g\t", w.name, filepath.Base(b.binary), rig.Rate(w.set, wall(costs)),
				median(ratios), ratios[0], ratios[len(ratios)-1], median(cpu), unit, cpu[0], cpu[len(cpu)-1])
			for i := range 3 {
				fmt.Fprintf(t, "%.3g\t", median(of(costs, func(c cost) time.Duration { return c.roles[i] })))
			}
			fmt.Fprintf(t, "%.3g\t\n", median(of(costs, func(c cost) time.Duration { return c.self })))
		}
	}
	return t.Flush()
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }
