package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"millrace/bench/rig"
	"millrace/internal/size"
)

const (
	bucket  = "peers"
	readers = 8 // of small files
)

// comparison is one run of the whole.
type comparison struct {
	dir        string
	big, small rig.Dataset
	server     *rig.Server
	bare       *rig.Bare
	rows       []*row
}

// row is what one did of one work, in every run.
type row struct {
	What  string `json:"work"`
	Who   string `json:"by"`
	Costs []cost `json:"runs"`
}

// cost is what one measurement took.
type cost struct {
	Rate float64 `json:"rate"`
	CPU  float64 `json:"cpu"` // of the daemon, by the amount
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench-peers", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "runs")
	big := size.GiB
	flags.TextVar(&big, "big", big, "size of the large object")
	small := flags.Int("small", 10000, "number of 100 KiB objects")
	out := flags.String("json", "bench/out/peers.json", "where the JSON goes; empty for nowhere")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount and to drop the kernel's caches")
	}
	var found []peer
	for _, p := range peers() {
		if _, err := exec.LookPath(p.name); err != nil {
			fmt.Fprintf(os.Stderr, "%s is not on PATH: left out\n", p.name)
			continue
		}
		found = append(found, p)
	}
	if len(found) == 0 {
		fmt.Fprintln(os.Stderr, "there is nobody to compare with")
		return nil
	}
	c := &comparison{big: rig.Big(1, int64(big)), small: rig.Small(*small, 100<<10)}
	if c.dir, err = os.MkdirTemp("", "millrace-peers-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	if err := c.measureAll(ctx, found, *runs); err != nil {
		return err
	}
	c.print(os.Stdout, *runs)
	if *out == "" {
		return nil
	}
	return c.save(*out)
}

