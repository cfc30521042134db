package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

var (
	// errOutrun ends a read whose bytes another worker brought.
	errOutrun = errs.E(errs.Canceled, "", "", errors.New("another worker was faster"))
	// errSilent ends a read of a worker that is silent when the others have failed.
	errSilent = errs.E(errs.Canceled, "", "", errors.New("it does not answer"))
)

// budget bounds hedges to a share of the reads. Where nobody reads for waiting,
// nothing is earned: those who have waited for slowMost are helped all the same,
// a few at a time, since all of them may wait for an under-store that is asked
// for as much again.
type budget struct {
	share   int64 // of a hedge that one read earns, in millionths
	saved   atomic.Int64
	helping atomic.Int64 // hedges under way beside the share
}

const (
	wholeHedge = 1_000_000
	// mostHedges may be saved up, and as many be under way beside the share.
	mostHedges = 16
)

func newBudget(share float64) *budget {
	b := &budget{share: int64(share * wholeHedge)}
	if b.share > 0 {
		b.saved.Store(mostHedges * wholeHedge)
	}
	return b
}

// earn counts a read.
func (b *budget) earn() {
	if b.saved.Load() < mostHedges*wholeHedge {
		b.saved.Add(b.share)
	}
}

// spend takes one hedge, if there is one.
func (b *budget) spend() bool {
	for {
		saved := b.saved.Load()
		if saved < wholeHedge {
			return false
		}
		if b.saved.CompareAndSwap(saved, saved-wholeHedge) {
			return true
		}
	}
}

// help takes a hedge beside the share, if there is one. It is over when helped
// is called.
func (b *budget) help() bool {
	if b.helping.Add(1) <= mostHedges {
		return true
	}
	b.helping.Add(-1)
	return false
}

func (b *budget) helped() { b.helping.Add(-1) }

// silentAfter is how long a read waits for a worker that is found silent: longer
// than it takes to find that out anew.
const silentAfter = 2 * slowMost

// maxRivals bounds the workers that are asked beside the first one, each of
// which costs a buffer.
const maxRivals = 8

// hedge watches a read of one worker and, when that is slow, has the bytes
// from another one as well, into a buffer of its own, and from a third one when
// that one is slow, too. Who is first ends the others. It is part of an attempt,
// so that a read that is not slow, as nearly all are, costs a timer.
type hedge struct {
	read  hedgedRead
	until time.Time
	delay time.Duration
	timer *time.Timer // calls late

	mu       sync.Mutex
	over     bool // the read has ended: nothing begins any more
	failed   bool // at the first worker, and the rivals are waited for
	rivals   []*rival
	underWay int // of the rivals
}

// hedgedRead is a read of part of a block.
type hedgedRead struct {
	f   *File
	t   *block.Ticket
	key block.Key
	p   []byte
	off int64

	from  *worker
	began time.Time
}

// rival is the same read at another worker.
type rival struct {
	hedgedRead

	id      block.WorkerID
	attempt *attempt
	done    chan struct{} // closed when it has ended
	err     error
}

// watch begins to watch r.
func (t *attempt) watch(r hedgedRead, until time.Time) {
	h := &t.hedge
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read, h.until, h.delay = r, until, r.from.history.slowAt(len(r.p))
	h.over, h.failed = false, false
	if h.timer == nil {
		h.timer = time.AfterFunc(h.delay, t.late)
	} else {
		h.timer.Reset(h.delay)
	}
}

// late is called when those who were asked have not answered in time.
func (t *attempt) late() {
	h := &t.hedge
	h.mu.Lock()
	if h.over {
		h.mu.Unlock()
		return
	}
	c := h.read.f.c
	to, epoch, help := h.next()
	if to == nil {
		if len(h.rivals) > 0 && h.underWay == 0 && time.Since(h.read.began) >= silentAfter && c.workers.silent(h.read.from.id) {
			t.cancel(errSilent) // the others may do better when they are asked anew
		}
		h.probe()
		h.delay = min(2*h.delay, probeFor/2) // one of them may be in doubt by then
		h.timer.Reset(h.delay)
		h.mu.Unlock()
		return
	}
	c.hedgesBegun.Add(1)
	r := &rival{hedgedRead: h.read, id: to.id, attempt: c.attempts.begin(t.parent, h.until), done: make(chan struct{})}
	r.p, r.began = make([]byte, len(h.read.p)), time.Now()
	h.rivals = append(h.rivals, r)
	h.underWay++
	h.delay = slowUnknown
	if x := c.workers.find(to.id); x != nil {
		h.delay = x.history.slowAt(len(r.p))
	}
	h.timer.Reset(h.delay)
	h.mu.Unlock()

	if r.from, r.err = c.workers.get(to); r.err == nil {
		r.err = c.workers.readAt(r.attempt, r.from, r.t, &piece{key: r.key, p: r.p, off: r.off}, epoch, to.replica)
	}
	h.mu.Lock()
	h.underWay--
	switch {
	case r.err == nil, h.failed && h.underWay == 0:
		t.cancel(errOutrun)
	case !h.over:
		h.timer.Reset(0) // nobody waits for it any more
	}
	h.mu.Unlock()
	if help {
		c.hedges.helped()
	}
	close(r.done)
}

