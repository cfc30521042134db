package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// changeObjects replaces and deletes objects until ctx ends.
func (w *world) changeObjects(ctx context.Context, rng *rand.Rand) error {
	for sleep(ctx, between(rng, 100*time.Millisecond, time.Second)) {
		o := w.objects[rng.IntN(len(w.objects))]
		var err error
		if rng.IntN(6) == 0 {
			w.tally.event("delete an object")
			err = o.remove(ctx, w.s3)
			if err == nil && !sleep(ctx, between(rng, 0, 3*time.Second)) {
				return nil
			}
		}
		if err == nil {
			w.tally.event("put an object")
			err = o.put(ctx, w.s3)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// makeTrouble does one bad thing after the other until ctx ends, and leaves
// everything repaired.
func (w *world) makeTrouble(ctx context.Context, rng *rand.Rand) error {
	for sleep(ctx, between(rng, 500*time.Millisecond, 3*time.Second)) {
		var err error
		// What is begun is finished, also when the time is over.
		whole := context.WithoutCancel(ctx)
		switch rng.IntN(7) {
		case 0, 1:
			err = w.restart(whole, w.cluster.worker, rng)
		case 2:
			err = w.restart(whole, w.cluster.master, rng)
		case 3:
			err = w.restart(whole, w.cluster.mount, rng)
		case 4:
			err = w.fillDisk(whole, rng)
		default:
			w.failS3(whole, rng)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) restart(ctx context.Context, r *role, rng *rand.Rand) error {
	pause := between(rng, 0, time.Second)
	if rng.IntN(2) == 0 {
		w.happen("kill -9 the " + r.name + " and start it again")
		r.leave()
		r.kill()
	} else {
		w.happen("stop the " + r.name + " and start it again")
		r.leave()
		if err := r.terminate(); err != nil {
			return err
		}
	}
	sleep(ctx, pause)
	return w.cluster.startRole(ctx, r)
}

// fillDisk takes all that is left of the cache's file system for a while.
func (w *world) fillDisk(ctx context.Context, rng *rand.Rand) error {
	if w.disk == "" {
		return nil
	}
	w.happen("fill the cache's disk")
	name := filepath.Join(w.disk, "ballast")
	f, err := os.Create(name)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return nil // the cache has it all
		}
		return err
	}
	for p := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(p)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	sleep(ctx, between(rng, 500*time.Millisecond, 3*time.Second))
	return errors.Join(f.Close(), os.Remove(name))
}

// failS3 lets some requests fail for a while.
func (w *world) failS3(ctx context.Context, rng *rand.Rand) {
	faults := []struct {
		what  string
		fault testenv.Fault
	}{
		{"503 SlowDown", testenv.Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}},
		{"500", testenv.Fault{Status: http.StatusInternalServerError}},
		{"cut bodies", testenv.Fault{Cut: 10_000}},
		{"disconnects", testenv.Fault{Disconnect: true}},
		{"delays of 300 ms", testenv.Fault{Delay: 300 * time.Millisecond}},
	}
	f := faults[rng.IntN(len(faults))]
	share := 1 + rng.IntN(4) // one in so many requests
	w.happen(fmt.Sprintf("S3 fails with %s", f.what))
	w.proxy.Inject(func(*http.Request, string) testenv.Fault {
		if rand.IntN(share) == 0 {
			return f.fault
		}
		return testenv.Fault{}
	})
	sleep(ctx, between(rng, 500*time.Millisecond, 3*time.Second))
	w.proxy.Inject(nil)
}
