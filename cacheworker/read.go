package cacheworker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/tier"
)

// pieceSize bounds what one read pins in the tier at a time, in bytes.
const pieceSize = 8 << 20

// corruptTries bounds how often one read fetches a page anew that turned out
// to be damaged on the disk; then it has the page from the under-store alone.
const corruptTries = 3

// Open implements blockio.Handler: it decides whether the ticket can be
// served here.
func (w *Worker) Open(ctx context.Context, t *block.Ticket) (blockio.File, error) {
	if err := w.admit(ctx, t); err != nil {
		return nil, err
	}
	return &openFile{w: w, t: t, ahead: w.aheads.enter(t.FileID)}, nil
}

// admit checks a ticket that came from outside.
func (w *Worker) admit(ctx context.Context, t *block.Ticket) error {
	if err := t.Validate(); err != nil {
		return errs.E(errs.Invalid, "", "", err)
	}
	if t.ExpiredAt(time.Now()) {
		return errs.E(errs.Permission, "", "", fmt.Errorf("the ticket expired at %v", t.Expiry))
	}
	if w.mounts.known(t.MountID) {
		return nil
	}
	// The mount may be younger than the last heartbeat.
	known := func() bool { return w.mounts.known(t.MountID) }
	asked := w.refresh(ctx, known)
	switch {
	case known():
		return nil
	case asked != nil:
		return errs.E(errs.Unavailable, "", "", fmt.Errorf("under-store mount %d is not known here: %w", t.MountID, asked))
	default:
		return errs.E(errs.NotFound, "", "", fmt.Errorf("under-store mount %d does not exist", t.MountID))
	}
}

// openFile is one ticket that is open on one connection.
type openFile struct {
	w     *Worker
	t     *block.Ticket
	ahead *readAhead
}

// verifies reports whether every read is to be checked, as the under-store
// mount has it now: a file stays open here for long.
func (f *openFile) verifies() bool { return f.w.mounts.verifies(f.t.MountID) }

// Close implements blockio.File. Flights that it started go on.
func (f *openFile) Close() error {
	f.w.aheads.leave(f.t.FileID)
	return nil
}

// Read implements blockio.File.
func (f *openFile) Read(ctx context.Context, req blockio.ReadRequest, to blockio.Responder) error {
	r := reader{
		w: f.w, t: f.t, geo: f.t.Geometry(), to: to,
		urgent: urgencyOf(req.Priority), cachedOnly: req.CachedOnly, verify: f.verifies(),
	}
	if req.Extent.Intersect(r.geo.Whole()) != req.Extent && !req.Extent.IsEmpty() {
		return errs.E(errs.Invalid, "read", f.t.Path, fmt.Errorf("%v is not in the file of %d bytes", req.Extent, f.t.Length))
	}
	if !req.CachedOnly && !f.t.Unsettled {
		for _, e := range req.Ahead { // what misses of many ranges comes at the same time
			f.w.begin(ctx, f.t, e, r.urgent)
		}
	}
	for rest := req.Extent; !rest.IsEmpty(); {
		piece := block.Extent{Offset: rest.Offset, Length: min(rest.Length, pieceSize-rest.Offset%pieceSize)}
		rest = block.Extent{Offset: piece.End(), Length: rest.End() - piece.End()}
		if err := r.piece(ctx, piece, f.next(req, piece, rest)); err != nil {
			return err
		}
		f.served(req, piece.Length)
	}
	return nil
}

// urgencyOf is how urgent a request is to be fetched for.
func urgencyOf(p blockio.Priority) urgency {
	switch p {
	case blockio.PriorityRead:
		return urgentRead
	case blockio.PriorityLoad:
		return urgentLoad
	default:
		return urgentRepair
	}
}

// served counts bytes that were sent. What another worker asked for, that one
// serves and counts.
func (f *openFile) served(req blockio.ReadRequest, n int64) {
	if req.CachedOnly {
		f.w.counters.peerSent.Add(n)
	} else {
		f.w.counters.bytesServed.Add(n)
	}
}

// ReadNow implements blockio.Prompt.
func (f *openFile) ReadNow(ctx context.Context, req blockio.ReadRequest, p []byte) (crc uint32, ok bool) {
	if f.t.Unsettled || f.verifies() {
		return 0, false
	}
	e := req.Extent
	if crc, ok = f.w.tier.ReadNow(tier.FileOf(f.t), p, e.Offset); !ok {
		return 0, false
	}
	f.hit(ctx, req, 1)
	return crc, true
}

