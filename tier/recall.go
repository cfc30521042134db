package tier

import (
	"math"
	"sync"
	"time"

	"millrace/block"
)

const (
	// maxRecalls bounds the files that are recalled by name. Who is further
	// behind than that is to give back everything.
	maxRecalls = 1024
	// recallWindow is how long victims and refusals are counted together.
	recallWindow = 5 * time.Second
	// refusedShare says from which part of the victims on it is many that
	// others have open, refusedLeast of how many at least.
	refusedShare = 4
	refusedLeast = 16
	// idleInNeed is how long descriptors that nobody uses may be kept while
	// they are in the way of many victims.
	idleInNeed = 5 * time.Second
)

// AnyTime is Recalls.Idle while no room is needed.
const AnyTime time.Duration = math.MaxInt64

// Recalls says what those who were given descriptors are to give back, as far
// as they do not use them, and not to give to others of theirs without asking
// anew.
type Recalls struct {
	Position uint64         // to be asked from the next time
	Idle     time.Duration  // how long a descriptor that nobody uses may be kept; 0: give back all
	Files    []block.FileID // whose descriptors are wanted back whatever Idle says
}

// recalls is the list of what is wanted back. Positions in it go on over
// restarts of the store: the next run's begin behind the last one's.
type recalls struct {
	mu       sync.Mutex
	first    uint64 // what is asked from before this one has to give back all
	position uint64 // of the next file
	files    [maxRecalls]block.FileID

	window           time.Time // when the counts below began
	victims, refused [2]int    // in this window and in the one before
}

func (r *recalls) init(now time.Time) {
	r.position = uint64(now.UnixNano()) // nobody recalls as fast as time goes
	r.first = r.position
}

// file recalls the descriptors of a file: it was dropped, a page of it is in
// doubt, or its room is wanted.
func (r *recalls) file(id block.FileID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[r.position%maxRecalls] = id
	r.position++
}

// all recalls everything.
func (r *recalls) all() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position++
	r.first = r.position
}

// victim notes that a victim was given up, or, with refused, that somebody else
// has it open: its descriptors are recalled.
func (r *recalls) victim(id block.FileID, refused bool) {
	if refused {
		r.file(id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(time.Now())
	r.victims[0]++
	if refused {
		r.refused[0]++
	}
}

// turn begins another window when it is time. mu is held.
func (r *recalls) turn(now time.Time) {
	past := now.Sub(r.window)
	if past < recallWindow {
		return
	}
	r.window = now
	r.victims[1], r.refused[1] = r.victims[0], r.refused[0]
	r.victims[0], r.refused[0] = 0, 0
	if past >= 2*recallWindow {
		r.victims[1], r.refused[1] = 0, 0
	}
}

// since returns what was recalled from a position on.
func (r *recalls) since(position uint64, now time.Time) Recalls {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Recalls{Position: r.position, Idle: AnyTime}
	if position < r.first || position > r.position || r.position-position > maxRecalls {
		out.Idle = 0
		return out
	}
	for ; position < r.position; position++ {
		out.Files = append(out.Files, r.files[position%maxRecalls])
	}
	r.turn(now)
	victims, refused := r.victims[0]+r.victims[1], r.refused[0]+r.refused[1]
	if refused >= refusedLeast && refused > victims/refusedShare {
		out.Idle = idleInNeed
	}
	return out
}

// Recalls returns which of the descriptors that were handed out are wanted
// back, from a position on that it returned before; 0 asks for the first time.
// It is safe for concurrent use.
func (s *Store) Recalls(since uint64) Recalls { return s.recalls.since(since, time.Now()) }

// RecallAll wants all descriptors back that were handed out so far.
func (s *Store) RecallAll() { s.recalls.all() }
