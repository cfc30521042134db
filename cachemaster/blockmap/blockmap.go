// Package blockmap owns what a master knows of where blocks are cached. It is
// built from the workers' block reports, lives in memory, and is a hint: any
// answer may be false or missing, and every user must tolerate that.
//
// A worker's reports form a numbered stream (worker ID, start epoch,
// sequence). A new epoch or a gap makes the map ask for a full report; until
// that came, what it knows of the worker may be old. It asks a few workers at
// a time: those that all have to tell everything, as after a restart of the
// master, do so one after the other.
//
// Invariants: reports of one worker are applied in their order or not at all;
// what is known of a worker is forgotten as a whole, at the first part of a
// full report or by Drop.
package blockmap

import (
	"sync"
	"time"

	"millrace/block"
)

// Report is one message of a worker's stream.
type Report struct {
	Epoch    uint64 // greater at each start of the worker
	Sequence uint64 // from 1 without gaps within an epoch
	// First opens a full report, Part goes on with it, Last ends it; a delta
	// is none of them.
	First, Part, Last bool
	// Cached and Gone are blocks by their location hash, see
	// block.Key.LocationHash. The lowest bit of those that are cached says that
	// all bytes of the block are. In a full report they should ascend.
	Cached, Gone []uint64
}

const (
	// fullsAtOnce is how many workers are asked for a full report at a time.
	fullsAtOnce = 8
	// fullPatience is how long one that was asked may be silent before another
	// one is asked in its place.
	fullPatience = 10 * time.Second
)

// Location is one worker that may hold a block.
type Location struct {
	Worker block.WorkerID
	Whole  bool
}

// Map is the block map of one master. It is safe for concurrent use.
type Map struct {
	now func() time.Time

	mu      sync.RWMutex
	workers map[block.WorkerID]*worker
	asked   map[block.WorkerID]time.Time // for a full report; when it was or last went on
}

// worker is what is known of one worker.
type worker struct {
	epoch  uint64
	next   uint64 // sequence number of the next report
	synced bool   // a full report has ended since the last gap
	blocks set
}

// New returns an empty map. now tells the time.
func New(now func() time.Time) *Map {
	return &Map{now: now, workers: make(map[block.WorkerID]*worker), asked: make(map[block.WorkerID]time.Time)}
}

// Apply applies a report, or drops it: needFull says that a full report is
// wanted, now. A report that came before is ignored.
func (m *Map) Apply(id block.WorkerID, r Report) (needFull bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[id]
	if r.First && (w == nil || w.epoch != r.Epoch || r.Sequence >= w.next) {
		w = &worker{epoch: r.Epoch, next: r.Sequence}
		m.workers[id] = w
	}
	switch {
	case w == nil, r.Epoch != w.epoch:
		return m.ask(id)
	case r.Sequence < w.next: // a repetition
		return w.needFull() && m.ask(id)
	case r.Sequence > w.next, w.needFull():
		w.next = 0
		w.synced = false
		return m.ask(id)
	}
	w.next = r.Sequence + 1
	for _, l := range r.Cached {
		w.blocks.put(l)
	}
	for _, h := range r.Gone {
		w.blocks.remove(h)
	}
	switch {
	case r.Last:
		w.synced = true
		w.blocks.settle()
		delete(m.asked, id)
	case w.inFull():
		m.asked[id] = m.now()
	}
	return false
}

// ask reports whether the worker may be asked for a full report now, and notes
// that it is. The lock is held.
func (m *Map) ask(id block.WorkerID) bool {
	now := m.now()
	for other, at := range m.asked {
		if now.Sub(at) > fullPatience {
			delete(m.asked, other)
		}
	}
	if _, ok := m.asked[id]; !ok && len(m.asked) >= fullsAtOnce {
		return false
	}
	m.asked[id] = now
	return true
}

// inFull reports whether a full report has begun and goes on.
func (w *worker) inFull() bool { return !w.synced && w.next != 0 }

// needFull reports whether nothing but the first part of a full report helps.
func (w *worker) needFull() bool { return !w.synced && !w.inFull() }

// NeedFull reports whether the worker, which started at that epoch, should
// send a full report now.
func (m *Map) NeedFull(id block.WorkerID, epoch uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[id]
	return (w == nil || w.epoch != epoch || w.needFull()) && m.ask(id)
}

// Drop forgets a worker.
func (m *Map) Drop(id block.WorkerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, id)
	delete(m.asked, id)
}

// Locations returns the workers that may hold the block of that location hash,
// in no order.
func (m *Map) Locations(hash uint64) []Location {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []Location
	for id, w := range m.workers {
		if whole, ok := w.blocks.lookup(hash); ok {
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