// SendNow implements blockio.Prompt.
func (f *openFile) SendNow(ctx context.Context, req blockio.ReadRequest, to blockio.Responder) (ok bool, err error) {
	if f.t.Unsettled || f.verifies() {
		return false, nil
	}
	e := req.Extent
	h, err := f.w.tier.Acquire(tier.FileOf(f.t), e)
	if err != nil {
		return false, nil // Read will meet it again
	}
	defer h.Release()
	file, base, ok := h.SectionNow(e.Offset, e.Length)
	if !ok {
		return false, nil
	}
	r := reader{w: f.w, t: f.t, geo: f.t.Geometry(), to: to}
	first, end := r.geo.PageRange(e)
	f.hit(ctx, req, end-first)
	return true, r.sendFile(h, first, end, file, base, e.Length)
}

// hit counts a read of pages that were all there, and starts to fetch what a
// sequential reader will want.
func (f *openFile) hit(ctx context.Context, req blockio.ReadRequest, pages int64) {
	f.served(req, req.Extent.Length)
	if req.CachedOnly {
		return
	}
	f.w.counters.pageHits.Add(pages)
	if ahead := f.next(req, req.Extent, block.Extent{}); !ahead.IsEmpty() {
		f.w.begin(ctx, f.t, ahead, urgentAhead)
	}
}

// next returns what to fetch ahead of a piece: what the same request wants
// next, and what a sequential reader will.
func (f *openFile) next(req blockio.ReadRequest, piece, rest block.Extent) block.Extent {
	if req.CachedOnly || f.t.Unsettled {
		return block.Extent{Offset: piece.End()}
	}
	e := f.ahead.note(piece, f.t.Length)
	if wanted := min(rest.Length, pieceSize); wanted > 0 {
		end := max(e.End(), rest.Offset+wanted)
		return block.Extent{Offset: rest.Offset, Length: end - rest.Offset}
	}
	return e
}

// reader serves one request.
type reader struct {
	w          *Worker
	t          *block.Ticket
	geo        block.Geometry
	to         blockio.Responder
	urgent     urgency
	cachedOnly bool
	verify     bool
	corrupt    int // damaged pages met
}

// piece serves the bytes e, and starts to fetch what is missing of ahead.
func (r *reader) piece(ctx context.Context, e, ahead block.Extent) error {
	if r.t.Unsettled {
		return r.direct(ctx, e)
	}
	for try := 1; ; try++ {
		n, err := r.pinned(ctx, e, ahead, try == 1)
		if !errors.Is(err, errVanished) {
			return err
		}
		e = block.Extent{Offset: e.Offset + n, Length: e.Length - n}
		ahead = block.Extent{}
		if try == vanishTries {
			return r.direct(ctx, e)
		}
	}
}

// pinned serves e under one handle of the tier, and returns how many bytes it
// served.
func (r *reader) pinned(ctx context.Context, e, ahead block.Extent, count bool) (int64, error) {
	h, err := r.w.tier.Acquire(tier.FileOf(r.t), e)
	if err != nil {
		return 0, err
	}
	defer h.Release()
	if r.verify {
		h.VerifyAlways()
	}
	first, end := r.geo.PageRange(e)
	missing := pagesIn(h.Missing())
	if count && !r.cachedOnly {
		r.w.counters.pageHits.Add(end - first - missing)
		r.w.counters.pageMisses.Add(missing)
	}
	if missing > 0 && r.cachedOnly {
		return 0, errs.NotCached
	}
	if missing > 0 {
		// All at once: a miss of several requests' size is fetched in parallel.
		if err := r.w.fetcher.start(ctx, r.t, h, first, end, r.urgent); err != nil {
			return 0, err
		}
	}
	if !ahead.IsEmpty() {
		r.w.begin(ctx, r.t, ahead, urgentAhead)
	}
	reached, err := r.walk(ctx, h, e)
	return max(r.geo.PagesExtent(0, reached).Length-e.Offset, 0), err
}

func pagesIn(runs []block.Extent) int64 {
	var n int64
	for _, e := range runs {
		n += (e.Length + block.PageSize - 1) / block.PageSize
	}
	return n
}

// walk answers with the bytes e in order, waiting for what is not there yet.
// It returns the first page that it did not serve.
func (r *reader) walk(ctx context.Context, h *tier.Handle, e block.Extent) (page int64, err error) {
	page, end := r.geo.PageRange(e)
	for page < end {
		run := page
		for run < end && h.Has(run) {
			run++
		}
		if run > page {
			sent, err := r.send(h, page, run, e)
			page += sent
			if err == nil {
				r.corrupt = 0 // the bound is on one page's tries
				continue
			}
			_, unreadable := errors.AsType[*unkeptError](err)
			switch {
			case unreadable, dropped(err) && r.corrupt >= corruptTries:
				if err = r.direct(ctx, r.geo.PagesExtent(page, page+1).Intersect(e)); err != nil {
					return page, err
				}
				page++
				r.corrupt = 0
				continue
			case !dropped(err), r.cachedOnly:
				return page, err
			}
			r.corrupt++
			if h.Has(page) { // for this handle alone: the whole file is gone
				return page, errVanished
			}
			continue
		}
		if r.cachedOnly {
			return page, errs.NotCached
		}
		err := r.w.fetcher.ensure(ctx, r.t, h, page, end, r.urgent)
		if _, unkept := errors.AsType[*unkeptError](err); unkept {
			// The room may be there for what comes behind this request's size.
			for run = page + 1; run < min(end, page+r.w.fetcher.requestPages()) && !h.Has(run); {
				run++
			}
			err = r.direct(ctx, r.geo.PagesExtent(page, run).Intersect(e))
			if err == nil {
				page = run
				r.corrupt = 0
			}
		}
		if err != nil {
			return page, err
		}
	}
	return page, nil
}

