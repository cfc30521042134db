package fsm

import (
	"errors"
	"fmt"

	"millrace/internal/errs"
)

// wholeFileShare is the part of the smallest worker directory up to which a
// file has one owner: an eighth.
const wholeFileShare = 8

// registerWorker enters a worker, or what is new of it. That it drains is the
// operator's word, which a restart of the worker does not take back.
func registerWorker(s *State, w writer, c *RegisterWorker) Result {
	old, known := s.Workers[c.Worker.ID]
	if !known && len(s.Workers) >= MaxWorkers {
		return Result{Err: errs.E(errs.NoSpace, "register worker", c.Worker.ID, fmt.Errorf("there are %d workers, which is the bound", MaxWorkers))}
	}
	next := c.Worker
	next.Draining = old.Draining
	s.Workers[next.ID] = next
	w.put(tableWorkers, next.ID, next)
	s.placeAnew(c.WholeFileLimit, !next.Draining && (!known || old.CapacityBytes != next.CapacityBytes))
	return Result{}
}

// drainWorker makes a worker own no blocks any more, or own its share again.
// The last one that owns blocks stays: reads would have nowhere to go.
func drainWorker(s *State, w writer, c *DrainWorker) Result {
	old, known := s.Workers[c.ID]
	switch {
	case !known:
		return Result{Err: errs.E(errs.NotFound, "drain worker", c.ID, errors.New("no worker of this ID is registered"))}
	case old.Draining == c.Draining:
		return Result{}
	case c.Draining && !s.ownsWithout(c.ID):
		return Result{Err: errs.E(errs.Invalid, "drain worker", c.ID, errors.New("no other worker is left to own blocks"))}
	}
	old.Draining = c.Draining
	s.Workers[c.ID] = old
	w.put(tableWorkers, c.ID, old)
	s.placeAnew(c.WholeFileLimit, true)
	return Result{}
}

// forgetWorker takes a worker off the registry. That it is gone was checked by
// who proposed it: one that is not registers again.
func forgetWorker(s *State, w writer, c *ForgetWorker) Result {
	old, known := s.Workers[c.ID]
	if !known {
		return Result{Err: errs.E(errs.NotFound, "forget worker", c.ID, errors.New("no worker of this ID is registered"))}
	}
	delete(s.Workers, c.ID)
	w.remove(tableWorkers, c.ID)
	s.placeAnew(c.WholeFileLimit, !old.Draining)
	return Result{}
}

// ownsWithout reports whether a worker other than id owns blocks.
func (s *State) ownsWithout(id string) bool {
	for other, w := range s.Workers {
		if other != id && !w.Draining && w.CapacityBytes > 0 {
			return true
		}
	}
	return false
}

// placeAnew begins a new placement epoch if the owners of blocks have changed,
// or change with the limit that the workers now have.
func (s *State) placeAnew(override int64, owners bool) {
	limit := WholeFileLimit(s.Workers, override)
	if owners || limit != s.WholeFileLimit {
		s.PlacementEpoch++
	}
	s.WholeFileLimit = limit
}

// WholeFileLimit returns the length up to which a file has one owner, among
// those workers: override, or an eighth of the smallest cache directory of
// those that own blocks.
func WholeFileLimit(workers map[string]Worker, override int64) int64 {
	if override > 0 {
		return override
	}
	var smallest int64
	for _, w := range workers {
		if !w.Draining && w.SmallestDirBytes > 0 && (smallest == 0 || w.SmallestDirBytes < smallest) {
			smallest = w.SmallestDirBytes
		}
	}
	return smallest / wholeFileShare
}
