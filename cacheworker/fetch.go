package cacheworker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/wait"
	"millrace/tier"
	"millrace/ufs"
)

// fetcher brings missing pages from the under-stores into the tier: at most
// one flight for any page of any file at a time.
type fetcher struct {
	tier      *tier.Store
	peers     *peers // asked before the under-stores; may be nil
	mounts    *mountTable
	placed    *ownership
	inflight  *gate // bytes asked for and not yet received
	fetchSize int64 // bytes of one request, a multiple of the page size
	counters  *counters
	log       *slog.Logger

	crew *crew // flies

	mu      sync.Mutex
	stopped bool
	flights map[block.FileID][]*flight
	loose   map[block.FileID][]*looseBytes
}

func newFetcher(cfg Config, store *tier.Store, mounts *mountTable, placed *ownership, c *counters, log *slog.Logger) *fetcher {
	return &fetcher{
		tier: store, mounts: mounts, placed: placed, inflight: newGate(int64(cfg.MaxInflightBytes)), fetchSize: int64(cfg.FetchSize),
		counters: c, log: log, crew: newCrew(cfg.FetchConcurrency),
		flights: make(map[block.FileID][]*flight), loose: make(map[block.FileID][]*looseBytes),
	}
}

// pageBuffers holds buffers of one page, and chunkBuffers of what an unkept
// read takes at a time.
//
//nolint:gochecknoglobals // pools of memory carry no state
var (
	pageBuffers  = sync.Pool{New: func() any { return new([block.PageSize]byte) }}
	chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}
)

// chunkSize bounds the memory of one read of what cannot be kept; twice that
// while it comes from another worker.
const chunkSize = 4 * block.PageSize

var errStopping = errs.E(errs.Unavailable, "", "", errors.New("the worker is stopping"))

// errVanished says that a page arrived in the tier and a handle does not see
// it: the file was dropped after the handle was acquired, by a free or because
// its backing file was gone. A new handle sees the file as it is now.
var errVanished = errs.E(errs.Busy, "", "", errors.New("the file was dropped from the cache while it was read"))

// unkeptError says that the tier could not take or give a page, for want of
// room or because its disk fails: readers are served all the same.
type unkeptError struct{ err error }

func (e *unkeptError) Error() string { return e.err.Error() }
func (e *unkeptError) Unwrap() error { return e.err }

// vanishTries bounds how often one read or load begins anew because of
// errVanished; then the read is served without being kept.
const vanishTries = 4

// ensure returns when the page is present under h, which pins it; it joins
// the page's flight or starts one, for all missing pages in [page, end).
func (f *fetcher) ensure(ctx context.Context, t *block.Ticket, h *tier.Handle, page, end int64, u urgency) error {
	fl, err := f.join(ctx, t, h, page, end, u)
	if fl == nil {
		return err
	}
	if err := fl.wait(ctx, page); err != nil {
		return err
	}
	if !h.Has(page) {
		return errVanished
	}
	return nil
}

// start begins flights for the pages of [first, end) that are neither present
// nor under way, and makes those under way at least as urgent as u.
func (f *fetcher) start(ctx context.Context, t *block.Ticket, h *tier.Handle, first, end int64, u urgency) error {
	for page := first; page < end; {
		if h.Has(page) {
			page++
			continue
		}
		fl, err := f.join(ctx, t, h, page, end, u)
		if err != nil {
			return err
		}
		if fl != nil {
			page = max(page+1, fl.end)
		}
	}
	return nil
}

// join returns the flight that brings the page: the one under way, or a new
// one for the run of missing pages that begins with it, of one request's
// size, and before end. It returns nil if the page is present.
func (f *fetcher) join(ctx context.Context, t *block.Ticket, h *tier.Handle, page, end int64, u urgency) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return nil, errStopping
	}
	// A flight leaves the list only after its pages are in the tier, and h
	// pins them: a page in neither is missing, for as long as the lock is held.
	end = min(end, page+f.requestPages())
	for _, fl := range f.flights[t.FileID] {
		switch {
		case fl.first <= page && page < fl.end:
			fl.hurry(u)
			return fl, nil
		case fl.first > page:
			end = min(end, fl.first)
		}
	}
	if h.Has(page) {
		return nil, nil //nolint:nilnil // no flight is needed, as the comment says
	}
	for p := page + 1; p < end; p++ {
		if h.Has(p) {
			end = p
		}
	}
	fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := newFlight(page, end, u, cancel)
	fl.replica = h.Replica()
	f.flights[t.FileID] = append(f.flights[t.FileID], fl)
	f.crew.do(func() { f.fly(fctx, t, fl) })
	return fl, nil
}

// requestPages returns how many pages one request asks for at most.
func (f *fetcher) requestPages() int64 { return max(f.fetchSize/block.PageSize, 1) }

// fly is the life of a flight.
func (f *fetcher) fly(ctx context.Context, t *block.Ticket, fl *flight) {
	defer fl.cancel()
	early := urgency(fl.urgent.Load()) == urgentAhead
	err := f.fetch(ctx, t, fl)
	if err == nil && early {
		f.welcome(t, fl)
	}
	if err != nil && ctx.Err() != nil {
		err = errStopping // only stop cancels a flight
	}
	f.mu.Lock()
	left := f.flights[t.FileID]
	for i := range left {
		if left[i] == fl {
			left[i] = left[len(left)-1]
			left[len(left)-1] = nil
			left = left[:len(left)-1]
			break
		}
	}
	if f.flights[t.FileID] = left; len(left) == 0 {
		delete(f.flights, t.FileID)
	}
	f.mu.Unlock()
	fl.land(err)
}

