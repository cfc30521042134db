package tier

import (
	"encoding/binary"
	"fmt"

	"millrace/internal/errs"
)

// Replay is the order of eviction of a directory without the directory: it
// keeps objects that are nothing but a key and a length, so that a trace of
// accesses can be replayed against the code that decides in a Store. Objects
// are evicted whole. It is for one goroutine.
type Replay struct {
	capacity, used int64
	queue          policy
	parts          map[uint64]*part
}

// NewReplay returns one that keeps capacity bytes. The error is Invalid if
// capacity is not positive.
func NewReplay(capacity int64) (*Replay, error) {
	if capacity <= 0 {
		return nil, errs.E(errs.Invalid, "replay", "", fmt.Errorf("a capacity of %d bytes", capacity))
	}
	return &Replay{capacity: capacity, queue: &paced{}, parts: map[uint64]*part{}}, nil
}

// Access reads the object key of length bytes, and keeps it if it is absent
// and not over the capacity. It reports whether it was there.
func (r *Replay) Access(key uint64, length int64) (hit bool) {
	if p := r.parts[key]; p != nil {
		r.queue.touch(&p.unit)
		return true
	}
	if length > r.capacity {
		return false
	}
	for r.used+length > r.capacity {
		p := r.queue.victim().part // nothing is pinned
		r.queue.remove(&p.unit)
		r.used -= p.length
		delete(r.parts, binary.LittleEndian.Uint64(p.id[8:]))
	}
	p := &part{length: length}
	p.unit.part = p
	binary.LittleEndian.PutUint64(p.id[8:], key)
	r.queue.add(&p.unit)
	r.used += length
	r.parts[key] = p
	return false
}
