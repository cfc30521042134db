package main

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"time"

	"millrace/test/cluster"
	"millrace/test/trial"
)

// changeObjects replaces and deletes objects until ctx ends.
func (w *world) changeObjects(ctx context.Context, rng *rand.Rand) error {
	whole := context.WithoutCancel(ctx) // one that is cut off would be of a version that S3 may not have
	for trial.Sleep(ctx, trial.Between(rng, 100*time.Millisecond, time.Second)) {
		o := w.objects[rng.IntN(len(w.objects))]
		var err error
		if rng.IntN(6) == 0 {
			w.log.Count("delete an object")
			err = o.remove(whole, w.s3)
			if err == nil && !trial.Sleep(ctx, trial.Between(rng, 0, 3*time.Second)) {
				return nil
			}
		}
		if err == nil {
			w.log.Count("put an object")
			err = o.put(whole, w.s3)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeTrouble does one bad thing after the other until ctx ends, and leaves
// everything repaired.
func (w *world) makeTrouble(ctx context.Context, rng *rand.Rand) error {
	for trial.Sleep(ctx, trial.Between(rng, 500*time.Millisecond, 3*time.Second)) {
		var err error
		// What is begun is finished, also when the time is over.
		whole := context.WithoutCancel(ctx)
		switch rng.IntN(7) {
		case 0, 1:
			err = w.restart(whole, w.worker, rng)
		case 2:
			err = w.restart(whole, w.master, rng)
		case 3:
			err = w.restart(whole, w.mount, rng)
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

// restart ends a role, one way or the other, and starts it again.
func (w *world) restart(ctx context.Context, p *cluster.Process, rng *rand.Rand) error {
	pause := trial.Between(rng, 0, time.Second)
	if p == w.mount {
		w.mountEnds.Add(1)
		w.mountIsUp.Store(false)
	}
	if rng.IntN(2) == 0 {
		w.log.Happen("kill -9 " + p.Name + " and start it again")
		p.Kill()
	} else {
		w.log.Happen("stop " + p.Name + " and start it again")
		if err := p.Terminate(patience); err != nil {
			return err
		}
	}
	trial.Sleep(ctx, pause)
	if err := w.start(ctx, p); err != nil {
		return err
	}
	if p == w.mount {
		w.mountIsUp.Store(true)
	}
	return nil
}

// fillDisk takes all that is left of a tier's file system for a while.
func (w *world) fillDisk(ctx context.Context, rng *rand.Rand) error {
	d := w.disks[rng.IntN(len(w.disks))]
	w.log.Happen("fill the file system of the cache's " + filepath.Base(d.Dir))
	free, err := d.Fill()
	if err != nil {
		return err
	}
	trial.Sleep(ctx, trial.Between(rng, 500*time.Millisecond, 3*time.Second))
	return free()
}

// failS3 lets some requests fail for a while.
func (w *world) failS3(ctx context.Context, rng *rand.Rand) {
	all := trial.Answers()
	a := all[rng.IntN(len(all))]
	share := 1 + rng.IntN(4) // one in so many requests
	w.log.Happen("S3 fails with " + a.What)
	a.Inject(w.proxy, share)
	trial.Sleep(ctx, trial.Between(rng, 500*time.Millisecond, 3*time.Second))
	w.proxy.Inject(nil)
}
