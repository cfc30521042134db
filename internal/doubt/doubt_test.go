package doubt

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPauses grow with each failure, and an answer ends them.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Doubt
		if d.Now() || !d.Try() {
			t.Error("doubt of one that nobody asked")
		}
		for _, seconds := range []int{1, 2, 4, 8, 10, 10} {
			pause := time.Duration(seconds) * time.Second
			d.Failed()
			d.Failed() // another request that was under way
			time.Sleep(pause - time.Nanosecond)
			if !d.Now() || d.Try() {
				t.Errorf("no doubt before %v are over", pause)
			}
			time.Sleep(time.Nanosecond)
			if d.Now() {
				t.Errorf("doubt after %v", pause)
			}
		}
		d.Answered()
		d.Failed()
		time.Sleep(Least)
		if d.Now() {
			t.Error("an answer does not shorten the next doubt")
		}
	})
}

func TestOutrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Doubt
		for i := range LostInARow {
			if d.Now() {
				t.Errorf("doubt after it was outrun %d times", i)
			}
			d.Outrun()
		}
		if !d.Now() {
			t.Error("no doubt of one that was outrun again and again")
		}
		time.Sleep(Least)
		d.Outrun()
		if !d.Now() {
			t.Error("no doubt of one that failed before and was outrun")
		}
		d.Answered()
		d.Outrun()
		if d.Now() {
			t.Error("an answer does not forgive what was lost before")
		}
	})
}

// TestTrial: after a pause one request tries, whatever many wait for it.
func TestTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Doubt
		tries := func() int64 {
			var n atomic.Int64
			var g sync.WaitGroup
			for range 10 {
				g.Go(func() {
					if d.Try() {
						n.Add(1)
					}
				})
			}
			g.Wait()
			return n.Load()
		}
		d.Failed()
		time.Sleep(Least)
		if n := tries(); n != 1 {
			t.Errorf("%d try at once, want 1", n)
		}
		if !d.Now() {
			t.Error("others do not wait for the one that tries")
		}
		time.Sleep(Least) // it has no answer, and says nothing
		if n := tries(); n != 1 {
			t.Errorf("%d try after one that went away, want 1", n)
		}
		d.Failed()
		time.Sleep(2*Least - time.Nanosecond)
		if d.Try() {
			t.Error("a try that fails does not prolong the doubt")
		}
		time.Sleep(time.Nanosecond)
		if n := tries(); n != 1 {
			t.Errorf("%d try, want 1", n)
		}
		d.Answered()
		if n := tries(); n != 10 {
			t.Errorf("%d ask one that answers, want all 10", n)
		}
	})
}
