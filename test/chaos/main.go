package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/bench/rig"
	"millrace/test/hosts"
	"millrace/test/trial"
)

// settle bounds the return to rest at the end, and how long a process takes to
// start or end.
const settle = 2 * time.Minute

func main() {
	os.Exit(hosts.Main(func() int { return rig.Main("chaos", run) }, settle))
}

// options are the program's flags.
type options struct {
	duration time.Duration
	seed     uint64
	binary   string
	readers  int
	kills    int
	only     string
	hdfs     bool
	keep     bool
}

func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.DurationVar(&o.duration, "duration", 10*time.Minute, "how long, without start and end")
	f.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all decisions")
	f.StringVar(&o.binary, "binary", "bin/millrace", "the program")
	f.IntVar(&o.readers, "readers", 4, "concurrent readers")
	f.IntVar(&o.kills, "kills", 10, "kills of the leader at least; what chance leaves out is done at the end")
	f.StringVar(&o.only, "only", "", "masters, workers, store or disks: let only these go wrong")
	f.BoolVar(&o.hdfs, "hdfs", true, "with an HDFS beside S3, where there is Java")
	f.BoolVar(&o.keep, "keep", false, "keep the directory with the logs when it fails")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.only != "" && !slices.Contains([]string{"masters", "workers", "store", "disks"}, o.only) {
		return fmt.Errorf("-only %q: want masters, workers, store or disks", o.only)
	}
	fmt.Printf("chaos for %v, seed %d\n", o.duration, o.seed)
	if err := runHere(ctx, o); err != nil {
		return fmt.Errorf("%w\nrepeat with: make chaos DURATION=%v SEED=%d", err, o.duration, o.seed)
	}
	return nil
}

func runHere(ctx context.Context, o options) (err error) {
	w, err := build(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.showLogs()
		}
		err = errors.Join(err, w.demolish(err != nil && o.keep))
	}()
	if err := w.chaos(ctx, o); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := w.rest(ctx); err != nil {
		return fmt.Errorf("at rest after the chaos: %w", err)
	}
	w.log.Sum()
	w.tally.print()
	return nil
}

// chaos lets everything happen until the time is over or something fails.
func (w *world) chaos(ctx context.Context, o options) error {
	g, gctx := errgroup.WithContext(ctx)
	load, quit := context.WithCancel(gctx) // ends after the faults
	defer quit()
	timed, cancel := context.WithTimeout(gctx, o.duration)
	defer cancel()
	random := trial.NewRandom(o.seed)
	start := func(do func(context.Context, *rand.Rand) error) {
		rng := random.Stream()
		g.Go(func() error { return do(load, rng) })
	}
	for range o.readers {
		start(w.read)
	}
	for i := range callers {
		start(func(ctx context.Context, rng *rand.Rand) error { return w.call(ctx, i, rng) })
	}
	start(w.loadJobs)
	start(w.tell)
	var faults errgroup.Group
	for _, group := range []struct {
		name    string
		trouble func(context.Context, *rand.Rand) error
	}{{"masters", w.troubleMasters}, {"workers", w.troubleWorkers}, {"store", w.troubleStore}, {"disks", w.troubleDisks}} {
		rng := random.Stream()
		if o.only != "" && o.only != group.name {
			continue
		}
		faults.Go(func() error {
			err := group.trouble(timed, rng)
			if err != nil {
				cancel()
			}
			return err
		})
	}
	rng := random.Stream()
	g.Go(func() error {
		defer quit()
		if err := faults.Wait(); err != nil {
			return err
		}
		return w.killLeaders(gctx, rng, o.kills)
	})
	return g.Wait()
}

// tell prints how far it is.
func (w *world) tell(ctx context.Context, _ *rand.Rand) error {
	for trial.Sleep(ctx, 30*time.Second) {
		w.log.Say("%d reads, %d MiB compared, %d calls", w.tally.reads.Load(), w.tally.bytes.Load()>>20, w.history.Len())
	}
	return nil
}