// dropped reports whether the tier dropped a page that it was asked for, since
// it is damaged: it is Corrupt to the reader who found it, and NotCached to
// who comes next, which may be the same one.
func dropped(err error) bool {
	return errors.Is(err, errs.Corrupt) || errors.Is(err, errs.NotCached)
}

// direct answers with the bytes e from the under-store.
func (r *reader) direct(ctx context.Context, e block.Extent) error {
	if r.cachedOnly {
		return errs.NotCached
	}
	return r.w.fetcher.unkept(ctx, r.t, e, r.to.Write)
}

// send answers with the bytes of e in the pages [first, end), which are
// present, and returns how many pages it sent.
func (r *reader) send(h *tier.Handle, first, end int64, e block.Extent) (int64, error) {
	run := r.geo.PagesExtent(first, end).Intersect(e)
	if file, base, ok := h.Section(run.Offset, run.Length); ok {
		if err := r.sendFile(h, first, end, file, base, run.Length); err != nil {
			return 0, err
		}
		return end - first, nil
	}
	// A part that cannot be sent from its file, or a page that is to be
	// verified, which reading it does.
	buf, ok := pageBuffers.Get().(*[block.PageSize]byte)
	if !ok {
		return 0, errs.E(errs.Internal, "", "", errors.New("a foreign buffer in the pool"))
	}
	defer pageBuffers.Put(buf)
	part := r.geo.Page(first).Intersect(e)
	var sums pageSums
	sums.take(h, first, first+1)
	if _, err := h.ReadAt(buf[:part.Length], part.Offset); err != nil {
		if !dropped(err) {
			err = &unkeptError{err}
		}
		return 0, err
	}
	if err := r.to.Write(buf[:part.Length]); err != nil {
		return 0, err
	}
	sums.tell(r.to, first)
	return 1, nil
}

// sendFile answers with n bytes at base of the backing file, which are in the
// pages [first, end).
func (r *reader) sendFile(h *tier.Handle, first, end int64, file *os.File, base, n int64) error {
	// Before the bytes go out: should the page be dropped meanwhile, its
	// checksum is what tells the client.
	var sums pageSums
	sums.take(h, first, end)
	if err := r.to.SendFile(file, base, n); err != nil {
		if errors.Is(err, syscall.EIO) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			r.probe(h, first, end)
		}
		return err
	}
	sums.tell(r.to, first)
	return nil
}

// probe reads pages that could not be sent, so that the tier drops those that
// the disk does not give any more: the next read fetches them.
func (r *reader) probe(h *tier.Handle, first, end int64) {
	buf, ok := pageBuffers.Get().(*[block.PageSize]byte)
	if !ok {
		return
	}
	defer pageBuffers.Put(buf)
	for page := first; page < end; page++ {
		e := r.geo.Page(page)
		_, _ = h.ReadAt(buf[:e.Length], e.Offset) // for what it does to the page
	}
}

// pageSums are the checksums of the pages of one send, taken before it.
type pageSums struct {
	crcs [pieceSize/block.PageSize + 1]uint32
	n    int
}

// take notes the checksums of the pages [first, end), of which all that are
// present in a row count.
func (s *pageSums) take(h *tier.Handle, first, end int64) {
	for page := first; page < end; page++ {
		crc, ok := h.PageCRC(page)
		if !ok {
			return
		}
		s.crcs[s.n] = crc
		s.n++
	}
}

func (s *pageSums) tell(to blockio.Responder, first int64) {
	for i, crc := range s.crcs[:s.n] {
		to.PageCRC(first+int64(i), crc)
	}
}

// begin starts to fetch what is missing of e. What cannot be started is left
// to the reads that come for it.
func (w *Worker) begin(ctx context.Context, t *block.Ticket, e block.Extent, u urgency) {
	if e.IsEmpty() {
		return
	}
	h, err := w.tier.Acquire(tier.FileOf(t), e)
	if err != nil {
		w.log.Debug("reading ahead", "path", t.Path, "err", err)
		return
	}
	defer h.Release()
	first, end := t.Geometry().PageRange(e)
	if err := w.fetcher.start(ctx, t, h, first, end, u); err != nil {
		w.log.Debug("reading ahead", "path", t.Path, "err", err)
	}
}
