package tier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// Refetch brings a page of f anew from where f comes from, for the scrubber:
// all the bytes of that page, of this version of the file. It is called by at
// most one goroutine per directory, and must return soon after ctx has ended.
//
// Errors: Stale or NotFound says that this version is gone for good; any
// other error that nobody could be asked, so that it is tried again later.
type Refetch func(ctx context.Context, f File, page int64) ([]byte, error)

const (
	// scrubIdle is the longest pause between two pages. It makes a pass over
	// a small cache quicker than was asked for, at the cost of a page.
	scrubIdle = time.Minute
	// scrubBatch is how many parts are taken from the path index at a time.
	scrubBatch = 64
	// scrubWaiting bounds the damaged pages whose source did not answer that
	// are tried again each minute; those past it wait for the next pass.
	scrubWaiting = 256
)

// scrubber goes over the cached pages of one directory, round and round, in
// the order of the path index.
type scrubber struct {
	d       *dir
	buf     []byte    // of one page
	parts   []*part   // the next ones
	last    *part     // the one that was taken from the path index last
	page    int64     // the next one of parts[0]
	waiting []badPage // damaged, to be repaired when their source answers
	retry   time.Time // of waiting
}

type badPage struct {
	part *part
	page int64
}

// newScrubber begins anywhere: what comes late in the order would never have
// its turn in a store that is started anew each day.
func newScrubber(d *dir) *scrubber {
	return &scrubber{d: d, buf: make([]byte, block.PageSize), last: d.store.paths.random()}
}

// scrub compares pages with their checksums until ctx ends or the directory
// fails, at the pace that the directory's configuration gives.
func (d *dir) scrub(ctx context.Context) {
	s := newScrubber(d)
	timer := time.NewTimer(scrubIdle)
	defer timer.Stop()
	if d.cfg.ScrubInterval == 0 {
		timer.Stop()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.down:
			return
		case <-timer.C:
		}
		timer.Reset(d.scrubPause(s.step(ctx)))
	}
}

// scrubPause is how long to wait after n bytes of the disk were compared.
func (d *dir) scrubPause(n int64) time.Duration {
	st := d.ledger.state()
	rate := float64(st.used-st.reserved-st.held) / d.cfg.ScrubInterval.Std().Seconds()
	rate = min(rate, float64(d.cfg.ScrubRate))
	if n == 0 || rate <= 0 {
		return scrubIdle
	}
	return time.Duration(min(float64(n)/rate, scrubIdle.Seconds()) * float64(time.Second))
}

// step compares the next page, and returns what it takes on the disk; 0 if
// the pass has come to its end.
func (s *scrubber) step(ctx context.Context) int64 {
	if len(s.waiting) > 0 && !time.Now().Before(s.retry) {
		s.tryWaiting(ctx)
	}
	p, page, ok := s.next()
	if !ok {
		return 0
	}
	if b := (badPage{p, page}); !slices.Contains(s.waiting, b) {
		s.compare(ctx, b, false)
	}
	return s.d.pageCost(p.geometry(), page)
}

// next returns the next page that is present; ok is false once at the end of
// each pass.
func (s *scrubber) next() (p *part, page int64, ok bool) {
	for {
		if len(s.parts) == 0 {
			s.parts = s.d.store.paths.behind(s.last, scrubBatch)
			s.page = 0
			if len(s.parts) == 0 {
				s.last = nil
				return nil, 0, false
			}
			s.last = s.parts[len(s.parts)-1]
		}
		p = s.parts[0]
		if page, ok = s.d.presentFrom(p, s.page); ok {
			s.page = page + 1
			return p, page, true
		}
		s.parts, s.page = s.parts[1:], 0
	}
}

// presentFrom returns the first present page of p, a part of d, from page on.
func (d *dir) presentFrom(p *part, page int64) (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(partDead) || d.store.dirOf(p) != d {
		return 0, false
	}
	g := p.geometry()
	for page < g.Pages() {
		u := p.unitOf(page)
		if u == nil { // a whole block is absent
			page = (page/int64(p.blockPages) + 1) * int64(p.blockPages)
			continue
		}
		if u.hasPage(page) {
			return page, true
		}
		page++
	}
	return 0, false
}

// pinPage is Acquire for the scrubber: its look at a page is no hit. It
// returns nil if the page is gone.
func (d *dir) pinPage(p *part, page int64) (h *Handle, crc uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.unitOf(page)
	if p.has(partDead) || !u.hasPage(page) || d.store.dirOf(p) != d {
		return nil, 0
	}
	p.pin(page, page+1)
	return &Handle{s: d.store, p: p, first: page, end: page + 1}, u.crcOf(page)
}