func (c *comparison) measureAll(ctx context.Context, found []peer, runs int) (err error) {
	if c.server, err = rig.StartServer(ctx, filepath.Join(c.dir, "s3")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.server.Stop()) }()
	c.bare = rig.NewBare(c.server.Endpoint, bucket, 32)
	if err := c.bare.CreateBucket(ctx); err != nil {
		return err
	}
	if err := c.bare.Fill(ctx, c.big, c.small); err != nil {
		return err
	}
	for _, p := range found {
		if err := c.ready(ctx, p); err != nil {
			return err
		}
	}
	for i := range runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, runs)
		if err := c.references(ctx, uint64(i)); err != nil {
			return err
		}
		for _, p := range found {
			if err := c.measurePeer(ctx, p, uint64(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) place(p peer) place {
	dir := filepath.Join(c.dir, p.name)
	return place{endpoint: c.server.Endpoint, bucket: bucket, dir: dir, point: filepath.Join(c.dir, p.name+"-mount")}
}

// ready prepares a peer; one that keeps files in its own layout gets them.
func (c *comparison) ready(ctx context.Context, p peer) error {
	at := c.place(p)
	if err := p.ready(ctx, at); err != nil || !p.copies {
		return err
	}
	m, err := p.start(ctx, at)
	if err != nil {
		return err
	}
	for _, d := range []rig.Dataset{c.big, c.small} {
		if err := rig.CopySet(ctx, at.point, d); err != nil {
			return errors.Join(err, m.stop())
		}
	}
	return m.stop()
}

// references measures what the peers are held against.
func (c *comparison) references(ctx context.Context, seed uint64) error {
	for _, w := range []struct {
		what string
		work float64
		set  rig.Dataset
		at   int
	}{{"cold, sequential", c.mib(), c.big, 8}, {"cold, small files", c.files(), c.small, 32}} {
		if err := c.measure("S3 client", w.what, w.work, 1, 0, func() error { return c.bare.Read(ctx, w.set, w.at) }); err != nil {
			return err
		}
	}
	return c.warm(ctx, "local disk", c.server.BucketDir(bucket), 0, seed)
}

func (c *comparison) measurePeer(ctx context.Context, p peer, seed uint64) (err error) {
	at := c.place(p)
	m, err := p.start(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	pid := m.proc.PID()
	if err := c.measure(p.name, "cold, sequential", c.mib(), 1<<10, pid, func() error {
		return rig.Sequential(ctx, filepath.Join(at.point, c.big.Objects[0].Key))
	}); err != nil {
		return err
	}
	if err := c.measure(p.name, "cold, small files", c.files(), 1e6, pid, func() error {
		return rig.Epoch(ctx, at.point, c.small, readers, seed)
	}); err != nil {
		return err
	}
	if err := c.warm(ctx, p.name, at.point, pid, seed); err != nil {
		return err
	}
	for _, d := range []rig.Dataset{c.big, c.small} {
		if err := rig.ReadFiles(ctx, rig.Dir(at.point), d, readers, true); err != nil {
			return fmt.Errorf("comparing the bytes of %s: %w", p.name, err)
		}
	}
	return nil
}

// warm measures what has been read before.
func (c *comparison) warm(ctx context.Context, who, root string, pid int, seed uint64) error {
	big := filepath.Join(root, c.big.Objects[0].Key)
	pages := min(32_000, int(c.big.Bytes()>>13))
	opens := min(3_000, len(c.small.Objects))
	for _, w := range []struct {
		what      string
		work, per float64
		do        func() error
	}{
		{"warm, sequential", c.mib(), 1 << 10, func() error { return rig.Sequential(ctx, big) }},
		{"warm, 4 KiB random, 8 readers", float64(pages), 1e6, func() error { return rig.Random(ctx, big, c.big.Bytes(), pages, readers, seed) }},
		{"warm, small files", c.files(), 1e6, func() error { return rig.Epoch(ctx, root, c.small, readers, seed+1) }},
		{"stat", c.files(), 1e6, func() error {
			_, err := rig.StatTree(ctx, filepath.Join(root, "small"))
			return err
		}},
		{"open and close", float64(opens), 1e6, func() error { return rig.OpenClose(ctx, root, c.small, opens) }},
	} {
		if err := c.measure(who, w.what, w.work, w.per, pid, w.do); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) mib() float64   { return float64(c.big.Bytes()) / (1 << 20) }
func (c *comparison) files() float64 { return float64(len(c.small.Objects)) }

// measure does something with the kernel's caches dropped. The CPU time of
// process pid, if it is not 0, is kept by per units of work.
func (c *comparison) measure(who, what string, work, per float64, pid int, do func() error) error {
	if err := rig.DropCaches(); err != nil {
		return err
	}
	cpu := func() (time.Duration, error) {
		if pid == 0 {
			return 0, nil
		}
		return rig.CPU(pid)
	}
	before, err := cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s, %s: %w", who, what, err)
	}
	wall := time.Since(start)
	after, err := cpu()
	if err != nil {
		return err
	}
	r := c.row(who, what)
	r.Costs = append(r.Costs, cost{work / wall.Seconds(), (after - before).Seconds() * per / work})
	return nil
}

// row finds a row; a new one stands behind those of the same work.
func (c *comparison) row(who, what string) *row {
	at := len(c.rows)
	for i, r := range c.rows {
		if r.What != what {
			continue
		}
		if r.Who == who {
			return r
		}
		at = i + 1
	}
	r := &row{What: what, Who: who}
	c.rows = slices.Insert(c.rows, at, r)
	return r
}

func (c *comparison) print(w io.Writer, runs int) {
	fmt.Fprintf(w, "%d runs; MiB/s and CPU s/GiB for the large object, files or reads a second and CPU us each for the rest.\nMedians, and in parentheses the lowest and the highest.\n\n", runs)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "work\tby\trate\t\tdaemon CPU\t")
	for _, r := range c.rows {
		rates, cpu := values(r.Costs, func(c cost) float64 { return c.Rate }), values(r.Costs, func(c cost) float64 { return c.CPU })
		fmt.Fprintf(t, "%s\t%s\t%.0f\t(%.0f to %.0f)\t%.3g\t\n", r.What, r.Who, rates[len(rates)/2], rates[0], rates[len(rates)-1], cpu[len(cpu)/2])
	}
	_ = t.Flush()
}

func values(all []cost, of func(cost) float64) []float64 {
	v := make([]float64, 0, len(all))
	for _, c := range all {
		v = append(v, of(c))
	}
	slices.Sort(v)
	return v
}

func (c *comparison) save(path string) error {
	b, err := json.MarshalIndent(c.rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
