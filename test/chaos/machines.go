package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"millrace/test/cluster"
	"millrace/test/disk"
	"millrace/test/trial"
)

// wipeMaster gives a master an empty disk, and makes it a member again.
func (w *world) wipeMaster(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	p := w.cluster.Masters()[rng.IntN(masters)]
	w.log.HappenTo(p.Name, "a master loses its disk")
	p.Kill()
	if err := p.Wipe(); err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	return w.cluster.Rejoin(ctx, p)
}

// wipeWorker gives a worker an empty disk, which makes it another worker.
func (w *world) wipeWorker(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	p := w.cluster.Workers()[rng.IntN(workers)]
	w.log.HappenTo(p.Name, "a worker loses its disk")
	p.Kill()
	return w.cluster.Replace(ctx, p)
}

// makeImage puts the disk of a process on a file system whose power can be cut.
func (w *world) makeImage(ctx context.Context, p *cluster.Process) error {
	m, err := disk.NewImage(ctx, filepath.Join(p.Dir, "image"), p.DiskDir(), imageSize)
	if err != nil {
		return err
	}
	if w.images == nil {
		w.images = map[string]*disk.Image{}
	}
	w.images[p.Name] = m
	return nil
}

// cutPower cuts the power of a machine: what its disk had not been told to keep
// is lost.
func (w *world) cutPower(p *cluster.Process) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		ctx, cancel := context.WithTimeout(ctx, settle)
		defer cancel()
		m := w.images[p.Name]
		w.log.HappenTo(p.Name, "the power is cut")
		if err := m.Cut(); err != nil {
			return err
		}
		p.Kill()
		if err := w.net.Reboot(p.Name); err != nil {
			return err
		}
		trial.Sleep(ctx, trial.Between(rng, 0, 3*time.Second))
		if err := m.Restore(ctx); err != nil {
			return err
		}
		return w.begin(ctx, p)
	}
}

// failLeadersDisk lets the disk of the leader fail until it is replaced by one
// with the same on it.
func (w *world) failLeadersDisk(ctx context.Context, rng *rand.Rand) error {
	p, err := w.leader(ctx)
	if err != nil {
		return err
	}
	heal, err := w.failDisk(ctx, rng, p, "the disk of the leader: ")
	if err != nil {
		return err
	}
	p.Kill()
	if err := heal(); err != nil {
		return err
	}
	return w.begin(ctx, p)
}

// failWorkersDisk lets the disk of a worker fail, and waits until the worker
// uses it again.
func (w *world) failWorkersDisk(ctx context.Context, rng *rand.Rand) error {
	p := w.cluster.Workers()[rng.IntN(workers)]
	heal, err := w.failDisk(ctx, rng, p, "a worker's disk: ")
	if err != nil {
		return err
	}
	if err := heal(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return w.cluster.DisksServe(ctx, p)
}

// failDisk lets all disks of a process fail, and returns after a while.
func (w *world) failDisk(ctx context.Context, rng *rand.Rand, p *cluster.Process, what string) (heal func() error, err error) {
	all := disk.Failures()
	f := all[rng.IntN(len(all))]
	if heal, err = disk.Fail(ctx, p.PID(), f); err != nil {
		return nil, fmt.Errorf("let the disk of %s fail: %w", p.Name, err)
	}
	w.log.HappenTo(p.Name, what+f.What)
	trial.Sleep(ctx, trial.Between(rng, time.Second, 5*time.Second))
	return heal, nil
}