// compare reads a page, and has it repaired if it is not what it should be.
// again says that it was found damaged before, and counted.
func (s *scrubber) compare(ctx context.Context, b badPage, again bool) {
	d, p, page := s.d, b.part, b.page
	h, want := d.pinPage(p, page)
	if h == nil {
		return
	}
	defer h.Release()
	p.mu.Lock()
	f, err := h.open()
	p.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		h.fileGone()
		return
	}
	if err != nil { // says nothing of the page
		d.ioError("open file to scrub", err)
		return
	}
	buf := s.buf[:p.geometry().Page(page).Length]
	doubts := d.doubts.Load()
	damage := h.readWhole(f, buf, page, want)
	if !again {
		d.store.stats.scrubbedPages.Add(1)
		d.store.stats.scrubbedBytes.Add(int64(len(buf)))
	}
	if !h.judge(page, want, damage == nil, doubts) || damage == nil {
		return
	}
	if !again {
		d.store.stats.checksumErrors.Add(1)
	}
	s.mend(ctx, h, b, damage, again)
}

// judge notes whether a page is what its checksum says, as it was read when
// the directory had so many doubts. From a bad verdict on every read of it is
// checked, and its file is given to nobody. It is false if the page was given
// up meanwhile.
func (h *Handle) judge(page int64, want uint32, good bool, doubts int64) bool {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	u := h.p.unitOf(page)
	if h.p.has(partDead) || !u.hasPage(page) || u.crcOf(page) != want {
		return false
	}
	u.setVerified(page, good && h.s.dirOf(h.p).doubts.Load() == doubts)
	if !good {
		h.s.recalls.file(h.p.id)
	}
	return true
}

// mend repairs a damaged page or gives it up. If its source does not answer it
// stays as it is, to be tried again: readers check it and fetch it themselves,
// and who has the file open is helped by a repair alone.
func (s *scrubber) mend(ctx context.Context, h *Handle, b badPage, damage error, again bool) {
	d := s.d
	log := d.log.With(slog.String("path", h.p.path()), slog.Int64("page", b.page), slog.Any("damage", damage))
	err := s.repair(ctx, h, b.page)
	kind := errs.KindOf(err)
	switch {
	case kind == errs.NotCached: // given up meanwhile
	case err == nil:
		d.store.stats.repairedPages.Add(1)
		log.Warn("repaired a damaged page of the cache")
	case ctx.Err() != nil: // found again in the next run
	case kind == errs.Stale, kind == errs.NotFound, kind == errs.Corrupt:
		if h.giveUp(b.page) {
			d.store.stats.scrubDroppedPages.Add(1)
			log.Warn("dropped a damaged page of the cache, which cannot be repaired", slog.Any("error", err))
		}
	default:
		if !again {
			log.Warn("a page of the cache is damaged; it will be repaired when its source answers", slog.Any("error", err))
		}
		if len(s.waiting) == 0 {
			s.retry = time.Now().Add(scrubIdle)
		}
		if len(s.waiting) < scrubWaiting {
			s.waiting = append(s.waiting, b)
		}
	}
}

// tryWaiting looks at the damaged pages that are left, once.
func (s *scrubber) tryWaiting(ctx context.Context) {
	waiting := s.waiting
	s.waiting = nil
	for _, b := range waiting {
		s.compare(ctx, b, true)
	}
}

// repair writes the bytes of a damaged page again, in its place: who has the
// file open sees from now on what should have been there all along.
//
// Errors: NotFound or Stale if nobody has these bytes any more, Corrupt if the
// source has others or the disk does not take them; any other if the source
// did not answer.
func (s *scrubber) repair(ctx context.Context, h *Handle, page int64) error {
	refetch := s.d.store.opts.Refetch
	if refetch == nil {
		return errs.E(errs.NotFound, "", "", errors.New("there is nobody to ask for it"))
	}
	data, err := refetch(ctx, h.p.asFile(), page)
	if err != nil {
		return err
	}
	return h.rewrite(page, data)
}

// rewrite writes a page in place that is present: the same bytes, which is
// why it needs no proof that nobody has the file open. NotCached if the page
// was given up meanwhile.
func (h *Handle) rewrite(page int64, data []byte) error {
	d, p := h.s.dirOf(h.p), h.p
	got := block.Checksum(data)
	p.mu.Lock() // keeps drops of the page away
	defer p.mu.Unlock()
	u := p.unitOf(page)
	switch {
	case p.has(partDead) || !u.hasPage(page):
		return errs.NotCached
	case got != u.crcOf(page):
		return errs.E(errs.Corrupt, "", "", fmt.Errorf("the source has checksum %08x, expected %08x", got, u.crcOf(page)))
	}
	f, err := h.open()
	if err == nil {
		_, err = f.WriteAt(data, p.geometry().Page(page).Offset)
	}
	if err != nil {
		d.countError(err)
		return errs.E(errs.Corrupt, "", "", err)
	}
	d.unsynced.Add(int64(len(data)))
	u.setVerified(page, true)
	return nil
}
