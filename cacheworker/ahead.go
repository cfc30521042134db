package cacheworker

import (
	"sync"

	"millrace/block"
)

// readAhead decides how far ahead of the readers of one file to fetch. Only
// sequential readers are fetched for; the window of each doubles up to a
// bound. It is shared by all who have the file open: one reader's requests
// may come over several connections.
type readAhead struct {
	limit int64 // bytes of one window; 0 switches it off
	users int   // open files; guarded by the lock of aheads

	mu      sync.Mutex
	streams []stream // as many as there seem to be readers
	clock   uint64
}

// stream is where one reader is.
type stream struct {
	used   uint64 // the clock of its last read
	next   int64  // where a sequential reader would go on
	streak int    // reads in sequence
	window int64  // bytes ahead of the reader
	ahead  int64  // what lies before was asked for
}

const (
	// aheadStreams bounds the readers of one file that are told apart.
	aheadStreams = 16
	// A kernel that reads ahead itself sends a few large requests at once,
	// which arrive out of order: such a read is in sequence if it begins at
	// most aheadSlack of its own lengths from where it was expected. Small
	// reads come from programs that read here and there, or one by one.
	aheadSlack = 4
	aheadLarge = 64 << 10
	// aheadStreak is how many reads in sequence make a sequential reader.
	aheadStreak = 2
	// aheadShare is the part of the smallest cache directory that is fetched
	// ahead of one reader.
	aheadShare = 8
)

// note tells of a read of e in a file of the given length, and returns what
// to fetch ahead now; often nothing, for it is asked for in large pieces.
func (r *readAhead) note(e block.Extent, length int64) block.Extent {
	nothing := block.Extent{Offset: e.End()}
	if r.limit == 0 {
		return nothing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.streamOf(e)
	r.clock++
	s.used = r.clock
	s.next = max(s.next, e.End())
	s.streak++
	if s.streak < aheadStreak {
		return nothing
	}
	start := max(s.ahead, s.next)
	if s.window > 0 && start-s.next > s.window/2 {
		return nothing // enough is under way
	}
	s.window = min(max(2*s.window, e.Length, block.PageSize), r.limit)
	// Whole pages: the part of a page that is left would be fetched anyway.
	end := (min(s.next+s.window, length) + block.PageSize - 1) / block.PageSize * block.PageSize
	if end = min(end, length); end <= start {
		return nothing
	}
	s.ahead = end
	return block.Extent{Offset: start, Length: end - start}
}

// streamOf returns the stream that e goes on with, or a new one that begins
// with it, in place of the one that is longest unused if there are many.
func (r *readAhead) streamOf(e block.Extent) *stream {
	slack := e.Length
	if slack >= aheadLarge {
		slack *= aheadSlack
	}
	var near, oldest *stream
	for i := range r.streams {
		s := &r.streams[i]
		if s.next == e.Offset {
			return s
		}
		if e.Offset >= s.next-slack && e.Offset <= s.next+slack {
			near = s
		}
		if oldest == nil || s.used < oldest.used {
			oldest = s
		}
	}
	if near != nil {
		return near
	}
	if len(r.streams) < aheadStreams {
		r.streams = append(r.streams, stream{})
		oldest = &r.streams[len(r.streams)-1]
	}
	*oldest = stream{next: e.End()}
	if e.Offset > 0 {
		oldest.streak = -1 // its first read is in no sequence
	}
	return oldest
}

// aheads are the readAheads of all open files.
type aheads struct {
	limit int64

	mu    sync.Mutex
	files map[block.FileID]*readAhead
}

func newAheads(limit int64) *aheads {
	return &aheads{limit: limit, files: make(map[block.FileID]*readAhead)}
}

// enter returns the file's readAhead; leave must follow.
func (a *aheads) enter(id block.FileID) *readAhead {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.files[id]
	if r == nil {
		r = &readAhead{limit: a.limit}
		a.files[id] = r
	}
	r.users++
	return r
}

func (a *aheads) leave(id block.FileID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.files[id]; r != nil {
		if r.users--; r.users == 0 {
			delete(a.files, id)
		}
	}
}
