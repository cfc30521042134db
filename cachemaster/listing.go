package cachemaster

import (
	"context"
	"errors"
	"sync"
	"time"

	"millrace/ufs"
)

// listing is one pass over a directory of an under-store that several callers
// may follow. It holds what came so far; once that is more than its bound it
// admits no further callers, forgets what all of them have read, and goes on
// no faster than the slowest of them. It ends early when no caller wants more.
type listing struct {
	bound   int
	expires time.Time // of the answer, should it be kept
	absence time.Time // and of what it lacks

	mu      sync.Mutex
	items   []ufs.Info // from number base on
	base    int
	readers map[*listingReader]struct{}
	long    bool // more than bound
	done    bool
	err     error
	waiting int
	wake    chan struct{} // closed and replaced when something changed
	cancel  context.CancelFunc
}

// listingReader is one caller that follows a listing.
type listingReader struct {
	l    *listing
	pos  int
	most int // items that it wants; 0: all
}

// errEnough ends a listing of which nobody wants more.
var errEnough = errors.New("nobody wants more of the listing")

func newListing(bound int, expires, absence time.Time) *listing {
	return &listing{bound: bound, expires: expires, absence: absence, readers: make(map[*listingReader]struct{}), wake: make(chan struct{})}
}

// join admits a caller that wants so many items, or all for 0; false if it
// comes too late to see all.
func (l *listing) join(most int) (*listingReader, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.long || (l.done && l.err != nil) {
		return nil, false
	}
	if l.cancel != nil && len(l.readers) == 0 && !l.done {
		return nil, false // its last caller left: it is being canceled
	}
	r := &listingReader{l: l, most: most}
	l.readers[r] = struct{}{}
	return r, true
}

// leave ends a caller's interest; without any, the pass ends.
func (r *listingReader) leave() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	delete(r.l.readers, r)
	if len(r.l.readers) == 0 && r.l.cancel != nil {
		r.l.cancel()
	}
	r.l.changed()
}

// changed wakes who waits. The lock is held.
func (l *listing) changed() {
	if l.waiting > 0 {
		close(l.wake)
		l.wake = make(chan struct{})
		l.waiting = 0
	}
}

// wait releases the lock until something changed.
func (l *listing) wait(ctx context.Context) error {
	l.waiting++
	wake := l.wake
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// next returns what came since the last call, waiting for it; nothing at the
// end.
func (r *listingReader) next(ctx context.Context) ([]ufs.Info, error) {
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if n := l.base + len(l.items) - r.pos; n > 0 {
			got := l.items[r.pos-l.base : len(l.items) : len(l.items)]
			r.pos += n
			if l.long {
				l.changed()
			}
			return got, nil
		}
		if l.done {
			return nil, l.err
		}
		if err := l.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// add enters one more item. It fails when ctx ends while it waits for the
// slowest caller, and with errEnough.
func (l *listing) add(ctx context.Context, info ufs.Info) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.items) >= l.bound {
		l.long = true
		for !l.trim() {
			if err := l.wait(ctx); err != nil {
				return err
			}
		}
	}
	l.items = append(l.items, info)
	l.changed()
	for r := range l.readers {
		if r.most == 0 || r.most > l.base+len(l.items) {
			return nil
		}
	}
	if len(l.readers) > 0 {
		return errEnough // before the under-store is asked for more
	}
	return nil
}

// trim forgets what every caller has read, and reports whether that made room.
func (l *listing) trim() bool {
	slowest := l.base + len(l.items)
	for r := range l.readers {
		slowest = min(slowest, r.pos)
	}
	if slowest == l.base {
		return false
	}
	// A new array: callers hold parts of the old one.
	l.items = append([]ufs.Info(nil), l.items[slowest-l.base:]...)
	l.base = slowest
	return true
}

// whole returns everything, if all of it came and is still there.
func (l *listing) whole(err error) (all []ufs.Info, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.items, err == nil && !l.long
}

// end ends the pass.
func (l *listing) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done, l.err = true, err
	l.changed()
}
