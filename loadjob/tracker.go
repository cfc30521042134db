package loadjob

import (
	"context"
	"fmt"
	"sync"

	"millrace/internal/errs"
)

// Result is the end of one item.
type Result struct {
	Number uint64
	Loaded int64 // bytes fetched for the item
	Cached int64 // bytes found in the cache; without an error, Loaded + Cached is the item's length
	Err    error // kinds NotFound and Stale mean that the file is gone
}

// file is what the items of one file share. After Plan made it, it belongs to
// the Tracker.
type file struct {
	cursor Cursor
	length int64
	left   int64 // items that are not done
	loaded int64 // bytes
	cached int64 // bytes
	failed bool
	gone   bool
	added  bool
}

// sums returns what a file that is done adds to the sums of files and bytes.
func (f *file) sums() (files, bytes Sums) {
	files = Sums{Listed: 1}
	bytes = Sums{Listed: f.length, Loaded: f.loaded, AlreadyCached: f.cached}
	rest := f.length - f.loaded - f.cached
	switch {
	case f.failed:
		files.Failed, bytes.Failed = 1, rest
	case f.gone:
		files.Gone, bytes.Gone = 1, rest
	case f.loaded > 0:
		files.Loaded = 1
	default:
		files.AlreadyCached = 1
	}
	return files, bytes
}

// Tracker keeps the sums and the cursor of one running job. It is a pure
// state machine, safe for concurrent use.
type Tracker struct {
	paths  int
	window int

	mu     sync.Mutex
	cursor Cursor
	files  Sums // of the files that the cursor has passed
	bytes  Sums
	ahead  [2]Sums          // files and bytes of what is listed behind the cursor, live
	open   map[uint64]*Item // items that are not done
	queue  []*file          // listed and not passed, in order
	first  string           // the first failure
	ended  bool             // the listing has
	err    error            // of the listing
	room   chan struct{}    // closed and replaced when room is made
}

// NewTracker makes the tracker of a job that starts, or goes on from what was
// committed of it.
func NewTracker(job Job, cfg Config) *Tracker {
	return &Tracker{
		paths: len(job.Paths), window: max(cfg.Window, 1),
		cursor: job.Cursor, files: job.Files, bytes: job.Bytes, first: job.Error,
		open: make(map[uint64]*Item), room: make(chan struct{}),
	}
}

// Wait returns when there is room in the window for another item, or ctx's
// error when that ends first.
func (t *Tracker) Wait(ctx context.Context) error {
	for {
		t.mu.Lock()
		room, full := t.room, t.full()
		t.mu.Unlock()
		if !full {
			return ctx.Err()
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// full says that the window has no room. With no item open there always is
// some: the one file in the queue may need items that were not added yet.
func (t *Tracker) full() bool {
	return len(t.open) > 0 && len(t.open)+len(t.queue) >= t.window
}

// Add enters an item. Items are added in the order in which Plan emits them,
// each before it is given to a worker.
func (t *Tracker) Add(item *Item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := item.file
	t.open[item.Number] = item
	if f.added {
		return
	}
	f.added = true
	t.queue = append(t.queue, f)
	t.ahead[0].Listed++
	t.ahead[1].Listed += f.length
}

// Done enters the end of an item, and reports whether it was waited for:
// further results of an item count nothing.
func (t *Tracker) Done(r Result) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	item, ok := t.open[r.Number]
	if !ok {
		return false
	}
	delete(t.open, r.Number)
	f, length := item.file, item.Extent().Length
	if r.Loaded < 0 || r.Cached < 0 || r.Loaded+r.Cached > length || (r.Err == nil && r.Loaded+r.Cached != length) {
		r.Err = errs.E(errs.Internal, "load", "", fmt.Errorf("%d bytes loaded and %d found of %d", r.Loaded, r.Cached, length))
		r.Loaded, r.Cached = 0, 0
	}
	f.left--
	f.loaded += r.Loaded
	f.cached += r.Cached
	t.ahead[1].Loaded += r.Loaded
	t.ahead[1].AlreadyCached += r.Cached
	switch kind := errs.KindOf(r.Err); {
	case r.Err == nil:
	case kind == errs.NotFound, kind == errs.Stale:
		f.gone = true
	default:
		f.failed = true
		if t.first == "" {
			t.first = fmt.Sprintf("%s: %v", f.cursor.After, r.Err)
		}
	}
	if f.left == 0 {
		t.fileDone(f)
	}
	close(t.room)
	t.room = make(chan struct{})
	return true
}

// fileDone counts a file whose items are all done, and passes the cursor over
// every file that has none before it left.
func (t *Tracker) fileDone(f *file) {
	files, bytes := f.sums()
	files.Listed = 0 // listed and loaded bytes were counted as they came
	t.ahead[0] = t.ahead[0].Add(files)
	t.ahead[1] = t.ahead[1].Add(Sums{Failed: bytes.Failed, Gone: bytes.Gone})
	for len(t.queue) > 0 && t.queue[0].left == 0 {
		files, bytes := t.queue[0].sums()
		t.cursor = t.queue[0].cursor
		t.files, t.bytes = t.files.Add(files), t.bytes.Add(bytes)
		t.ahead[0], t.ahead[1] = t.ahead[0].sub(files), t.ahead[1].sub(bytes)
		t.queue[0] = nil
		t.queue = t.queue[1:]
	}
}

func (s Sums) sub(o Sums) Sums {
	return s.Add(Sums{-o.Listed, -o.Loaded, -o.AlreadyCached, -o.Failed, -o.Gone})
}

// Planned says that the listing has ended, by err or, if that is nil, at its
// end.
func (t *Tracker) Planned(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.err = true, err
}

// Snapshot returns what may be committed: the cursor, and the sums of the
// files that it has passed.
func (t *Tracker) Snapshot() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress(t.files, t.bytes)
}

// Live returns the sums of everything listed and done so far, for watchers.
// They go back to those of Snapshot when a leader takes over.
func (t *Tracker) Live() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress(t.files.Add(t.ahead[0]), t.bytes.Add(t.ahead[1]))
}

// Finished returns the last progress, with a final state, once the listing
// has ended and every item is done; false before. The caller sets when.
func (t *Tracker) Finished() (Progress, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// A planning that was ended by its emit function may leave a file in the
	// queue of which some items were never added.
	if !t.ended || len(t.open) > 0 {
		return Progress{}, false
	}
	p := t.progress(t.files, t.bytes)
	switch {
	case t.err != nil:
		p.State, p.Error = Failed, t.err.Error()
	case p.Files.Failed > 0:
		p.State = Failed
		p.Error = fmt.Sprintf("%d of %d files failed; the first: %s", p.Files.Failed, p.Files.Listed, t.first)
	default:
		p.State, p.Error, p.Cursor = Succeeded, "", Cursor{PathIndex: t.paths}
	}
	return p, true
}

// Canceled returns the last progress of a job that is ended by a user: what
// was done so far, of which some files were listed and not loaded.
func (t *Tracker) Canceled() Progress {
	p := t.Live()
	p.State = Canceled
	return p
}

func (t *Tracker) progress(files, bytes Sums) Progress {
	p := Progress{Cursor: t.cursor, Files: files, Bytes: bytes, State: Planning, Error: t.first}
	if t.ended {
		p.State = Running
	}
	return p
}

// Outstanding returns how many items are not done and how many files the
// cursor has not passed.
func (t *Tracker) Outstanding() (items, files int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open), len(t.queue)
}
