package blockmap

import "slices"

// set holds the locations of one worker, each as a hash of the block's key and
// whether the block is whole there. Two keys with one hash are one location,
// which makes a hint false once in billions.
//
// Most locations are in a sorted run, eight bytes each; changes gather in a
// map beside it, which is merged into a new run when it has grown to a part of
// it. So a location takes 16 bytes at most, also while a run is merged.
type set struct {
	run     []uint64          // ascending; the lowest bit says that the block is whole
	changes map[uint64]change // by hash; each overrules the run
	count   int
}

// change is what became of a location since the run was made.
type change uint8

const (
	removed change = iota
	partial
	whole
)

const (
	wholeBit = 1 // of a location in a run; hashes have it clear
	// leastChanges are gathered before the first merge, and after it as many
	// as the run is long, divided by mergeShare.
	leastChanges = 1024
	mergeShare   = 16
)

// put enters a location: a hash, with wholeBit if the block is whole. Those of
// a full report come in ascending order and make the run as they come.
func (s *set) put(location uint64) {
	if len(s.changes) == 0 && (len(s.run) == 0 || location&^wholeBit > s.run[len(s.run)-1]) {
		s.run = append(s.run, location)
		s.count++
		return
	}
	c := partial
	if location&wholeBit != 0 {
		c = whole
	}
	s.change(location&^wholeBit, c)
}

// settle gives back the room that a run which has grown has left.
func (s *set) settle() {
	if cap(s.run)-len(s.run) > len(s.run)/mergeShare {
		s.run = append(make([]uint64, 0, len(s.run)), s.run...)
	}
}

func (s *set) remove(hash uint64) { s.change(hash&^wholeBit, removed) }

func (s *set) change(h uint64, to change) {
	from := s.state(h)
	if from == to {
		return
	}
	if s.changes == nil {
		s.changes = make(map[uint64]change)
	}
	s.changes[h] = to
	switch {
	case from == removed:
		s.count++
	case to == removed:
		s.count--
	}
	if len(s.changes) >= max(leastChanges, len(s.run)/mergeShare) {
		s.merge()
	}
}

// state returns what is known of a hash; removed if nothing is.
func (s *set) state(h uint64) change {
	if c, ok := s.changes[h]; ok {
		return c
	}
	i, _ := slices.BinarySearch(s.run, h)
	switch {
	case i == len(s.run) || s.run[i]&^wholeBit != h:
		return removed
	case s.run[i]&wholeBit != 0:
		return whole
	default:
		return partial
	}
}

// lookup reports whether the location is known, and whole.
func (s *set) lookup(h uint64) (isWhole, ok bool) {
	c := s.state(h &^ wholeBit)
	return c == whole, c != removed
}

func (s *set) len() int { return s.count }

// merge makes a new run of the old one and the changes.
func (s *set) merge() {
	changed := make([]uint64, 0, len(s.changes))
	for h := range s.changes {
		changed = append(changed, h)
	}
	slices.Sort(changed)
	run := make([]uint64, 0, s.count)
	old := s.run
	for _, h := range changed {
		i, _ := slices.BinarySearch(old, h)
		run = append(run, old[:i]...)
		if old = old[i:]; len(old) > 0 && old[0]&^wholeBit == h {
			old = old[1:]
		}
		switch s.changes[h] {
		case removed:
		case partial:
			run = append(run, h)
		case whole:
			run = append(run, h|wholeBit)
		}
	}
	run = append(run, old...)
	s.run, s.changes = run, nil
}
