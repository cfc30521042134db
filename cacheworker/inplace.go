package cacheworker

import (
	"context"
	"errors"
	"os"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/tier"
)

// PartialDescriptor implements blockio.InPlace: the file's backing file as it
// is now, for a client that reads in it what Place tells.
func (f *openFile) PartialDescriptor(context.Context) (fd *os.File, base, length int64, mark uint64, err error) {
	if err := f.mayHandOut(); err != nil {
		return nil, 0, 0, 0, errs.Wrap(err, "hand out", f.t.Path)
	}
	h, err := f.w.tier.Acquire(tier.FileOf(f.t), block.Extent{})
	if err != nil {
		return nil, 0, 0, 0, err
	}
	defer h.Release()
	if fd, base, length, mark, err = h.HandOutFilling(); err == nil {
		f.w.counters.handedOut.Add(1)
	}
	return fd, base, length, mark, err
}

// Place implements blockio.InPlace. What cannot be kept, lies in another file
// than the client has, or is a replica, is left to Read.
func (f *openFile) Place(ctx context.Context, req blockio.ReadRequest, mark uint64) (bool, error) {
	e, geo, u := req.Extent, f.t.Geometry(), urgencyOf(req.Priority)
	if f.mayHandOut() != nil || e.Length > pieceSize || e.Intersect(geo.Whole()) != e || f.w.placed.asReplica(f.t, req) {
		return false, nil
	}
	h, err := f.w.tier.Acquire(tier.FileOf(f.t), e)
	if err != nil {
		return false, err
	}
	defer h.Release()
	first, end := geo.PageRange(e)
	missing := pagesIn(h.Missing())
	if missing > 0 {
		if req.CachedOnly {
			return false, errs.NotCached
		}
		if err := f.w.fetcher.start(ctx, f.t, h, first, end, u); err != nil {
			return false, err
		}
	}
	if ahead := f.next(req, e, block.Extent{}); !ahead.IsEmpty() {
		f.w.begin(ctx, f.t, false, ahead, urgentAhead)
	}
	// The last page first: a flight brings those before it, and wakes nobody
	// for them.
	for page := end - 1; page >= first; page-- {
		if h.Has(page) {
			continue
		}
		if err := f.w.fetcher.ensure(ctx, f.t, h, page, end, u); err != nil {
			if _, unkept := errors.AsType[*unkeptError](err); unkept || errors.Is(err, errVanished) {
				return false, nil
			}
			return false, err
		}
	}
	if !h.LiesIn(mark, e.Offset, e.Length) {
		return false, nil
	}
	f.placed(req, end-first-missing, missing)
	return true, nil
}

// PlaceNow implements blockio.InPlace.
func (f *openFile) PlaceNow(ctx context.Context, req blockio.ReadRequest, mark uint64) bool {
	if f.mayHandOut() != nil || f.w.placed.asReplica(f.t, req) {
		return false
	}
	e := req.Extent
	h, err := f.w.tier.Acquire(tier.FileOf(f.t), e)
	if err != nil {
		return false // Read will meet it again
	}
	defer h.Release()
	if !h.LiesInNow(mark, e.Offset, e.Length) {
		return false
	}
	first, end := f.t.Geometry().PageRange(e)
	f.placed(req, end-first, 0)
	if ahead := f.next(req, e, block.Extent{}); !ahead.IsEmpty() {
		f.w.begin(ctx, f.t, false, ahead, urgentAhead)
	}
	return true
}

// placed counts a read whose bytes were not sent.
func (f *openFile) placed(req blockio.ReadRequest, hits, misses int64) {
	f.served(req, req.Extent.Length)
	f.w.counters.bytesPlaced.Add(req.Extent.Length)
	if !req.CachedOnly {
		f.w.counters.pageHits.Add(hits)
		f.w.counters.pageMisses.Add(misses)
	}
}
