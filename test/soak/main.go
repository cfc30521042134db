// Command soak runs Millrace as people do, a master, a worker and a mount in
// processes of their own before a real S3 server, and lets everything happen
// at once for as long as it is told: readers at random over all objects, with
// every byte checked; objects replaced, deleted and made anew; a cache of a
// quarter of the data on a disk, and of an eighth in memory, both of which others
// fill up; S3 failing in several ways; roles killed, stopped and started again.
//
// It prints what it did and checked. It exits 1 at the first wrong byte, error
// that nothing explains, or process that does not end cleanly, and prints the
// seed with which it makes the same decisions again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/bench/rig"
	"millrace/test/trial"
)

// settle bounds the return to rest at the end.
const settle = 90 * time.Second

func main() { os.Exit(rig.Main("soak", run)) }

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	duration := f.Duration("duration", 10*time.Minute, "how long")
	seed := f.Uint64("seed", rand.Uint64(), "of all decisions")
	binary := f.String("binary", "bin/millrace", "the program")
	readers := f.Int("readers", 4, "readers through the mount")
	keep := f.Bool("keep", false, "keep the directory with the logs when it fails")
	if err := f.Parse(args); err != nil {
		return err
	}
	fmt.Printf("soak for %v, seed %d\n", *duration, *seed)
	w, err := build(ctx, *binary, *seed)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, w.demolish(err != nil && *keep))
		if err != nil {
			err = fmt.Errorf("%w\nrepeat with: make soak DURATION=%v SEED=%d", err, *duration, *seed)
		}
	}()

	if err := w.soak(ctx, *duration, *readers, *seed); err != nil {
		w.showLogs()
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := w.rest(ctx); err != nil {
		w.showLogs()
		return fmt.Errorf("at rest after the soak: %w", err)
	}
	w.log.Sum()
	w.tally.print()
	return nil
}

// soak lets everything happen until the time is over or something fails.
func (w *world) soak(ctx context.Context, duration time.Duration, readers int, seed uint64) error {
	timed, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	g, gctx := errgroup.WithContext(timed)
	random := trial.NewRandom(seed)
	start := func(do func(context.Context, *rand.Rand) error) {
		rng := random.Stream()
		g.Go(func() error { return do(gctx, rng) })
	}
	for range readers {
		start(w.readMount)
	}
	start(w.readTool)
	start(w.changeObjects)
	start(w.makeTrouble)
	start(w.useTools)
	start(w.tell)
	return g.Wait()
}

// tell prints how far it is.
func (w *world) tell(ctx context.Context, _ *rand.Rand) error {
	for trial.Sleep(ctx, 30*time.Second) {
		w.log.Say("%d reads, %d MiB checked", w.tally.reads.Load(), w.tally.bytes.Load()>>20)
	}
	return nil
}
