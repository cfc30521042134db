package tier

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func someUnits(n int) []*unit {
	all := make([]*unit, n)
	for i := range all {
		f := testFile(fmt.Sprint(i), "1", page)
		p := &part{id: f.ID, text: f.Path + f.Tag, tagLen: 1, length: f.Length, blockPages: 256}
		p.unit.part = p
		all[i] = &p.unit
	}
	return all
}

// pacedOf returns a policy that took in n units one after the other.
func pacedOf(n int) (*paced, []*unit) {
	q, all := &paced{}, someUnits(n)
	for _, u := range all {
		q.add(u)
	}
	return q, all
}

// ask returns the places of the next n victims, which stay.
func ask(q *paced, all []*unit, n int) (places []int) {
	for range n {
		q.asked = 0 // as if it were given up
		places = append(places, slices.Index(all, q.victim()))
	}
	return places
}

// TestPacedOrder: of 64 units the last four are young.
func TestPacedOrder(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(q *paced, all []*unit)
		n    int
		want []int
	}{
		{name: "the young, in turn", n: 6, want: []int{60, 61, 62, 63, 60, 61}},
		{
			name: "a young one that was hit settles, and an old one goes",
			do:   func(q *paced, all []*unit) { q.touch(all[60]) },
			n:    3, want: []int{0, 61, 62},
		},
		{
			name: "no pinned ones",
			do:   func(_ *paced, all []*unit) { all[60].pins.Add(1); all[62].pins.Add(1) },
			n:    3, want: []int{61, 63, 61},
		},
		{
			name: "old ones when all young ones are pinned",
			do: func(_ *paced, all []*unit) {
				for _, u := range all[60:] {
					u.pins.Add(1)
				}
			},
			n: 3, want: []int{0, 1, 2},
		},
		{
			name: "the old that were hit stay",
			do: func(q *paced, all []*unit) {
				ask(q, all, 31+4) // four times 16 looks, over sixty: the last ones name 0
				q.touch(all[1])
				ask(q, all, 1) // notices the hit
				q.quiet = settled
			},
			n: 2, want: []int{2, 3},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q, all := pacedOf(64)
			if tc.do != nil {
				tc.do(q, all)
			}
			if diff := cmp.Diff(tc.want, ask(q, all, tc.n)); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// TestPacedAllPinned: there is no victim, and it is found in time.
func TestPacedAllPinned(t *testing.T) {
	q, all := pacedOf(40)
	for _, u := range all {
		u.pins.Add(1)
	}
	if u := q.victim(); u != nil {
		t.Fatal("a pinned unit is a victim")
	}
	if u := (&paced{}).victim(); u != nil {
		t.Fatal("a victim of none")
	}
}

// TestPacedRefused: who asks again, as the victim that was named stays, is
// sent to the other queue and back, so that one whose files are all open does
// not hide the other one.
func TestPacedRefused(t *testing.T) {
	for _, tc := range []struct {
		name  string
		quiet int // victims without a hit on the old so far
		want  []int
	}{
		{name: "the young first", want: []int{60, 0, 61, 1, 62, 2}},
		{name: "the old first", quiet: settled, want: []int{0, 60, 1, 61, 2, 62}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q, all := pacedOf(64)
			for _, u := range all {
				u.state.And(^unitVisited)
			}
			q.quiet = tc.quiet
			var got []int
			for range tc.want {
				got = append(got, slices.Index(all, q.victim()))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Fatal(diff)
			}
			q.remove(all[63])
			if q.asked != 0 {
				t.Fatal("a victim that went counts as refused")
			}
		})
	}
}

// TestPacedFew: of two units, the old one that was hit outlives the young one
// that was not.
func TestPacedFew(t *testing.T) {
	q, all := pacedOf(2)
	if q.touch(all[0]); q.victim() != all[1] {
		t.Fatal("the one that was hit goes first")
	}
}

// TestPacedWaits: as long as what was looked at is hit again, the old ones are
// not looked at, and a hit on what was not says nothing.
func TestPacedWaits(t *testing.T) {
	const n = 4 * settled
	q, all := pacedOf(n)
	for _, u := range all[:8] { // looked at
		u.state.And(^unitVisited)
	}
	next := q.old.tail
	for i := range 8 * (settled - 1) {
		if i%(settled-1) == settled-2 {
			q.touch(all[i/(settled-1)])
		}
		q.asked = 0 // as if it were given up
		q.victim()
		q.touch(all[100]) // has its bit
	}
	if q.old.tail != next {
		t.Fatal("the old were looked at, although they were hit")
	}
	for range settled + 1 {
		q.asked = 0 // as if it were given up
		q.victim()
	}
	if q.old.tail == next {
		t.Fatal("the old were not looked at, although none was hit")
	}
}

// TestPacedQueues: whatever is done, every unit that is in is in one queue,
// and the young are no more than their share.
func TestPacedQueues(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	all := someUnits(300)
	q := &paced{}
	in := map[*unit]bool{}
	for range 20_000 {
		u := all[r.IntN(len(all))]
		switch r.IntN(6) {
		case 0, 1:
			if in[u] {
				q.add(u)
				break
			}
			q.add(u)
			in[u] = true
			if q.young.n > max(1, len(in)/youngShare) {
				t.Fatalf("%d of %d are young", q.young.n, len(in))
			}
		case 2:
			q.touch(u)
		case 3:
			q.remove(u)
			delete(in, u)
		case 4:
			if v := q.victim(); v == nil != (len(in) == 0) || v != nil && !in[v] {
				t.Fatal("the victim is not one that is in")
			}
		case 5:
			u.pins.Add(1)
			if q.victim() == u {
				t.Fatal("a pinned unit is a victim")
			}
			u.pins.Add(-1)
		}
	}
	got := q.units()
	if len(got) != len(in) || q.young.n+q.old.n != len(in) {
		t.Fatalf("%d units in queues of %d and %d, want %d", len(got), q.young.n, q.old.n, len(in))
	}
	for _, u := range got {
		if !in[u] {
			t.Fatal("a unit that is not in")
		}
		delete(in, u)
	}
}

// TestPacedAllocatesNothing per access or victim.
func TestPacedAllocatesNothing(t *testing.T) {
	q, all := pacedOf(200)
	if n := testing.AllocsPerRun(1000, func() {
		q.touch(all[7])
		u := q.victim()
		q.remove(u)
		q.add(u)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// epochsOf replays n shuffled epochs over the keys [first, first+objects) and
// returns the hit ratio of the last one.
func epochsOf(t *testing.T, r *Replay, order *rand.Rand, first, objects, n int) (ratio float64) {
	t.Helper()
	for range n {
		hits := 0
		for _, i := range order.Perm(objects) {
			if r.Access(uint64(first+i), 1) {
				hits++
			}
		}
		if r.used > r.capacity || r.used != int64(len(r.parts)) {
			t.Fatalf("%d of %d kept, %d objects", r.used, r.capacity, len(r.parts))
		}
		ratio = float64(hits) / float64(objects)
	}
	return ratio
}

// TestReplayEpochs is what the policy is for: training on data twice the
// cache, 0.5 being the most that is possible, and then a load and an epoch of
// other data that the cache could hold.
func TestReplayEpochs(t *testing.T) {
	r, err := NewReplay(2000)
	if err != nil {
		t.Fatal(err)
	}
	order := rand.New(rand.NewPCG(3, 4))
	if got := epochsOf(t, r, order, 0, 4000, 8); got < 0.45 {
		t.Fatalf("hit ratio %v of shuffled epochs over twice the cache", got)
	}
	if got := epochsOf(t, r, order, 4000, 1500, 2); got < 0.9 {
		t.Fatalf("hit ratio %v of the second epoch over new data that fits", got)
	}
	for range 2 {
		if r.Access(1<<40, 2001) {
			t.Fatal("an object over the capacity was kept")
		}
	}
	if _, err := NewReplay(0); err == nil {
		t.Fatal("no capacity is no error")
	}
}

// TestReplayRestarts: a run that takes over the queues' order and the hits, as
// a directory's does, has the hits of one that goes on.
func TestReplayRestarts(t *testing.T) {
	r, err := NewReplay(2000)
	if err != nil {
		t.Fatal(err)
	}
	order := rand.New(rand.NewPCG(3, 4))
	ratio := 0.0
	for range 8 {
		next := &paced{}
		for _, u := range r.queue.units() {
			u.state.And(unitVisited)
			u.prev, u.next = nil, nil
			next.add(u)
		}
		r.queue = next
		ratio = epochsOf(t, r, order, 0, 4000, 1)
	}
	if ratio < 0.45 {
		t.Fatalf("hit ratio %v of shuffled epochs with a restart before each", ratio)
	}
}

// TestPacedEvidence: only a hit that sets an old unit's bit anew says that the
// pace is fast enough.
func TestPacedEvidence(t *testing.T) {
	q, all := pacedOf(64)
	for _, u := range []*unit{all[63], all[0]} { // young; settled with its bit
		if q.touch(u); q.fresh.Load() {
			t.Fatal("a hit says what it cannot say")
		}
	}
	all[0].state.And(^unitVisited)
	if q.touch(all[0]); !q.fresh.Load() {
		t.Fatal("a hit on an old unit whose bit was cleared is not noticed")
	}
}