// welcome counts pages that were fetched ahead of their reader as used, so
// that they are not evicted as the newest that nobody read.
func (f *fetcher) welcome(t *block.Ticket, fl *flight) {
	if h, err := f.tier.Acquire(f.placed.fileOf(t, fl.replica), t.Geometry().PagesExtent(fl.first, fl.end)); err == nil {
		h.Release()
	}
}

// fetch asks other workers, and then the under-store, for the flight's pages
// and fills them into the tier as they arrive.
func (f *fetcher) fetch(ctx context.Context, t *block.Ticket, fl *flight) error {
	first := fl.first
	if f.peers != nil {
		first = f.peers.fill(ctx, t, fl)
	}
	if first == fl.end {
		return nil
	}
	e := t.Geometry().PagesExtent(first, fl.end)
	m, release, err := f.mounts.use(ctx, t.MountID)
	if err != nil {
		return err
	}
	defer release()
	leave, err := f.enter(ctx, m, e.Length, &fl.urgent)
	if err != nil {
		return err
	}
	defer leave()

	h, err := f.tier.Acquire(f.placed.fileOf(t, fl.replica), e)
	if err != nil {
		return &unkeptError{err}
	}
	defer h.Release()
	if len(h.Missing()) == 0 { // whoever asked held a handle from before a drop
		fl.publish(fl.end)
		return nil
	}
	room, err := h.Reserve(e)
	if err != nil {
		return &unkeptError{err}
	}
	defer room.Release()
	for page, cuts := first, 0; ; cuts++ {
		reached, cut, err := f.receivePages(ctx, t, m, page, fl, h, room)
		if err == nil || !cut || errs.KindOf(err) != errs.Unavailable || cuts == maxCuts {
			return err
		}
		if reached > page {
			page, cuts = reached, 0
		}
		if err := pause(ctx, cuts); err != nil {
			return err
		}
	}
}

// maxCuts is how often in a row an answer may be cut before its first page is
// there. Failed requests are not repeated here: stores do that themselves.
const maxCuts = 3

// pause waits before a request that goes on where an answer was cut.
func pause(ctx context.Context, cuts int) error {
	delay := 20 * time.Millisecond << cuts
	if wait.For(ctx, delay/2+rand.N(delay)) != nil {
		return ctx.Err()
	}
	return nil
}

// receivePages makes one request for the flight's pages from page on, and
// fills and publishes them as they arrive. It returns the first page that it
// did not fill; cut says that an answer began to arrive and ended early.
func (f *fetcher) receivePages(ctx context.Context, t *block.Ticket, m *mount, page int64, fl *flight, h *tier.Handle, room *tier.Reservation) (reached int64, cut bool, err error) {
	geo := t.Geometry()
	body, err := m.store.Read(ctx, ufs.Object{Path: t.Path, Tag: t.Tag, Length: t.Length}, geo.PagesExtent(page, fl.end))
	if err != nil {
		return page, false, err
	}
	defer body.Close()
	buf, ok := pageBuffers.Get().(*[block.PageSize]byte)
	if !ok {
		return page, false, errs.E(errs.Internal, "", "", errors.New("a foreign buffer in the pool"))
	}
	defer pageBuffers.Put(buf)
	for ; page < fl.end; page++ {
		data := buf[:geo.Page(page).Length]
		if err := readFull(body, data, page == fl.end-1); err != nil {
			return page, true, err
		}
		if !h.Has(page) {
			if _, err := room.Fill(page, data); err != nil {
				return page, false, &unkeptError{err}
			}
		}
		fl.publish(page + 1)
	}
	return page, false, nil
}

// readFull fills p from body. Behind the last byte that was asked for it
// looks for the end, where a store says what it found wrong with the whole.
func readFull(body io.Reader, p []byte, last bool) error {
	n, err := io.ReadFull(body, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.E(errs.Unavailable, "", "", fmt.Errorf("the answer ended %d bytes early: %w", len(p)-n, io.ErrUnexpectedEOF))
	}
	if err != nil || !last {
		return err
	}
	var more [1]byte
	switch n, err := io.ReadFull(body, more[:]); {
	case n > 0:
		return errs.E(errs.Corrupt, "", "", errors.New("the under-store sent more than was asked for"))
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// enter waits until n more bytes and one more request to the mount may be in
// flight.
func (f *fetcher) enter(ctx context.Context, m *mount, n int64, urgent *atomic.Int32) (leave func(), err error) {
	if err := f.inflight.enter(ctx, m.share, n, urgent); err != nil {
		return nil, err
	}
	return func() { f.inflight.leave(m.share, n) }, nil
}

// stop cancels all flights, and returns when they have ended, or patience is
// over: a request to an under-store that is frozen may not be cancelable. It
// reports whether they have. Their readers, and those that come later, get
// errs.Unavailable.
func (f *fetcher) stop(patience time.Duration) bool {
	f.mu.Lock()
	f.stopped = true
	for _, flights := range f.flights {
		for _, fl := range flights {
			fl.cancel()
		}
	}
	for _, all := range f.loose {
		for _, l := range all {
			l.cancel()
		}
	}
	f.mu.Unlock()
	return f.crew.stop(patience)
}
