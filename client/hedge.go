package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// errOutrun ends a read whose bytes another worker brought.
var errOutrun = errs.E(errs.Canceled, "", "", errors.New("another worker was faster"))

// budget bounds hedges to a share of the reads.
type budget struct {
	share int64 // of a hedge that one read earns, in millionths
	saved atomic.Int64
}

const (
	wholeHedge = 1_000_000
	// mostHedges may be saved up.
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

// hedge watches a read of one worker and, when that is slow, has the bytes
// from another one as well, into a buffer of its own. Who is first ends the
// other one. It is part of an attempt, so that a read that is not slow, as
// nearly all are, costs a timer.
type hedge struct {
	read  hedgedRead
	began time.Time
	until time.Time
	delay time.Duration
	timer *time.Timer // calls late

	mu     sync.Mutex
	over   bool          // the read has ended: nothing begins any more
	second *attempt      // at the other worker; nil: there is none
	done   chan struct{} // closed when second has ended
	buf    []byte
	err    error // of second
}

// hedgedRead is a read of part of a block.
type hedgedRead struct {
	f    *File
	from *worker
	t    *block.Ticket
	key  block.Key
	p    []byte
	off  int64
}

// watch begins to watch r, the read of t.
func (t *attempt) watch(r hedgedRead, until time.Time) {
	h := &t.hedge
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read, h.began, h.until, h.delay = r, time.Now(), until, r.from.history.slowAt(len(r.p))
	h.over = false
	if h.timer == nil {
		h.timer = time.AfterFunc(h.delay, t.late)
	} else {
		h.timer.Reset(h.delay)
	}
}

// late is called when the read has not ended in time.
func (t *attempt) late() {
	h := &t.hedge
	h.mu.Lock()
	if h.over || h.second != nil {
		h.mu.Unlock()
		return
	}
	r := h.read
	to, epoch := r.f.second(r.key, r.from.id)
	if to == nil || !r.f.worthHedging(r.from) {
		h.delay = min(2*h.delay, time.Second) // its worker may be in doubt by then
		h.timer.Reset(h.delay)
		h.mu.Unlock()
		return
	}
	r.f.c.hedgesBegun.Add(1)
	second := r.f.c.attempts.begin(t.parent, h.until)
	h.second, h.done, h.buf = second, make(chan struct{}), make([]byte, len(r.p))
	h.mu.Unlock()

	x, err := r.f.c.workers.get(to)
	if err == nil {
		err = r.f.c.workers.readAt(second, x, r.t, &piece{key: r.key, p: h.buf, off: r.off}, epoch)
	}
	if h.err = err; err == nil {
		t.cancel(errOutrun)
	}
	close(h.done)
}

// settle ends the watch over a read that ended with err, and returns how both
// ended: nil if p is filled.
func (t *attempt) settle(err error) error {
	h := &t.hedge
	h.mu.Lock()
	h.over = true
	if !h.timer.Stop() {
		t.used = true // late may come yet
	}
	second, r := h.second, h.read
	h.mu.Unlock()
	if second == nil {
		return err
	}
	if err == nil {
		second.cancel(context.Canceled)
	}
	<-h.done
	second.end()
	if err != nil && h.err == nil {
		copy(r.p, h.buf)
		if errors.Is(t.Err(), errOutrun) {
			r.from.doubt.outrun()
			r.from.history.note(len(r.p), time.Since(h.began))
		}
		r.f.c.hedgesWon.Add(1)
		err = nil
	}
	return err
}

// second returns who to ask for a block beside one who is slow; nil if nobody
// is likely to do better.
func (f *File) second(key block.Key, slow block.WorkerID) (*member, uint64) {
	m, _ := f.c.members.now()
	if m == nil {
		return nil, 0
	}
	owners := m.owners(key, f.entry.Size, f.c.cfg.Owners, f.c.workers.doubtful)
	for i := range owners {
		if w := &owners[i]; w.id != slow && w.believed() && !f.c.workers.doubtful(w.id) {
			return w, m.placement.Epoch
		}
	}
	return nil, 0
}

// worthHedging reports whether a second worker may be asked. Where the first
// one seems to be gone, that is not a matter of the budget.
func (f *File) worthHedging(from *worker) bool {
	if from.doubt.now() {
		return true
	}
	if m, _ := f.c.members.now(); m != nil {
		if w, ok := m.members[from.id]; !ok || !w.believed() {
			return true
		}
	}
	return f.c.hedges.spend()
}
