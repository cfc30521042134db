package main

import (
	"fmt"

	"github.com/dgraph-io/ristretto/v2"
)

// ristrettoCache is ristretto as a cache. It is waited for after every change,
// which is the best case.
type ristrettoCache struct {
	cache *ristretto.Cache[uint64, struct{}]
}

// newRistretto wants to know about how many objects fit.
func newRistretto(capacity, objects int64) (*ristrettoCache, error) {
	c, err := ristretto.NewCache(&ristretto.Config[uint64, struct{}]{
		NumCounters: max(10*objects, 100), MaxCost: capacity, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("start ristretto: %w", err)
	}
	return &ristrettoCache{c}, nil
}

func (c *ristrettoCache) access(r request) bool {
	if _, hit := c.cache.Get(uint64(r.key)); hit {
		return true
	}
	c.cache.Set(uint64(r.key), struct{}{}, r.size)
	c.cache.Wait()
	return false
}

func (c *ristrettoCache) close() { c.cache.Close() }
