package cacheworker

import (
	"sync"
	"sync/atomic"
	"time"
)

// crew runs tasks, each on a goroutine at once. It keeps goroutines that have
// nothing to do for a while: a request to an under-store goes through deep
// stacks, and a new goroutine would have to grow its own each time, which
// costs a small file as much as its signature.
type crew struct {
	most  int32         // goroutines kept
	keep  time.Duration // how long
	tasks chan func()   // to one of those kept
	over  chan struct{} // closed at the stop

	idle    atomic.Int32
	working sync.WaitGroup
}

// crewKeep is how long a goroutine waits for its next task.
const crewKeep = 5 * time.Second

func newCrew(most int) *crew {
	return &crew{most: int32(min(most, 1<<20)), keep: crewKeep, tasks: make(chan func()), over: make(chan struct{})}
}

// do starts the task. It must not be called once stop has been.
func (c *crew) do(task func()) {
	select {
	case c.tasks <- task:
	default:
		c.working.Go(func() { c.work(task) })
	}
}

func (c *crew) work(task func()) {
	timer := time.NewTimer(c.keep)
	defer timer.Stop()
	for {
		task()
		if c.idle.Add(1) > c.most {
			c.idle.Add(-1)
			return
		}
		timer.Reset(c.keep)
		select {
		case task = <-c.tasks:
			c.idle.Add(-1)
			continue
		case <-timer.C:
		case <-c.over:
		}
		c.idle.Add(-1)
		return
	}
}

// stop waits for the tasks to end, but not longer than patience. It reports
// whether they have.
func (c *crew) stop(patience time.Duration) bool {
	close(c.over)
	return waitFor(&c.working, patience)
}

// waitFor reports whether the group came to its end within d. If it did not,
// a goroutine goes on waiting for it.
func waitFor(g *sync.WaitGroup, d time.Duration) bool {
	ended := make(chan struct{})
	go func() {
		g.Wait()
		close(ended)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ended:
		return true
	case <-t.C:
		return false
	}
}
