package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace/test/trial"
)

const longestRead = 1 << 20

// readMount reads random objects through the mount until ctx ends.
func (w *world) readMount(ctx context.Context, rng *rand.Rand) error {
	buf := make([]byte, longestRead)
	for ctx.Err() == nil {
		o := w.objects[rng.IntN(len(w.objects))]
		epoch, whole := w.mountEnds.Load(), w.mountIsUp.Load()
		opened := time.Now()
		err := w.readOne(o, opened, rng, buf)
		switch {
		case err == nil:
		case ctx.Err() != nil && !errors.Is(err, errWrong): // the end cut it off; the loop sees it
		case errors.Is(err, errWrong):
			return err
		case !whole || epoch != w.mountEnds.Load():
			w.tally.cut.Add(1) // the mount ended under the reader
			trial.Sleep(ctx, 50*time.Millisecond)
		case errors.Is(err, unix.ESTALE) && o.changed(opened):
			w.tally.stale.Add(1)
		case errors.Is(err, fs.ErrNotExist) && o.mayBeAbsent(opened):
			w.tally.gone.Add(1)
		default:
			return fmt.Errorf("an error that nothing explains: %w", err)
		}
	}
	return nil
}

// errWrong is wrong bytes.
var errWrong = errors.New("wrong bytes")

func (w *world) readOne(o *object, opened time.Time, rng *rand.Rand, buf []byte) error {
	f, err := os.Open(filepath.Join(w.mount.Point(), o.key))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != o.size {
		return fmt.Errorf("%w: %s has %d bytes, want %d", errWrong, o.key, st.Size(), o.size)
	}
	if o.size == 0 {
		w.tally.reads.Add(1)
		return nil
	}
	list := o.possible(opened)
	sequential, off := rng.IntN(3) == 0, int64(0)
	for range 1 + rng.IntN(8) {
		if !sequential {
			off = rng.Int64N(o.size)
		}
		if off >= o.size {
			break
		}
		p := buf[:1+rng.Int64N(min(o.size-off, longestRead))]
		if rng.IntN(2) == 0 { // else the kernel answers what it knows
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
		}
		if _, err := f.ReadAt(p, off); err != nil {
			return fmt.Errorf("read %s at %d, %d bytes: %w", o.key, off, len(p), err)
		}
		left := narrow(list, p, off)
		if len(left) == 0 {
			return fmt.Errorf("%w: %s at %d, %d bytes: they are of none of the versions %v", errWrong, o.key, off, len(p), numbers(list))
		}
		list = left
		off += int64(len(p))
		w.tally.reads.Add(1)
		w.tally.bytes.Add(int64(len(p)))
	}
	return nil
}

// readTool reads random pieces with `millrace cat` until ctx ends: the Go SDK
// in a process of its own.
func (w *world) readTool(ctx context.Context, rng *rand.Rand) error {
	for trial.Sleep(ctx, trial.Between(rng, 100*time.Millisecond, time.Second)) {
		o := w.objects[rng.IntN(len(w.objects))]
		off := rng.Int64N(o.size + 1)
		n := min(rng.Int64N(longestRead), o.size-off)
		opened := time.Now()
		out, err := w.run(ctx, "cat", "/"+o.key, "--offset", strconv.FormatInt(off, 10), "--length", strconv.FormatInt(n, 10))
		switch {
		case err != nil && ctx.Err() != nil: // the end cut it off; the loop sees it
		case err == nil && (int64(len(out)) != n || len(narrow(o.possible(opened), []byte(out), off)) == 0):
			return fmt.Errorf("%w: cat of %s at %d, %d bytes: got %d, which are of none of the versions %v", errWrong, o.key, off, n, len(out), numbers(o.possible(opened)))
		case err == nil:
			w.tally.toolReads.Add(1)
			w.tally.bytes.Add(n)
		case strings.Contains(err.Error(), "open it again") && o.changed(opened):
			w.tally.stale.Add(1)
		case strings.Contains(err.Error(), "not found") && o.mayBeAbsent(opened):
			w.tally.gone.Add(1)
		default:
			return fmt.Errorf("an error that nothing explains: %w", err)
		}
	}
	return nil
}

// useTools loads, drops and looks now and then.
func (w *world) useTools(ctx context.Context, rng *rand.Rand) error {
	for trial.Sleep(ctx, trial.Between(rng, 2*time.Second, 8*time.Second)) {
		args := [][]string{{"load", "/d1"}, {"free", "/d2"}, {"du", "/", "--cached"}, {"ls", "-R", "/"}, {"load", "/"}}[rng.IntN(5)]
		_, err := w.run(ctx, args...)
		what := strings.Join(args, " ")
		if err != nil && ctx.Err() == nil { // objects that change, and roles that end, make some of them fail
			what += ", which failed"
		}
		w.log.Happen(what)
	}
	return nil
}
