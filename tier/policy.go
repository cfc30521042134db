package tier

import (
	"context"
	"sync"
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
	// units returns all units, the next victim's side first.
	units() []*unit
}

// runner is a policy that works in the background, too; run returns when ctx
// ends.
type runner interface {
	run(ctx context.Context)
}

// sieve is SIEVE (Zhang et al., NSDI 2024): one queue in order of arrival, a
// visited bit per unit, and a hand that walks from the oldest to the newest,
// clears the bits it finds set and stops at the first one that is clear. A
// hit sets a bit, so it needs no lock.
type sieve struct {
	mu         sync.Mutex
	head, tail *unit // newest and oldest; linked through prev (newer) and next (older)
	hand       *unit
	n          int
}

func (q *sieve) add(u *unit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u.state.Load()&unitQueued != 0 {
		return
	}
	u.state.Or(unitQueued)
	u.prev, u.next = nil, q.head
	if q.head != nil {
		q.head.prev = u
	} else {
		q.tail = u
	}
	q.head = u
	q.n++
}

func (q *sieve) remove(u *unit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u.state.Load()&unitQueued == 0 {
		return
	}
	u.state.And(^unitQueued)
	if q.hand == u {
		q.hand = u.prev
	}
	if u.prev != nil {
		u.prev.next = u.next
	} else {
		q.head = u.next
	}
	if u.next != nil {
		u.next.prev = u.prev
	} else {
		q.tail = u.prev
	}
	u.prev, u.next = nil, nil
	q.n--
}

func (q *sieve) touch(u *unit) {
	if u.state.Load()&unitVisited == 0 { // a set bit costs no write to a shared line
		u.state.Or(unitVisited)
	}
}

func (q *sieve) victim() *unit {
	q.mu.Lock()
	defer q.mu.Unlock()
	for range 2 * q.n { // the first round may do no more than clear all bits
		u := q.hand
		if u == nil {
			u = q.tail
		}
		q.hand = u.prev
		if u.pins.Load() > 0 {
			continue
		}
		if u.state.Load()&unitVisited != 0 {
			u.state.And(^unitVisited)
			continue
		}
		return u
	}
	return nil
}

func (q *sieve) units() []*unit {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]*unit, 0, q.n)
	for u := q.tail; u != nil; u = u.prev {
		all = append(all, u)
	}
	return all
}
