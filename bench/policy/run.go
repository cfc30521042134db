package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"millrace/tier"
)

// policy is a cache of a bounded number of bytes. access brings the object in
// if it is absent and reports whether it was there. An object larger than the
// capacity is never kept.
type policy interface {
	access(r request) (hit bool)
}

// outcome is what counts of a replay.
type outcome struct {
	Requests int     `json:"requests"`
	Hits     int     `json:"hits"`
	Bytes    int64   `json:"bytes"`
	HitBytes int64   `json:"hit_bytes"`
	Ratio    float64 `json:"hit_ratio"`
}

func (o *outcome) add(r request, hit bool) {
	o.Requests++
	o.Bytes += r.size
	if hit {
		o.Hits++
		o.HitBytes += r.size
	}
	o.Ratio = float64(o.Hits) / float64(o.Requests)
}

// result is one cell of a table.
type result struct {
	Trace    string `json:"trace"`
	Policy   string `json:"policy"`
	Percent  int64  `json:"capacity_percent"`
	Capacity int64  `json:"capacity_bytes"`
	outcome
}

// ours is package tier's own code.
type ours struct{ replay *tier.Replay }

func (o ours) access(r request) bool { return o.replay.Access(uint64(r.key), r.size) }

// names of the policies, in the order of the columns.
func names() []string {
	return []string{"lru", "sieve", "s3fifo", "ristretto", "millrace", "optimum"}
}

// replay runs one policy over a trace.
func replay(name string, t trace, capacity int64) (o outcome, err error) {
	var p policy
	switch name {
	case "lru":
		p = newLRU(capacity)
	case "sieve":
		p = newSieve(capacity)
	case "s3fifo":
		p = newS3FIFO(capacity)
	case "ristretto":
		r, err := newRistretto(capacity, int64(t.objects)*capacity/t.total)
		if err != nil {
			return o, err
		}
		defer r.close()
		p = r
	case "millrace":
		r, err := tier.NewReplay(capacity)
		if err != nil {
			return o, err
		}
		p = ours{r}
	case "optimum":
		return optimum(t, capacity), nil
	}
	for i, r := range t.requests {
		hit := p.access(r)
		if i >= t.warm {
			o.add(r, hit)
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("policy", flag.ContinueOnError)
	seed := flags.Uint64("seed", 1, "of the traces")
	objects := flags.Int("objects", 20_000, "`number` of objects in a trace; at least 100")
	rounds := flags.Int("rounds", 20, "requests for each object, on average; at least 2")
	only := flags.String("trace", "", "`name` of the one trace to replay")
	file := flags.String("json", "", "`file` for the figures, beside the tables")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *objects < 100 || *rounds < 2 {
		return errors.New("too few objects or rounds")
	}
	var all []result
	for _, t := range traces(*seed, scale{*objects, *rounds}) {
		if *only != "" && t.name != *only {
			continue
		}
		results, err := replayAll(ctx, t)
		if err != nil {
			return err
		}
		if err := printTable(os.Stdout, t, results); err != nil {
			return err
		}
		all = append(all, results...)
	}
	if *file == "" {
		return nil
	}
	data, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(*file, append(data, '\n'), 0o644)
}

// replayAll runs all policies over a trace, at all capacities.
func replayAll(ctx context.Context, t trace) (all []result, err error) {
	for _, percent := range []int64{1, 5, 10, 25, 50, 75} {
		for _, name := range names() {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			r := result{Trace: t.name, Policy: name, Percent: percent, Capacity: t.total * percent / 100}
			if r.outcome, err = replay(name, t, r.Capacity); err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// printTable prints the results of one trace, a line for each capacity.
func printTable(w io.Writer, t trace, all []result) error {
	fmt.Fprintf(w, "%s: %s\n", t.name, t.what)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "capacity\t")
	for _, n := range names() {
		fmt.Fprint(tw, n, "\t")
	}
	for i, r := range all {
		if i%len(names()) == 0 {
			fmt.Fprintf(tw, "\n%d %%\t", r.Percent)
		}
		fmt.Fprintf(tw, "%.3f\t", r.Ratio)
	}
	fmt.Fprint(tw, "\n\n")
	return tw.Flush()
}
