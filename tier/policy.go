package tier

import (
	"context"
	"sync"
	"sync/atomic"
)

// policy orders the units of a directory for eviction. Implementations are
// safe for concurrent use, allocate nothing per access, and take no lock in
// touch.
type policy interface {
	// add takes a unit in as the newest; one that is in already stays where
	// it is.
	add(u *unit)
	// remove takes a unit out.
	remove(u *unit)
	// touch notes a hit.
	touch(u *unit)
	// victim returns the next unit to give up, or nil if all are pinned. The
	// unit stays in; the next call returns another one where there is one.
	victim() *unit
	// units returns all units in the order in which a later run is to add
	// them.
	units() []*unit
}

// runner is a policy that works in the background, too; run returns when ctx
// ends.
type runner interface {
	run(ctx context.Context)
}

const (
	// youngShare is the share of the units that are on probation: one of so
	// many. More of them find more that is read twice in a short time, and
	// leave less room for what has proved itself.
	youngShare = 16
	// settled is how many victims in a row must be taken from the young before
	// the old are looked at, with no hit meanwhile on one that a look had left
	// without its bit. Fewer and shuffled epochs lose what they would hit;
	// more and what is popular takes longer to change.
	settled = 64
	// maxLooks bounds how many of the old are looked at for one victim. With
	// fewer, more of a data set that is read once, as a load job does, is gone
	// before the bits of what nobody reads any more are cleared.
	maxLooks = 16
)

// paced keeps what has proved itself until it has had the time to prove
// itself again. It is made for training, which reads each file once an epoch
// in an order that is always new: there all files are worth the same, and what
// was read last is the last to be read again, so that whoever replaces the old
// by the new, as LRU and SIEVE do, loses what the rest of the epoch would hit.
//
// A unit comes in young, in a queue of a sixteenth of all, from which it moves
// on to the old when it is pushed over that size or was hit. Victims are the
// oldest of the young. The old are a clock: a look at the oldest clears its
// bit and sends it to the other end, or, if the bit was clear, names it the
// victim, so that one of the young can move on. The pace of the looks is the
// point: as long as old units whose bits were cleared are still being hit, the
// clock is fast enough, and waits. When all that will be hit has been, or
// nobody wants the old ones any more, as another data set is being read, it
// turns by up to maxLooks at each victim.
type paced struct {
	mu         sync.Mutex
	young, old unitList
	asked      int         // victims since one was taken out: the others were refused
	quiet      int         // victims since the last that found fresh set
	fresh      atomic.Bool // an old unit's bit was set since the last victim
}

func (q *paced) add(u *unit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u.state.Load()&unitQueued != 0 {
		return
	}
	u.state.Or(unitQueued)
	q.young.push(u)
	for q.young.n > max(1, (q.young.n+q.old.n)/youngShare) {
		q.settle()
	}
}

func (q *paced) remove(u *unit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	state := u.state.Load()
	if state&unitQueued == 0 {
		return
	}
	q.asked = 0
	u.state.And(^(unitQueued | unitOld))
	if state&unitOld != 0 {
		q.old.remove(u)
	} else {
		q.young.remove(u)
	}
}

func (q *paced) touch(u *unit) {
	if u.state.Load()&unitVisited != 0 {
		return // a set bit costs no write to a shared line
	}
	before := u.state.Or(unitVisited)
	if before&(unitOld|unitVisited) == unitOld && !q.fresh.Load() {
		q.fresh.Store(true)
	}
}

func (q *paced) victim() *unit {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fresh.Swap(false) {
		q.quiet = 0
	} else {
		q.quiet++
	}
	q.asked++
	if !q.settleHit() {
		old := q.quiet >= min(settled, (q.young.n+q.old.n)/2)
		if old == (q.asked%2 == 1) { // after a refusal, the other queue's turn
			if u := q.look(min(maxLooks, q.old.n)); u != nil {
				return u
			}
		}
		if u := q.young.idle(); u != nil {
			return u
		}
	}
	if u := q.look(2 * q.old.n); u != nil { // the first round may do no more than clear all bits
		return u
	}
	return q.young.idle()
}

// settle makes the oldest of the young an old one. It has its bit set, so that
// its first hit says nothing about the pace.
func (q *paced) settle() {
	u := q.young.tail
	q.young.remove(u)
	u.state.Or(unitOld | unitVisited)
	q.old.push(u)
}

// settleHit settles the oldest of the young as long as it was hit, and reports
// whether there was one.
func (q *paced) settleHit() (found bool) {
	for q.young.n > 0 && q.young.tail.state.Load()&unitVisited != 0 {
		q.settle()
		found = true
	}
	return found
}

// look turns the clock of the old n times, and returns the first unit that may
// go.
func (q *paced) look(n int) *unit {
	for range n {
		u := q.old.tail
		q.old.remove(u)
		q.old.push(u)
		if u.pins.Load() == 0 && u.state.And(^unitVisited)&unitVisited == 0 {
			return u
		}
	}
	return nil
}

func (q *paced) units() []*unit {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]*unit, 0, q.old.n+q.young.n)
	all = q.old.appendTo(all)
	return q.young.appendTo(all)
}

// unitList is a queue in order of arrival, linked through prev (newer) and
// next (older).
type unitList struct {
	head, tail *unit // newest and oldest
	n          int
}

func (l *unitList) push(u *unit) {
	u.prev, u.next = nil, l.head
	if l.head != nil {
		l.head.prev = u
	} else {
		l.tail = u
	}
	l.head = u
	l.n++
}

func (l *unitList) remove(u *unit) {
	if u.prev != nil {
		u.prev.next = u.next
	} else {
		l.head = u.next
	}
	if u.next != nil {
		u.next.prev = u.prev
	} else {
		l.tail = u.prev
	}
	u.prev, u.next = nil, nil
	l.n--
}

// idle returns the oldest unit that is not pinned and makes it the newest, as
// it does with those that are pinned; nil if all are.
func (l *unitList) idle() *unit {
	for range l.n {
		u := l.tail
		l.remove(u)
		l.push(u)
		if u.pins.Load() == 0 {
			return u
		}
	}
	return nil
}

// appendTo appends all units, the oldest first.
func (l *unitList) appendTo(all []*unit) []*unit {
	for u := l.tail; u != nil; u = u.prev {
		all = append(all, u)
	}
	return all
}