// next returns whom to ask beside those who were asked; nil if nobody is likely
// to do better. Where the last one is not expected to answer, the budget does
// not matter; where one is silent, neither does what is known of the others, nor
// how many of them are tried for a block. Nor do they when the last one has had
// slowMost: help says that the hedge is beside the share then. The lock is held.
func (h *hedge) next() (to *member, epoch uint64, help bool) {
	c := h.read.f.c
	m, _ := c.members.now()
	if m == nil || len(h.rivals) == maxRivals {
		return nil, 0, false
	}
	n, silent := c.cfg.Owners, c.workers.silent(h.read.from.id)
	for _, r := range h.rivals {
		silent = silent || c.workers.silent(r.id)
	}
	further := n + 1 + len(h.rivals)
	if silent {
		n = further
	}
	to = h.another(m, n)
	if to != nil && (silent || c.expected(m, to.id) && (!c.expected(m, h.last()) || c.hedges.spend())) {
		return to, m.placement.Epoch, false
	}
	if time.Since(h.askedLast()) < slowMost {
		return nil, 0, false
	}
	if to = h.another(m, further); to == nil || !c.hedges.help() {
		return nil, 0, false
	}
	return to, m.placement.Epoch, true
}

// another returns the best of a block's first n owners that was not asked yet;
// nil if all were. The lock is held.
func (h *hedge) another(m *membership, n int) *member {
	c := h.read.f.c
	owners := h.read.f.owners(m, h.read.key, n, c.workers.doubtful)
	i := slices.IndexFunc(owners, func(w member) bool { return !h.asked(w.id) })
	if i == 1 && len(owners) > 2 && owners[0].replica && c.expected(m, owners[2].id) {
		i = 2 // who keeps a replica may wait for the owner
	}
	if i < 0 {
		return nil
	}
	return &owners[i]
}

// askedLast returns when somebody was asked last.
func (h *hedge) askedLast() time.Time {
	if n := len(h.rivals); n > 0 {
		return h.rivals[n-1].began
	}
	return h.read.began
}

// last returns who was asked last.
func (h *hedge) last() block.WorkerID {
	if n := len(h.rivals); n > 0 {
		return h.rivals[n-1].id
	}
	return h.read.from.id
}

// probe finds out whether those who have not answered yet are there. The lock is
// held.
func (h *hedge) probe() {
	c := h.read.f.c
	if !h.failed {
		c.probe(h.read.from.id)
	}
	for _, r := range h.rivals {
		select {
		case <-r.done:
		default:
			c.probe(r.id)
		}
	}
}

func (h *hedge) asked(id block.WorkerID) bool {
	return h.read.from.id == id || slices.ContainsFunc(h.rivals, func(r *rival) bool { return r.id == id })
}

// expected reports whether a worker is expected to answer: the masters say that
// it is there, and it did not fail a moment ago.
func (c *Client) expected(m *membership, id block.WorkerID) bool {
	w, ok := m.members[id]
	return ok && w.believed() && !c.workers.doubtful(id)
}

// probe finds out whether a worker is there, unless that was done a moment ago.
func (c *Client) probe(id block.WorkerID) {
	x, now := c.workers.find(id), c.clock.now()
	if x == nil {
		return
	}
	last := x.probed.Load()
	if now-last < int64(probeFor) || !x.probed.CompareAndSwap(last, now) {
		return
	}
	if !c.background(func(ctx context.Context) { c.workers.probe(ctx, x) }) {
		x.probed.Store(last)
	}
}

// settle ends the watch over a read that ended with err, and returns how all of
// it ended: nil if p is filled.
func (t *attempt) settle(err error) error {
	h := &t.hedge
	h.mu.Lock()
	if err != nil && h.underWay > 0 {
		h.failed = true
		h.mu.Unlock()
		<-t.Done() // somebody has the bytes, nobody will, or the time is over
		h.mu.Lock()
	}
	h.over = true
	if !h.timer.Stop() {
		t.used = true // late may come yet
	}
	first, rivals := h.read, h.rivals
	h.mu.Unlock()
	var won *rival
	for _, r := range rivals {
		r.attempt.cancel(context.Canceled)
	}
	for _, r := range rivals {
		<-r.done
		r.attempt.end()
		if won == nil && r.err == nil {
			won = r
		}
	}
	if err == nil || won == nil {
		return err
	}
	copy(first.p, won.p)
	if errors.Is(err, context.Canceled) {
		first.lost()
	}
	for _, r := range rivals[:slices.Index(rivals, won)] {
		if errors.Is(r.err, context.Canceled) {
			r.lost()
		}
	}
	first.f.c.hedgesWon.Add(1)
	return nil
}

// lost notes that a worker that was asked later answered sooner.
func (r *hedgedRead) lost() {
	r.from.doubt.Outrun()
	r.from.history.note(len(r.p), time.Since(r.began))
}
