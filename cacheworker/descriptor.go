package cacheworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/tier"
)

// fillPatience bounds how long the question for a descriptor waits for a file to
// be fetched: less than those who ask wait for any answer. The fetch goes on,
// and whoever reads the file meanwhile waits for it.
const fillPatience = 700 * time.Millisecond

// Descriptor implements blockio.Descriptors: the file's backing file, if all
// of it is cached here, or is to be fetched first and comes in time.
func (f *openFile) Descriptor(ctx context.Context, o blockio.DescriptorOptions) (fd *os.File, base, length int64, err error) {
	const op = "hand out"
	if err := f.mayHandOut(); err != nil {
		return nil, 0, 0, errs.Wrap(err, op, f.t.Path)
	}
	if f.t.Geometry().Blocks() > 1 {
		// A handle of the whole file is made of all its blocks, of which there
		// may be many more than are here.
		if _, n := f.w.tier.Cached(f.t.FileID); n < f.t.Length {
			return nil, 0, 0, errs.E(errs.NotCached, op, f.t.Path, fmt.Errorf("%d of %d bytes are cached", n, f.t.Length))
		}
	}
	h, err := f.w.tier.Acquire(tier.FileOf(f.t), f.t.Geometry().Whole())
	if err != nil {
		return nil, 0, 0, err
	}
	defer h.Release()
	if o.Fill && f.t.Length <= block.PageSize && f.t.Length > 0 {
		if err := f.fill(ctx, h, o.Priority); err != nil {
			return nil, 0, 0, errs.E(errs.NotCached, op, f.t.Path, err)
		}
	}
	fd, base, length, err = h.HandOut()
	if errors.Is(err, errs.Corrupt) { // a page was damaged; it is fetched anew by who reads it
		return nil, 0, 0, errs.E(errs.NotCached, op, f.t.Path, err)
	}
	if err == nil {
		f.w.counters.handedOut.Add(1)
	}
	return fd, base, length, err
}

// mayHandOut returns why no descriptor of the file is handed out.
func (f *openFile) mayHandOut() error {
	switch {
	case f.t.Unsettled:
		return errs.E(errs.Unsupported, "", "", errors.New("a version that may still change is not kept"))
	case f.verifies():
		return errs.E(errs.Unsupported, "", "", errors.New("its under-store mount has verify=always: nobody checks what is read by a descriptor"))
	default:
		return nil
	}
}

// fill fetches the one page of a file that is absent.
func (f *openFile) fill(ctx context.Context, h *tier.Handle, p blockio.Priority) error {
	if h.Has(0) {
		return nil
	}
	f.w.counters.pageMisses.Add(1)
	ctx, cancel := context.WithTimeout(ctx, fillPatience)
	defer cancel()
	return f.w.fetcher.ensure(ctx, f.t, h, 0, 1, urgencyOf(p))
}

// Touch implements blockio.Toucher. Files that the worker does not know are
// ignored: clients tell of what they used, which may be gone by now.
func (w *Worker) Touch(_ context.Context, touches []blockio.Touch) error {
	for i := range touches {
		w.tier.Touch(touches[i].FileID, int(touches[i].Count))
	}
	return nil
}

// Recalls implements blockio.Recaller.
func (w *Worker) Recalls(_ context.Context, since uint64) (blockio.Recalls, error) {
	r := w.tier.Recalls(since)
	return blockio.Recalls{Position: r.Position, Idle: r.Idle, Files: r.Files}, nil
}
