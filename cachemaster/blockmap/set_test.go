package blockmap

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

func location(h uint64, isWhole bool) uint64 {
	if isWhole {
		return h | wholeBit
	}
	return h
}

// TestSetIsAMap holds a set against a map, through many merges.
func TestSetIsAMap(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var s set
	model := map[uint64]bool{}
	// Few hashes, so that most changes are of what is there, with the extreme
	// ones among them.
	hashes := []uint64{0, 2, ^uint64(0) &^ wholeBit}
	for range 5 * leastChanges {
		hashes = append(hashes, random.Uint64()&^wholeBit)
	}
	merges := 0
	for i := range 30 * leastChanges {
		h, isWhole := hashes[random.IntN(len(hashes))], random.IntN(2) == 0
		before := len(s.changes)
		if random.IntN(3) == 0 {
			s.remove(h)
			delete(model, h)
		} else {
			s.put(location(h, isWhole))
			model[h] = isWhole
		}
		if len(s.changes) < before {
			merges++
		}
		if s.len() != len(model) {
			t.Fatalf("seed %d, step %d: %d locations, want %d", seed, i, s.len(), len(model))
		}
		h = hashes[random.IntN(len(hashes))]
		got, ok := s.lookup(h)
		if want, there := model[h]; ok != there || got != want {
			t.Fatalf("seed %d, step %d: lookup = %v, %v, want %v, %v", seed, i, got, ok, want, there)
		}
	}
	for _, h := range hashes {
		got, ok := s.lookup(h)
		if want, there := model[h]; ok != there || got != want {
			t.Fatalf("seed %d, at the end: lookup = %v, %v, want %v, %v", seed, got, ok, want, there)
		}
	}
	if merges < 2 {
		t.Errorf("%d merges: the test shows nothing", merges)
	}
}

// TestSetIsSmall states the bound on the memory of a location.
func TestSetIsSmall(t *testing.T) {
	const locations, bound = 300_000, 16
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var s set
	for range locations {
		s.put(rand.Uint64() | wholeBit)
	}
	// As much as may gather before the next merge.
	for i := 0; len(s.changes) < len(s.run)/mergeShare-1; i++ {
		s.put(s.run[i] &^ wholeBit)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapAlloc-before.HeapAlloc) / float64(s.len())
	t.Logf("%.1f bytes a location", each)
	if each > bound {
		t.Errorf("%.1f bytes a location, want at most %d", each, bound)
	}
	runtime.KeepAlive(s)
}

// BenchmarkReport is one block of a worker's full report of 1,000,000.
func BenchmarkReport(b *testing.B) {
	hashes := make([]uint64, 1_000_000)
	for i := range hashes {
		hashes[i] = rand.Uint64()
	}
	slices.Sort(hashes)
	for b.Loop() {
		var s set
		for _, h := range hashes {
			s.put(h | wholeBit)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(hashes)), "ns/block")
}

// BenchmarkLookup is one question about a worker with 1,000,000 blocks.
func BenchmarkLookup(b *testing.B) {
	var s set
	hashes := make([]uint64, 1_000_000)
	for i := range hashes {
		hashes[i] = rand.Uint64()
		s.put(hashes[i] | wholeBit)
	}
	for i := 0; b.Loop(); i++ {
		s.lookup(hashes[i%len(hashes)])
	}
}
