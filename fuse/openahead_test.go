package fuse

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// aheadOf lists a directory of n files and opens places of it, and returns
// what was prepared, by place.
func aheadOf(t *testing.T, n int, places []int) (prepared []int) {
	t.Helper()
	c := newFake(time.Hour)
	name := func(i int) string { return fmt.Sprintf("/d/%05d", i) }
	for i := range n {
		c.put(name(i), 1, "v1")
	}
	f := newTestFsys(t, c)
	to := feeder{ctx: t.Context(), ch: make(chan chunk, n/dirChunk+2)}
	f.list("/d", &to)
	for _, i := range places {
		f.ahead.note(name(i))
	}
	for _, p := range c.prepared {
		var i int
		if _, err := fmt.Sscanf(p, "/d/%05d", &i); err != nil {
			t.Fatal(err)
		}
		prepared = append(prepared, i)
	}
	return prepared
}

func inOrder(from, end int) (all []int) {
	for i := from; i < end; i++ {
		all = append(all, i)
	}
	return all
}

// Who opens a directory in order, also with several readers that are a little
// out of order, gets each file prepared once, ahead of its open.
func TestOpenAheadInOrder(t *testing.T) {
	jittered := inOrder(0, 1000)
	for i := 0; i+8 <= len(jittered); i += 8 {
		rand.New(rand.NewPCG(uint64(i), 0)).Shuffle(8, func(a, b int) {
			jittered[i+a], jittered[i+b] = jittered[i+b], jittered[i+a]
		})
	}
	for name, places := range map[string][]int{"one reader": inOrder(0, 1000), "eight": jittered} {
		t.Run(name, func(t *testing.T) {
			got := aheadOf(t, 1000, places)
			if n := len(got); n < 950 {
				t.Fatalf("%d of 1000 were prepared", n)
			}
			if !slices.Equal(got, inOrder(got[0], got[0]+len(got))) {
				t.Error("not each once, or not in order: ", got)
			}
			if got[0] > 2*aheadSlack+aheadRun {
				t.Errorf("the first of them is the %dth", got[0])
			}
		})
	}
	// From the middle on, and no further ahead than the bound.
	places := inOrder(500, 520)
	if got := aheadOf(t, 10_000, places); got[0] < 504 || got[0] > 510 || got[len(got)-1] > 520+2*aheadMost {
		t.Error(got)
	}
}

// Files in any order are not followed by others, but for a few by chance.
func TestOpenAheadOfShuffled(t *testing.T) {
	for _, n := range []int{100, 1000} {
		sum := 0
		for seed := range uint64(20) {
			sum += len(aheadOf(t, n, rand.New(rand.NewPCG(seed, 0)).Perm(n)))
		}
		if share := float64(sum) / float64(20*n); share > 0.2 {
			t.Errorf("of %d shuffled files %.2f of the number were prepared", n, share)
		}
	}
}

// A directory whose listing is not known, and names that it lacks, are left
// alone, and the directories that are followed are bounded.
func TestOpenAheadIsBounded(t *testing.T) {
	c := newFake(time.Hour)
	f := newTestFsys(t, c)
	for i := range 3 * maxRuns {
		c.put(fmt.Sprintf("/%d/a", i), 1, "v1")
	}
	for range 10 {
		f.ahead.note("/0/a")
	}
	if n := len(f.ahead.runs); n != 0 || len(c.prepared) != 0 {
		t.Errorf("%d directories are followed, %v prepared", n, c.prepared)
	}
	for i := range 3 * maxRuns {
		to := feeder{ctx: t.Context(), ch: make(chan chunk, 2)}
		f.list(fmt.Sprintf("/%d", i), &to)
		f.ahead.note(fmt.Sprintf("/%d/a", i))
		f.ahead.note(fmt.Sprintf("/%d/b", i))
	}
	if n := len(f.ahead.runs); n != maxRuns {
		t.Errorf("%d directories are followed, want %d", n, maxRuns)
	}
}

// Through the kernel: what is opened in order after a listing is prepared.
func TestOpenAheadThroughKernel(t *testing.T) {
	c := newFake(time.Hour)
	c.local = t.TempDir()
	for i := range 40 {
		c.put(fmt.Sprintf("/d/%05d", i), 1000, "v1")
	}
	m := start(t, c, "")
	names, err := os.ReadDir(m.dir + "/d")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names[:10] {
		if b, err := os.ReadFile(m.dir + "/d/" + name.Name()); err != nil || len(b) != 1000 {
			t.Fatal(len(b), err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.prepared, "/d/00010") || slices.Contains(c.prepared, "/d/00000") {
		t.Error(c.prepared)
	}
}
