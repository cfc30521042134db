package block

import (
	"cmp"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// WorkerID names a worker for as long as its data directory lives. It is kept
// there, and is a ULID in text.
type WorkerID string

// PlacedWorker is a worker that may own blocks.
type PlacedWorker struct {
	ID WorkerID
	// Weight is the worker's share of the blocks relative to the others':
	// its cache capacity in bytes. A weight of 0 owns nothing.
	Weight uint64
}

// Placement is one epoch of the list of workers that own blocks. It is
// immutable; a change of members is a new epoch.
type Placement struct {
	Epoch uint64
	// WholeFileLimit is the length in bytes up to which one worker owns all
	// blocks of a file; longer files are placed block by block.
	WholeFileLimit int64
	Workers        []PlacedWorker
}

// PlacesWhole reports whether one worker owns all of a file of that length.
func (p Placement) PlacesWhole(length int64) bool { return length <= p.WholeFileLimit }

// WholeFile is the block index that stands for all blocks of a file that is
// placed whole.
const WholeFile = math.MaxUint32

// Unit returns what a block of a file of the given length is placed by: itself,
// or the whole file.
func (p Placement) Unit(k Key, length int64) Key {
	if p.PlacesWhole(length) {
		k.Index = WholeFile
	}
	return k
}

// Owners returns the n best workers for a block of a file of the given
// length, best first; fewer if there are fewer. It depends on the placement,
// the file ID and, for files above WholeFileLimit, the block index alone.
//
// The score of a worker is that of weighted rendezvous hashing:
// -weight / ln(u), where u = (top + 0.5) / 2^52 lies in (0, 1) and top is the
// upper 52 bits of mix64(xxh64(file ID, u32 index) xor xxh64(worker ID)). Both
// xxh64 have seed 0; the index is little-endian, and 0xFFFFFFFF for a file
// that is placed whole. Equal scores are ordered by worker ID.
// Source: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005.
func (p Placement) Owners(k Key, length int64, n int) []WorkerID {
	keyHash := p.Unit(k, length).hash()

	type scored struct {
		id    WorkerID
		score float64
	}
	all := make([]scored, 0, len(p.Workers))
	for _, w := range p.Workers {
		if w.Weight == 0 {
			continue
		}
		h := mix64(keyHash ^ xxhash.Sum64String(string(w.ID)))
		u := (float64(h>>12) + 0.5) / (1 << 52) // exact: 52 bits and a half fit a float64
		all = append(all, scored{w.ID, -float64(w.Weight) / math.Log(u)})
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.id, b.id))
	})
	all = all[:max(0, min(n, len(all)))]
	ids := make([]WorkerID, 0, len(all))
	for _, s := range all {
		ids = append(ids, s.id)
	}
	return ids
}

// mix64 is the finalizer of splitmix64 (Steele, Lea, Flood 2014).
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
