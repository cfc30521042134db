package tier

import (
	"encoding/binary"

	"github.com/dgraph-io/ristretto/v2"
)

// ristrettoAdviser advises by TinyLFU admission and sampled LFU eviction, with
// bytes as the cost. ristretto's sets are asynchronous and may be lost.
type ristrettoAdviser struct {
	cache *ristretto.Cache[uint64, *unit]
}

// The counters of frequency: ristretto wants ten for each thing it keeps. They
// take three bytes each.
const (
	bytesPerUnit = 256 << 10 // a guess
	minCounters  = 1 << 12
	maxCounters  = 1 << 22
)

// newRistretto starts an adviser.
func newRistretto(bytes int64, victim func(*unit)) (adviser, error) {
	named := func(item *ristretto.Item[*unit]) {
		if item.Value != nil {
			victim(item.Value)
		}
	}
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *unit]{
		NumCounters: min(max(10*bytes/bytesPerUnit, minCounters), maxCounters),
		MaxCost:     max(bytes, 1), BufferItems: 64, IgnoreInternalCost: true,
		OnEvict: named, OnReject: named,
	})
	if err != nil {
		return nil, err
	}
	return ristrettoAdviser{cache}, nil
}

func (r ristrettoAdviser) admit(u *unit, bytes int64) bool { return r.cache.Set(u.key(), u, bytes) }
func (r ristrettoAdviser) hit(u *unit)                     { r.cache.Get(u.key()) }
func (r ristrettoAdviser) forget(u *unit)                  { r.cache.Del(u.key()) }
func (r ristrettoAdviser) resize(bytes int64)              { r.cache.UpdateMaxCost(max(bytes, 1)) }
func (r ristrettoAdviser) close()                          { r.cache.Close() }

// knows asks for the time to live, which counts as no access.
func (r ristrettoAdviser) knows(u *unit) bool {
	_, ok := r.cache.GetTTL(u.key())
	return ok
}

// key is a hash of what the unit is. No lock is needed.
func (u *unit) key() uint64 {
	k := binary.LittleEndian.Uint64(u.part.id[8:])
	if u.isBlock() {
		k ^= uint64(u.word+1) * 0x9e3779b97f4a7c15
	}
	return k
}
