package blockio

import "sync"

// patience is how many turns in a row may go to more urgent frames while one
// waits; then it is its turn, so that steady reads do not starve a load.
const patience = 16

// turns is a lock that goes to who waits with the most urgent priority, so
// that a read is not held up behind the frames of loads.
type turns struct {
	mu      sync.Mutex
	taken   bool
	waiting [PriorityRepair + 1]int
	passed  [PriorityRepair + 1]int // turns of others, more urgent, since one waits
	free    [PriorityRepair + 1]sync.Cond
}

func (t *turns) init() {
	for p := range t.free {
		t.free[p].L = &t.mu
	}
}

// take waits for a turn.
func (t *turns) take(p Priority) {
	p = min(p, PriorityRepair)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[p]++
	for t.taken || t.next() != p {
		t.free[p].Wait()
	}
	t.waiting[p]--
	t.passed[p] = 0
	for q := p + 1; q <= PriorityRepair; q++ {
		if t.waiting[q] > 0 {
			t.passed[q]++
		}
	}
	t.taken = true
}

// isFree reports whether nobody has a turn or waits for one.
func (t *turns) isFree() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.taken && t.waiting == [PriorityRepair + 1]int{}
}

// next returns whose turn it is of those who wait: the most urgent, unless
// another has no patience left. Called with the lock, while somebody waits.
func (t *turns) next() Priority {
	next := PriorityRepair
	for p := PriorityRepair + 1; p > 0; p-- {
		if q := p - 1; t.waiting[q] > 0 {
			next = q
		}
	}
	for p := next + 1; p <= PriorityRepair; p++ {
		if t.waiting[p] > 0 && t.passed[p] >= patience && t.passed[p] > t.passed[next] {
			next = p
		}
	}
	return next
}

// give ends the turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
	if p := t.next(); t.waiting[p] > 0 {
		t.free[p].Signal()
	}
}
