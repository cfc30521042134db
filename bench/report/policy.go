package main

import (
	"math/rand/v2"

	"millrace/tier"
)

// epochHits returns the share of reads that a cache with room for half of the
// objects answers, when each epoch reads all of them in an order of its own:
// the worker's own policy, without its disks. The first epoch fills the cache
// and does not count. Each run has other orders.
func epochHits(run int) (ratio float64, ok bool) {
	const objects, epochs = 20_000, 20
	cache, err := tier.NewReplay(objects / 2)
	if err != nil {
		return 0, false
	}
	random := rand.New(rand.NewPCG(uint64(run+1), 0))
	hits := 0
	for epoch := range epochs {
		for _, key := range random.Perm(objects) {
			if cache.Access(uint64(key), 1) && epoch > 0 {
				hits++
			}
		}
	}
	return float64(hits) / (objects * (epochs - 1)), true
}
