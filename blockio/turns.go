package blockio

import "sync"

// turns is a lock that goes to who waits with the most urgent priority, so
// that a read is not held up behind the frames of loads. Lower priorities have
// no turn while higher ones wait.
type turns struct {
	mu      sync.Mutex
	taken   bool
	waiting [PriorityRepair + 1]int
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
	for t.taken || t.overtaken(p) {
		t.waiting[p]++
		t.free[p].Wait()
		t.waiting[p]--
	}
	t.taken = true
}

// overtaken reports whether somebody more urgent waits. Called with the lock.
func (t *turns) overtaken(p Priority) bool {
	for _, n := range t.waiting[:p] {
		if n > 0 {
			return true
		}
	}
	return false
}

// give ends the turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
	for p, n := range t.waiting {
		if n > 0 {
			t.free[p].Signal()
			return
		}
	}
}
