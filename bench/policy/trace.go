package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
)

// request is one access to a whole object.
type request struct {
	key  uint32
	size int64 // the same in all requests for a key
}

// trace is a sequence of requests over objects of total bytes. The first warm
// ones fill the cache and do not count.
type trace struct {
	name     string
	what     string // one line for the reader
	requests []request
	warm     int
	objects  int
	total    int64
}

// unitSize is the size of an object where all are equal.
const unitSize = 1

// scale says how long the traces are.
type scale struct {
	objects int // distinct ones of a trace
	rounds  int // requests for each object, on average
}

// traces makes all traces. Equal seeds give equal traces.
func traces(seed uint64, s scale) []trace {
	random := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
	return []trace{
		zipf(random(1), s, 0.7),
		zipf(random(2), s, 0.9),
		zipf(random(3), s, 1.1),
		mixed(random(4), s),
		scans(random(5), s),
		epochs(random(6), s),
		loop(random(10), s),
		secondSet(random(7), s),
		loaded(random(9), s),
		drift(random(8), s),
	}
}

// ranks draws from n ranks, rank i with a weight of 1/(i+1)^alpha.
type ranks struct {
	r   *rand.Rand
	sum []float64
}

func newRanks(r *rand.Rand, n int, alpha float64) ranks {
	sum := make([]float64, n)
	var total float64
	for i := range sum {
		total += math.Pow(float64(i+1), -alpha)
		sum[i] = total
	}
	return ranks{r, sum}
}

func (z ranks) next() int {
	return sort.SearchFloat64s(z.sum, z.r.Float64()*z.sum[len(z.sum)-1])
}

func equal(name, what string, keys []uint32, warm, objects int) trace {
	requests := make([]request, len(keys))
	for i, k := range keys {
		requests[i] = request{k, unitSize}
	}
	return trace{name: name, what: what, requests: requests, warm: warm, objects: objects, total: int64(objects) * unitSize}
}

func zipf(r *rand.Rand, s scale, alpha float64) trace {
	z := newRanks(r, s.objects, alpha)
	keys := make([]uint32, s.objects*s.rounds)
	for i := range keys {
		keys[i] = uint32(z.next())
	}
	return equal(fmt.Sprintf("zipf-%.1f", alpha), "popularity by Zipf's law, equal sizes", keys, len(keys)/3, s.objects)
}

// mixed has sizes that do not depend on the popularity.
func mixed(r *rand.Rand, s scale) trace {
	t := zipf(r, s, 0.9)
	t.name, t.what = "mixed-sizes", "Zipf 0.9, sizes lognormal: median 256 KiB, sigma 1.5, at most 64 MiB"
	sizes := make([]int64, s.objects)
	t.total = 0
	for i := range sizes {
		size := math.Exp(math.Log(256<<10) + 1.5*r.NormFloat64())
		sizes[i] = int64(min(max(size, 4<<10), 64<<20))
		t.total += sizes[i]
	}
	for i := range t.requests {
		t.requests[i].size = sizes[t.requests[i].key]
	}
	return t
}

// scans has every other request in a hot set of a tenth of the data, and the
// others pass over all of it in order.
func scans(r *rand.Rand, s scale) trace {
	hot := s.objects / 10
	keys := make([]uint32, s.objects*s.rounds)
	next := 0
	for i := range keys {
		if r.IntN(2) == 0 {
			keys[i] = uint32(r.IntN(hot))
			continue
		}
		keys[i] = uint32(hot + next)
		next = (next + 1) % (s.objects - hot)
	}
	return equal("scan+hot", "half of the requests in a hot tenth of the data, half a scan over the rest", keys, len(keys)/3, s.objects)
}

// permutations appends n passes over the keys [first, end), each in an order
// of its own.
func permutations(r *rand.Rand, keys []uint32, first, end, n int) []uint32 {
	for range n {
		for _, i := range r.Perm(end - first) {
			keys = append(keys, uint32(first+i))
		}
	}
	return keys
}

func epochs(r *rand.Rand, s scale) trace {
	keys := permutations(r, nil, 0, s.objects, s.rounds)
	return equal("epochs", "training: every object once an epoch, each epoch in a new order", keys, s.objects, s.objects)
}

func loop(r *rand.Rand, s scale) trace {
	one := r.Perm(s.objects)
	var keys []uint32
	for range s.rounds {
		for _, i := range one {
			keys = append(keys, uint32(i))
		}
	}
	return equal("loop", "every object once an epoch, each epoch in the same order", keys, s.objects, s.objects)
}

// secondSet is training on three quarters of the data, then on the rest, whose
// first epoch warms the cache.
func secondSet(r *rand.Rand, s scale) trace {
	first := s.objects * 3 / 4
	keys := permutations(r, nil, 0, first, 10)
	warm := len(keys) + s.objects - first
	keys = permutations(r, keys, first, s.objects, 10)
	return equal("second-set", "10 epochs over three quarters of the data, then 10 over the rest, of which 9 count", keys, warm, s.objects)
}

// loaded is training on three quarters of the data, then one pass over the
// rest as a load job makes it, then one epoch over that.
func loaded(r *rand.Rand, s scale) trace {
	first := s.objects * 3 / 4
	keys := permutations(r, nil, 0, first, 10)
	for i := first; i < s.objects; i++ {
		keys = append(keys, uint32(i))
	}
	warm := len(keys)
	keys = permutations(r, keys, first, s.objects, 1)
	return equal("loaded-set", "10 epochs over three quarters of the data, the rest loaded once, one epoch over it, which counts", keys, warm, s.objects)
}

// drift changes which objects are the popular ones.
func drift(r *rand.Rand, s scale) trace {
	z := newRanks(r, s.objects, 0.9)
	keys := make([]uint32, s.objects*s.rounds)
	var who []int
	for i := range keys {
		if i%(2*s.objects) == 0 {
			who = r.Perm(s.objects)
		}
		keys[i] = uint32(who[z.next()])
	}
	return equal("drift", "Zipf 0.9, other objects popular after every two requests per object", keys, len(keys)/3, s.objects)
}
