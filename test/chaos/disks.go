package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"millrace/test/cluster"
	"millrace/test/trial"
)

// found bounds the time from the flip of a bit to the count of it.
const found = 30 * time.Second

// troubleDisks lets a disk be full, bits flip and DataNodes freeze, until ctx ends.
func (w *world) troubleDisks(ctx context.Context, rng *rand.Rand) error {
	faults := []fault{w.quietly(w.flip), w.quietly(w.flip)}
	if w.small != nil {
		faults = append(faults, w.fillDisk)
	}
	if w.hdfs != nil {
		faults = append(faults, w.quietly(w.freezeDataNode))
	}
	return w.trouble(ctx, rng, faults)
}

// fillDisk takes all that is left of a worker's disk for a while.
func (w *world) fillDisk(ctx context.Context, rng *rand.Rand) error {
	w.log.HappenTo(w.cluster.Workers()[0].Name, "a worker's disk is full")
	free, err := w.small.Fill()
	if err != nil {
		return err
	}
	trial.Sleep(ctx, trial.Between(rng, time.Second, 5*time.Second))
	return free()
}

// copyOfOne is a cached file that one worker alone has, whole.
type copyOfOne struct {
	*object
	worker *cluster.Process
	name   string // of the backing file
}

// flip flips a bit of a cached file that one worker alone has, and reads the
// file: the reader must get the source's bytes and the worker count the page.
// All is well meanwhile, so that the read comes to this worker.
func (w *world) flip(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	victim, err := w.choose(ctx, rng)
	if err != nil || victim.object == nil {
		return err
	}
	const metric = "millrace_tier_checksum_errors_total"
	before, err := victim.worker.Metric(ctx, metric)
	if err != nil {
		return err
	}
	off, bit := rng.Int64N(victim.size), byte(1)<<rng.IntN(8)
	flipped, err := flipBit(victim.name, off, bit)
	if err != nil || flipped == nil {
		return err
	}
	w.log.HappenTo(victim.worker.Name, "a bit of a cached file flips")
	w.tally.flips.Add(1)
	bounded, cancel := context.WithTimeout(ctx, found)
	defer cancel()
	return cluster.Until(bounded, func() error {
		if err := w.readWhole(ctx, victim.object); err != nil {
			return err
		}
		n, err := victim.worker.Metric(ctx, metric)
		switch {
		case err != nil:
			return err
		case n > before:
			w.tally.found.Add(1)
			return nil
		case !flipped.isThere():
			w.log.Count("the file with the flipped bit was evicted before it was read")
			return nil
		}
		_, blocks, err := w.admin.Locate(ctx, victim.path)
		if err != nil {
			return err
		}
		if len(blocks) == 1 && len(blocks[0].Workers) > 1 { // the worker was slow to answer
			w.log.Count("the file with the flipped bit was read from elsewhere")
			return nil
		}
		return fmt.Errorf("a flipped bit of %s, byte %d of %s, is not found", victim.path, off, victim.name)
	})
}

// choose looks for a file below checked that one worker alone has, whole. It
// has no object if there is none.
func (w *world) choose(ctx context.Context, rng *rand.Rand) (copyOfOne, error) {
	st, err := w.admin.Status(ctx)
	if err != nil {
		return copyOfOne{}, err
	}
	addresses := map[string]string{}
	for _, k := range st.Workers {
		addresses[k.ID] = k.Address
	}
	for _, i := range rng.Perm(len(w.objects)) {
		o := w.objects[i]
		if !strings.HasPrefix(o.path, checked+"/") {
			continue
		}
		e, blocks, err := w.admin.Locate(ctx, o.path)
		if err != nil {
			return copyOfOne{}, err
		}
		if len(blocks) != 1 || len(blocks[0].Workers) != 1 || blocks[0].CachedBytes != o.size {
			continue
		}
		p, err := w.workerAt(addresses[blocks[0].Workers[0]])
		if err != nil {
			return copyOfOne{}, err
		}
		id := e.FileID.String()
		return copyOfOne{o, p, filepath.Join(p.CacheDir(), "data", id[2:4], id[4:5], id)}, nil
	}
	return copyOfOne{}, nil
}

// flippedBit is where a bit was flipped.
type flippedBit struct {
	name string
	off  int64
	is   byte // the byte since then
}

// flipBit flips a bit of a file. It returns nil if the file has gone.
func flipBit(name string, off int64, bit byte) (*flippedBit, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // both say what is
	}
	if err != nil {
		return nil, err
	}
	p := make([]byte, 1)
	if _, err = f.ReadAt(p, off); err == nil {
		p[0] ^= bit
		_, err = f.WriteAt(p, off)
	}
	return &flippedBit{name, off, p[0]}, errors.Join(err, f.Close())
}

// isThere reports whether the file is there with the bit flipped.
func (b *flippedBit) isThere() bool {
	f, err := os.Open(b.name)
	if err != nil {
		return false
	}
	defer f.Close()
	p := make([]byte, 1)
	_, err = f.ReadAt(p, b.off)
	return err == nil && p[0] == b.is
}
