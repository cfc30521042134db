package tier

import (
	"cmp"
	"fmt"
	"slices"

	"millrace/internal/errs"
)

// memoryShare bounds what one part may take of a directory in memory, and of
// any directory that it is promoted into: one part of this many.
const memoryShare = 8

// place chooses the directory of a file that nothing is kept of, and charges
// it: the fastest one that has room for the whole file; if none has, the one
// that loses least by evicting for it.
func (r *Reservation) place() error {
	var first error
	for _, d := range r.s.withRoom(r.p.length) {
		if !d.fitsShare(r.p) {
			continue
		}
		if err := r.chargeTo(d, d.takeFree); err == nil {
			return nil
		}
	}
	for _, d := range r.s.forEviction(r.p.length) {
		err := r.chargeTo(d, d.makeRoom)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("%w: no directory takes a file of %d bytes", errs.NoSpace, r.p.length)
	}
	return first
}

// candidate is a directory as it stands while one is chosen.
type candidate struct {
	d           *dir
	rank        int
	free, limit int64
	failed      bool
}

// share is the part of the directory that is free.
func (c candidate) share() float64 { return float64(c.free) / float64(max(c.limit, 1)) }

// candidates returns the directories that may take a file of length bytes.
// One in memory takes no more than a part of itself, as long as there is
// another medium: a few large files would push out all the small ones.
func (s *Store) candidates(length int64) []candidate {
	dirs := s.current()
	mixed := dirs[len(dirs)-1].cfg.Medium != Memory
	var all []candidate
	for _, d := range dirs {
		st := d.ledger.state()
		if mixed && d.cfg.Medium == Memory && length > st.limit/memoryShare {
			continue
		}
		all = append(all, candidate{
			d: d, rank: d.cfg.Medium.rank(), free: st.limit - st.used, limit: st.limit,
			failed: d.failure() != nil,
		})
	}
	return all
}

// withRoom returns the directories in which a file fits beside all that they
// have, fastest first, those of one tier by their free share.
func (s *Store) withRoom(length int64) []*dir {
	all := slices.DeleteFunc(s.candidates(length), func(c candidate) bool { return c.failed || c.free < length })
	return sorted(all, fastestFirst)
}

// faster returns the directories of faster tiers that may take a file from
// d, the fastest first. None takes a file over its share, be it in memory or
// not.
func (s *Store) faster(d *dir, length int64) []*dir {
	all := slices.DeleteFunc(s.candidates(length), func(c candidate) bool {
		return c.failed || c.rank >= d.cfg.Medium.rank() || length > c.limit/memoryShare
	})
	return sorted(all, fastestFirst)
}

// slower returns the directories of slower tiers in which a file of d fits
// beside all that they have, the fastest first.
func (s *Store) slower(d *dir, length int64) []*dir {
	return slices.DeleteFunc(s.withRoom(length), func(o *dir) bool { return o.cfg.Medium.rank() <= d.cfg.Medium.rank() })
}

// forEviction returns the directories that may evict for a file: those that
// can hold it whole come first, of these the slowest, since what it has is
// missed least, those of one tier by their free share.
func (s *Store) forEviction(length int64) []*dir {
	class := func(c candidate) int {
		switch {
		case c.failed:
			return 2 // asked last, for the reason why nothing is kept
		case c.limit < length:
			return 1
		}
		return 0
	}
	return sorted(s.candidates(length), func(a, b candidate) int {
		return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(b.rank, a.rank), cmp.Compare(b.share(), a.share()))
	})
}

// fastestFirst orders by tier, and within one by the free share.
func fastestFirst(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.share(), a.share()))
}

func sorted(all []candidate, order func(a, b candidate) int) []*dir {
	slices.SortStableFunc(all, order)
	dirs := make([]*dir, len(all))
	for i, c := range all {
		dirs[i] = c.d
	}
	return dirs
}

// takeFree charges bytes and inodes if they fit without evicting anything.
func (d *dir) takeFree(bytes, inodes int64) error {
	if d.index.left() >= d.index.chunk/2 && d.ledger.reserve(bytes, inodes) {
		return nil
	}
	if st := d.ledger.state(); st.used+bytes+d.index.chunk > st.limit {
		return fmt.Errorf("%w: the directory is full", errs.NoSpace)
	}
	if err := d.ensureLog(); err != nil {
		return err
	}
	if !d.ledger.reserve(bytes, inodes) {
		return fmt.Errorf("%w: the directory is full", errs.NoSpace)
	}
	return nil
}
