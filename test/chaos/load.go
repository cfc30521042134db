package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"millrace/client"
	"millrace/test/trial"
)

const (
	longestRead = 1 << 20
	// heldOpen is how many files each reader has open; it reads one of them as
	// often as it opens another.
	heldOpen = 6
	callers  = 3
	// roundTime is how long callers stay with some paths.
	roundTime = 20 * time.Second
	// maxLoadJobs bounds the load jobs, so that the masters forget none.
	maxLoadJobs = 40
)

// opened is a file that a reader has open.
type opened struct {
	*object
	file *client.File
}

// read reads random objects until ctx ends.
func (w *world) read(ctx context.Context, rng *rand.Rand) error {
	var files []opened
	defer func() {
		for _, f := range files {
			_ = f.file.Close() // nothing was written
		}
	}()
	buf, scratch := make([]byte, longestRead), make([]byte, longestRead)
	for ctx.Err() == nil {
		var f opened
		var err error
		fresh := len(files) < heldOpen || rng.IntN(2) == 0
		if fresh {
			f.object = w.objects[rng.IntN(len(w.objects))]
		} else {
			f = files[rng.IntN(len(files))]
		}
		if f.store == &w.hdfsStore && f.store.inTrouble() && rng.IntN(len(w.objects)) > 0 {
			continue // without a NameNode a read takes its whole time: not all readers wait for it
		}
		trouble, began := f.store.trouble.Load(), time.Now()
		if fresh {
			if f.file, err = w.client.Open(ctx, f.path); err == nil {
				files = append(files, f)
			}
			if len(files) > heldOpen {
				_ = files[0].file.Close() // nothing was written
				files = files[1:]
			}
		}
		if err == nil {
			err = w.readSome(ctx, f, rng, buf, scratch)
		}
		if err != nil && ctx.Err() == nil {
			if err := w.excuse(err, f.store, trouble, began); err != nil {
				return err
			}
		}
	}
	return nil
}

// errWrong is bytes that are not the source's.
var errWrong = errors.New("wrong bytes")

// excuse returns nil if a reader may see that error.
func (w *world) excuse(err error, s *store, trouble int64, began time.Time) error {
	troubled := trouble%2 == 1 || s.trouble.Load() != trouble
	if troubled && !errors.Is(err, errWrong) {
		w.tally.excused.Add(1)
		return nil
	}
	return fmt.Errorf("a reader saw, after %v: %w", time.Since(began).Round(time.Millisecond), err)
}

// readSome reads a few random pieces, or a run of them, and checks them.
func (w *world) readSome(ctx context.Context, f opened, rng *rand.Rand, buf, scratch []byte) error {
	sequential, off := rng.IntN(2) == 0, int64(0)
	for range 1 + rng.IntN(6) {
		if !sequential {
			off = rng.Int64N(f.size)
		}
		if off >= f.size {
			break
		}
		p := buf[:1+rng.Int64N(min(f.size-off, longestRead))]
		began := time.Now()
		if _, err := f.file.ReadAtContext(ctx, p, off); err != nil {
			return fmt.Errorf("read %s at %d, %d bytes: %w", f.path, off, len(p), err)
		}
		if err := f.content.Check(p, off, scratch); err != nil {
			return fmt.Errorf("%w: %s at %d, %d bytes: %w", errWrong, f.path, off, len(p), err)
		}
		w.count(f.object, off, len(p), began)
		off += int64(len(p))
	}
	return nil
}

// slow is what is said of a read: it is no violation, and worth a look.
const slow = 5 * time.Second

// count counts a read that was right.
func (w *world) count(o *object, off int64, n int, began time.Time) {
	took := time.Since(began)
	w.tally.read(int64(n), took)
	if took > slow {
		w.log.Say("%s at %d, %d bytes: the read took %v", o.path, off, n, took.Round(time.Millisecond))
	}
}

// readWhole reads all of an object and checks it.
func (w *world) readWhole(ctx context.Context, o *object) error {
	f, err := w.client.Open(ctx, o.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Size() != o.size {
		return fmt.Errorf("%w: %s has %d bytes, want %d", errWrong, o.path, f.Size(), o.size)
	}
	buf, scratch := make([]byte, longestRead), make([]byte, longestRead)
	for off := int64(0); off < o.size; off += longestRead {
		p, began := buf[:min(longestRead, o.size-off)], time.Now()
		if _, err := f.ReadAtContext(ctx, p, off); err != nil {
			return fmt.Errorf("read %s at %d: %w", o.path, off, err)
		}
		if err := o.content.Check(p, off, scratch); err != nil {
			return fmt.Errorf("%w: %s: %w", errWrong, o.path, err)
		}
		w.count(o, off, len(p), began)
	}
	return nil
}

// round is the number of the callers' paths now.
func (w *world) round() int { return int(w.log.Since() / roundTime) }

// call changes and reads the mount table, and makes load jobs of nothing, until
// ctx ends.
func (w *world) call(ctx context.Context, number int, rng *rand.Rand) error {
	c := w.history.Caller(number, w.admin, rng, w.empty)
	w.callers[number] = c
	for trial.Sleep(ctx, trial.Between(rng, 20*time.Millisecond, 200*time.Millisecond)) {
		if err := c.Call(ctx, w.round()); err != nil && ctx.Err() == nil {
			return fmt.Errorf("caller %d saw: %w", number, err)
		}
	}
	return nil
}

// loadJobs runs load jobs, one after the other, and drops what is cached now
// and then, until ctx ends.
func (w *world) loadJobs(ctx context.Context, rng *rand.Rand) error {
	paths := []string{"/d0", "/d1", "/d2", checked + "/d0", checked + "/d1", checked + "/d2", checked}
	if w.hdfs != nil {
		paths = append(paths, inHDFS)
	}
	for n := 0; n < maxLoadJobs && trial.Sleep(ctx, trial.Between(rng, time.Second, 15*time.Second)); n++ {
		path := paths[rng.IntN(len(paths))]
		if rng.IntN(3) == 0 {
			// A worker that is away makes it fail.
			if _, err := w.admin.Free(ctx, path); err == nil {
				w.log.Count("free")
			}
		}
		id, err := w.admin.SubmitLoad(ctx, []string{path})
		if err == nil {
			w.log.Happen("load " + path)
			err = w.awaitJob(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("load job %s of %s: %w", id, path, err)
		}
	}
	return nil
}

// awaitJob waits for the end of a load job and checks its sums.
func (w *world) awaitJob(ctx context.Context, id string) error {
	var job client.Job
	for !job.Final() {
		if !trial.Sleep(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
		var err error
		if job, err = w.admin.Job(ctx, id); err != nil {
			return err
		}
	}
	for what, s := range map[string]client.JobSums{"files": job.Files, "bytes": job.Bytes} {
		if s.Listed != s.Loaded+s.AlreadyCached+s.Failed+s.Gone {
			return fmt.Errorf("its sums of %s do not add up: %+v", what, s)
		}
	}
	if job.Files.Gone > 0 {
		return fmt.Errorf("it found %d files gone, and none is", job.Files.Gone)
	}
	w.tally.jobs.Add(1)
	if job.Files.Failed > 0 || job.State == client.JobFailed {
		w.tally.partial.Add(1)
	}
	return nil
}
