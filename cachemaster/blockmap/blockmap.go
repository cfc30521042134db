// Package blockmap owns what a master knows of where blocks are cached. It is
// built from the workers' block reports, lives in memory, and is a hint: any
// answer may be false or missing, and every user must tolerate that.
//
// A worker's reports form a numbered stream (worker ID, start epoch,
// sequence). A new epoch or a gap makes the map ask for a full report; until
// that came, what it knows of the worker may be old.
//
// Invariants: reports of one worker are applied in their order or not at all;
// what is known of a worker is forgotten as a whole, at the first part of a
// full report or by Drop.
package blockmap

import (
	"encoding/binary"
	"sync"

	"github.com/cespare/xxhash/v2"

	"millrace/block"
)

// Delta is a change of one cached block of a worker.
type Delta struct {
	Key block.Key
	// Cached says that at least some bytes of the block are cached.
	Cached bool
	// Whole says that all of them are.
	Whole bool
}

// Report is one message of a worker's stream.
type Report struct {
	Epoch    uint64 // greater at each start of the worker
	Sequence uint64 // from 1 without gaps within an epoch
	// First opens a full report, Part goes on with it, Last ends it; a delta
	// is none of them.
	First, Part, Last bool
	Blocks            []Delta
}

// Location is one worker that may hold a block.
type Location struct {
	Worker block.WorkerID
	Whole  bool
}

// Map is the block map of one master. It is safe for concurrent use.
type Map struct {
	mu      sync.RWMutex
	workers map[block.WorkerID]*worker
}

// worker is what is known of one worker.
type worker struct {
	epoch  uint64
	next   uint64 // sequence number of the next report
	synced bool   // a full report has ended since the last gap
	blocks set
}

// New returns an empty map.
func New() *Map { return &Map{workers: make(map[block.WorkerID]*worker)} }

func hash(k block.Key) uint64 {
	var b [20]byte
	copy(b[:], k.File[:])
	binary.LittleEndian.PutUint32(b[16:], k.Index)
	return xxhash.Sum64(b[:])
}

// Apply applies a report, or drops it and returns that a full report is
// needed. A report that came before is ignored.
func (m *Map) Apply(id block.WorkerID, r Report) (needFull bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[id]
	if r.First {
		if w != nil && w.epoch == r.Epoch && r.Sequence < w.next {
			return !w.synced && !w.inFull()
		}
		w = &worker{epoch: r.Epoch, next: r.Sequence}
		m.workers[id] = w
	}
	switch {
	case w == nil, r.Epoch != w.epoch:
		return true
	case r.Sequence < w.next:
		return w.needFull() // a repetition
	case r.Sequence > w.next, w.needFull():
		w.next = 0
		w.synced = false
		return true
	}
	w.next = r.Sequence + 1
	for _, d := range r.Blocks {
		if d.Cached {
			w.blocks.put(hash(d.Key), d.Whole)
		} else {
			w.blocks.remove(hash(d.Key))
		}
	}
	if r.Last {
		w.synced = true
	}
	return false
}

// inFull reports whether a full report has begun and goes on.
func (w *worker) inFull() bool { return !w.synced && w.next != 0 }

// needFull reports whether nothing but the first part of a full report helps.
func (w *worker) needFull() bool { return !w.synced && !w.inFull() }

// NeedFull reports whether the worker, which started at that epoch, should
// send a full report.
func (m *Map) NeedFull(id block.WorkerID, epoch uint64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	w := m.workers[id]
	return w == nil || w.epoch != epoch || w.needFull()
}

// Drop forgets a worker.
func (m *Map) Drop(id block.WorkerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, id)
}

// Locations returns the workers that may hold the block, in no order.
func (m *Map) Locations(k block.Key) []Location {
	h := hash(k)
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []Location
	for id, w := range m.workers {
		if whole, ok := w.blocks.lookup(h); ok {
			found = append(found, Location{Worker: id, Whole: whole})
		}
	}
	return found
}

// Len returns the number of locations.
func (m *Map) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := 0
	for _, w := range m.workers {
		n += w.blocks.len()
	}
	return n
}
