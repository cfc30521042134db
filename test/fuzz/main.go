// Command fuzz runs every fuzz target of the module, one after the other, and
// prints for each what was run: executions, and the size of its corpus. The
// time it is given is for all targets together.
//
// It exits 1 when a target fails, which leaves the input under the package's
// testdata/fuzz: a test from then on. With -keep, the smallest inputs that
// reached new code, which Go keeps in its build cache, are brought there too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("fuzz", run)) }

// leastTime is what a target gets at least.
const leastTime = 5 * time.Second

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("fuzz", flag.ContinueOnError)
	duration := f.Duration("duration", 10*time.Minute, "for all targets together")
	parallel := f.Int("parallel", 0, "inputs tried at once; 0: as many as there are processors")
	keep := f.Bool("keep", false, "bring the corpora into testdata/fuzz")
	if err := f.Parse(args); err != nil {
		return err
	}
	patterns := f.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	targets, err := find(ctx, patterns)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("there are no fuzz targets")
	}
	cache, err := fuzzCache(ctx)
	if err != nil {
		return err
	}
	each := max(*duration/time.Duration(len(targets)), leastTime)
	fmt.Printf("%d fuzz targets, %v each\n", len(targets), each.Round(time.Second))
	var executions int64
	failed := 0
	for _, t := range targets {
		r, err := t.run(ctx, each, *parallel)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		kept := 0
		if err == nil && *keep {
			kept, err = t.keep(cache)
		}
		executions += r.executions
		fmt.Println(line(t, r, err, kept))
		if err != nil {
			fmt.Println(err)
			failed++
		}
	}
	fmt.Printf("%d executions of %d targets\n", executions, len(targets))
	if failed > 0 {
		return fmt.Errorf("%d targets failed", failed)
	}
	return nil
}

// line is what is printed of one target.
func line(t target, r result, err error, kept int) string {
	s := fmt.Sprintf("%-60s %12d executions %6d inputs %4d new", t, r.executions, r.corpus, r.found)
	if kept > 0 {
		s += " " + strconv.Itoa(kept) + " kept"
	}
	if r.late {
		s += " (stopped late)"
	}
	if err != nil {
		s += " FAILED"
	}
	return s
}
