package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// requestsFor returns a request for each letter; capitals are of size 2.
func requestsFor(letters string) []request {
	var all []request
	for _, c := range letters {
		size := int64(1)
		if c >= 'A' && c <= 'Z' {
			size = 2
		}
		all = append(all, request{uint32(c), size})
	}
	return all
}

// TestByHand compares the models with sequences computed by hand: x is a hit.
func TestByHand(t *testing.T) {
	for _, tc := range []struct {
		name     string
		make     func(capacity int64) policy
		capacity int64
		letters  string
		want     string
	}{
		{
			"lru: the last used stay", func(n int64) policy { return newLRU(n) }, 3,
			"abcadabcd",
			"---x-x---", // d takes b, b takes c, c takes d, d takes a
		},
		{
			"lru: sizes", func(n int64) policy { return newLRU(n) }, 3,
			"abcAcAa",
			"----xx-", // A takes a and b, a takes c
		},
		{
			// abc, a hit; d: the hand clears a, takes b; a stays; b: takes c;
			// c: takes d; a still there.
			"sieve", func(n int64) policy { return newSieve(n) }, 3,
			"abcadabca",
			"---x-x--x",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tc.make(tc.capacity)
			got := ""
			for _, r := range requestsFor(tc.letters) {
				if p.access(r) {
					got += "x"
				} else {
					got += "-"
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// TestS3FIFO: in a cache of 10 the small queue has one.
func TestS3FIFO(t *testing.T) {
	c := newS3FIFO(10)
	play := func(letters, want string) {
		t.Helper()
		got := ""
		for _, r := range requestsFor(letters) {
			if c.access(r) {
				got += "x"
			} else {
				got += "-"
			}
		}
		if got != want {
			t.Fatalf("%s: %s, want %s", letters, got, want)
		}
	}
	play("abcdefghij", "----------")
	play("aabb", "xxxx") // twice: they move to the main queue
	play("k", "-")       // a and b move, c goes and is a ghost
	play("c", "-")       // d goes, c comes into the main queue
	keys := func(q queue) (s string) {
		for _, e := range q.list {
			s += string(rune(e.key))
		}
		return s
	}
	if got := keys(c.small) + "|" + keys(c.main); got != "efghijk|abc" {
		t.Fatalf("queues %s", got)
	}
	if diff := cmp.Diff([]uint32{'c', 'd'}, c.ghost); diff != "" {
		t.Fatal(diff)
	}
	play("e", "x") // once is not enough
	play("lmnopqr", "-------")
	if got := keys(c.small) + "|" + keys(c.main); got != "lmnopqr|abc" {
		t.Fatalf("queues %s", got)
	}
	if diff := cmp.Diff([]uint32{'i', 'j', 'k'}, c.ghost); diff != "" {
		t.Fatal(diff)
	}
}

func TestOptimum(t *testing.T) {
	for _, tc := range []struct {
		letters        string
		capacity       int64
		warm, hits, of int
	}{
		{"abcabc", 2, 0, 2, 6},        // a and b, or either with c; LRU has none
		{"abcdabeabcde", 3, 0, 5, 12}, // Belady's own example, with 7 faults
		{"abcdabeabcde", 3, 5, 4, 7},
		{"aAaAa", 2, 0, 2, 5}, // A does not pay
		{"AA", 1, 0, 0, 2},    // too large
	} {
		tr := trace{requests: requestsFor(tc.letters), warm: tc.warm}
		if o := optimum(tr, tc.capacity); o.Hits != tc.hits || o.Requests != tc.of {
			t.Errorf("%s in %d: %d hits of %d, want %d of %d", tc.letters, tc.capacity, o.Hits, o.Requests, tc.hits, tc.of)
		}
	}
}

// TestNothingBeatsTheOptimum on any trace, and ours has what it is made for.
func TestNothingBeatsTheOptimum(t *testing.T) {
	for _, tr := range traces(7, scale{2000, 8}) {
		all, err := replayAll(t.Context(), tr)
		if err != nil {
			t.Fatal(err)
		}
		n := len(names())
		for row := range slices.Chunk(all, n) {
			best := row[n-1]
			for _, r := range row {
				if r.Requests != len(tr.requests)-tr.warm {
					t.Fatalf("%+v", r)
				}
				if tr.name != "mixed-sizes" && r.Hits > best.Hits {
					t.Errorf("%s: %s has %d hits at %d %%, the optimum %d", tr.name, r.Policy, r.Hits, r.Percent, best.Hits)
				}
				if tr.name == "epochs" && r.Policy == "millrace" && r.Percent == 50 && r.Ratio < 0.45 {
					t.Errorf("a ratio of %v on shuffled epochs over twice the cache", r.Ratio)
				}
			}
		}
	}
}

// TestSeed: a trace depends on its seed and on nothing else.
func TestSeed(t *testing.T) {
	s := scale{500, 3}
	a, b, other := traces(1, s), traces(1, s), traces(2, s)
	for i := range a {
		if !slices.Equal(a[i].requests, b[i].requests) {
			t.Errorf("%s: equal seeds, other requests", a[i].name)
		}
		if slices.Equal(a[i].requests, other[i].requests) {
			t.Errorf("%s: other seeds, equal requests", a[i].name)
		}
		var total int64
		seen := map[uint32]bool{}
		for _, r := range a[i].requests {
			if !seen[r.key] {
				total += r.size
			}
			seen[r.key] = true
		}
		if total > a[i].total {
			t.Errorf("%s: %d bytes are asked for, %d declared", a[i].name, total, a[i].total)
		}
	}
}
