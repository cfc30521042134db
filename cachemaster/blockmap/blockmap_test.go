package blockmap

import (
	"fmt"
	"testing"
	"time"

	"millrace/block"
)

func key(n byte, index uint32) block.Key {
	return block.Key{File: block.FileID{0, n}, Index: index}
}

// cached is the location of a block, and gone that of one that is not there.
func cached(n byte, index uint32, whole bool) uint64 {
	if whole {
		return gone(n, index) | wholeBit
	}
	return gone(n, index)
}

func gone(n byte, index uint32) uint64 { return key(n, index).LocationHash() }

// TestStream follows one worker's stream step by step.
func TestStream(t *testing.T) {
	t.Parallel()
	type step struct {
		what     string
		report   Report
		needFull bool
		locs     int
	}
	steps := []step{
		{"a delta before anything", Report{Epoch: 7, Sequence: 1, Cached: []uint64{cached(1, 0, true)}}, true, 0},
		{"a part before the first", Report{Epoch: 7, Sequence: 2, Part: true, Cached: []uint64{cached(1, 0, true)}}, true, 0},
		{"the first part", Report{Epoch: 7, Sequence: 3, First: true, Cached: []uint64{cached(1, 0, true)}}, false, 1},
		{"its repetition", Report{Epoch: 7, Sequence: 3, First: true, Cached: []uint64{cached(1, 0, true)}}, false, 1},
		{"a part", Report{Epoch: 7, Sequence: 4, Part: true, Cached: []uint64{cached(2, 0, false)}}, false, 2},
		{"the last part", Report{Epoch: 7, Sequence: 5, Last: true, Cached: []uint64{cached(3, 0, false)}}, false, 3},
		{"a delta", Report{Epoch: 7, Sequence: 6, Cached: []uint64{cached(2, 0, true)}, Gone: []uint64{gone(3, 0)}}, false, 2},
		{"its repetition", Report{Epoch: 7, Sequence: 6, Cached: []uint64{cached(9, 9, true)}}, false, 2},
		{"a gap", Report{Epoch: 7, Sequence: 8, Cached: []uint64{cached(4, 0, true)}}, true, 2},
		{"a delta after the gap", Report{Epoch: 7, Sequence: 9, Cached: []uint64{cached(4, 0, true)}}, true, 2},
		{"a full report in one message", Report{Epoch: 7, Sequence: 10, First: true, Last: true, Cached: []uint64{cached(5, 0, true)}}, false, 1},
		{"a delta of a new epoch", Report{Epoch: 8, Sequence: 1, Cached: []uint64{cached(6, 0, true)}}, true, 1},
		{"a full report of the new epoch", Report{Epoch: 8, Sequence: 2, First: true, Last: true}, false, 0},
		{"a delta of the old epoch", Report{Epoch: 7, Sequence: 11, Cached: []uint64{cached(6, 0, true)}}, true, 0},
		{"a gap in a full report", Report{Epoch: 8, Sequence: 3, First: true, Cached: []uint64{cached(1, 0, true)}}, false, 1},
		{"its next but one part", Report{Epoch: 8, Sequence: 5, Last: true}, true, 1},
	}
	m := New(time.Now)
	for _, s := range steps {
		if got := m.Apply("w", s.report); got != s.needFull {
			t.Errorf("%s: need full = %v, want %v", s.what, got, s.needFull)
		}
		if got := m.Len(); got != s.locs {
			t.Errorf("%s: %d locations, want %d", s.what, got, s.locs)
		}
	}
}

func TestNeedFull(t *testing.T) {
	t.Parallel()
	m := New(time.Now)
	check := func(what string, epoch uint64, want bool) {
		t.Helper()
		if got := m.NeedFull("w", epoch); got != want {
			t.Errorf("%s: NeedFull = %v, want %v", what, got, want)
		}
	}
	check("unknown worker", 1, true)
	m.Apply("w", Report{Epoch: 1, Sequence: 1, First: true})
	check("within a full report", 1, false)
	m.Apply("w", Report{Epoch: 1, Sequence: 2, Last: true})
	check("synced", 1, false)
	check("restarted", 2, true)
	m.Apply("w", Report{Epoch: 1, Sequence: 9})
	check("after a gap", 1, true)
	m.Apply("w", Report{Epoch: 1, Sequence: 10, First: true, Last: true})
	check("synced again", 1, false)
	m.Drop("w")
	check("dropped", 1, true)
}

func TestLocations(t *testing.T) {
	t.Parallel()
	m := New(time.Now)
	m.Apply("a", Report{Epoch: 1, Sequence: 1, First: true, Last: true, Cached: []uint64{cached(1, 3, true)}})
	m.Apply("b", Report{Epoch: 1, Sequence: 1, First: true, Last: true, Cached: []uint64{cached(1, 3, false), cached(1, 4, true)}})
	got := map[block.WorkerID]bool{}
	for _, l := range m.Locations(gone(1, 3)) {
		got[l.Worker] = l.Whole
	}
	if len(got) != 2 || !got["a"] || got["b"] {
		t.Errorf("locations of 1/3 = %v", got)
	}
	if l := m.Locations(gone(1, 4)); len(l) != 1 || l[0].Worker != "b" {
		t.Errorf("locations of 1/4 = %v", l)
	}
	if l := m.Locations(gone(2, 0)); l != nil {
		t.Errorf("locations of an unknown block = %v", l)
	}
	m.Drop("b")
	if l := m.Locations(gone(1, 4)); l != nil {
		t.Errorf("locations of a dropped worker = %v", l)
	}
}

// TestAskedInTurn asks a few workers at a time for what they have, and the
// others when those have told it or are silent.
func TestAskedInTurn(t *testing.T) {
	t.Parallel()
	var now time.Time
	m := New(func() time.Time { return now })
	worker := func(i int) block.WorkerID { return block.WorkerID(fmt.Sprint("w", i)) }
	asked := func() (n int) {
		for i := range 3 * fullsAtOnce {
			if m.NeedFull(worker(i), 1) {
				n++
			}
		}
		return n
	}
	for range 2 { // who was asked is asked again: the answer may have been lost
		if n := asked(); n != fullsAtOnce {
			t.Fatalf("%d workers are asked at once, want %d", n, fullsAtOnce)
		}
	}
	if m.Apply("other", Report{Epoch: 1, Sequence: 1}) {
		t.Error("a report that does not fit is answered with a question out of turn")
	}
	if m.Apply(worker(0), Report{Epoch: 1, Sequence: 1, First: true}) {
		t.Error("the first part of who was asked does not fit")
	}
	if n := asked(); n != fullsAtOnce-1 {
		t.Errorf("%d workers are asked beside one that tells, want %d", n, fullsAtOnce-1)
	}
	m.Apply(worker(0), Report{Epoch: 1, Sequence: 2, Last: true})
	m.Drop(worker(1)) // its turn is over too, but it is the first to be asked again
	if n := asked(); n != fullsAtOnce {
		t.Errorf("%d workers are asked once one has told, want %d", n, fullsAtOnce)
	}
	now = now.Add(fullPatience + 1)
	m.Apply(worker(1), Report{Epoch: 1, Sequence: 1, First: true})
	if !m.NeedFull("other", 1) {
		t.Error("workers that are silent keep others waiting")
	}
}
