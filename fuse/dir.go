package fuse

import (
	"context"
	"path"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/client"
	"millrace/internal/errs"
)

const (
	// dirChunk is how many entries of a listing are handed over at once, and
	// dirAhead how many such chunks a listing may be ahead of its reader.
	dirChunk = 256
	dirAhead = 4
	// dirWindow is how many entries an open directory keeps at least (twice
	// as many at most), so that the kernel can ask again for what the
	// program's buffer had no room for.
	dirWindow = 8192
	// absentFor bounds how long a listing is believed about the names that it
	// lacks: also what never changes is added to.
	absentFor = time.Minute
)

// The positions of an open directory: 0 is ".", 1 is "..", and from 2 on the
// listing in its order. The offset of an entry is the position behind it.
const firstListed = 2

// dirStream is an open directory. It reads a listing once, forward, in
// bounded memory; a position behind its window starts the listing anew.
type dirStream struct {
	node  *node
	start func(anew bool) (chunks <-chan chunk, stop context.CancelFunc)

	mu     sync.Mutex // held for a READDIR
	chunks <-chan chunk
	stop   context.CancelFunc
	window []listed // entries from position base on
	base   uint64
	ended  bool
	anew   bool // listings are to come from the masters
	closed bool
}

// listed is one entry of a listing.
type listed struct {
	entry *client.Entry
	asked time.Time
}

// chunk is a piece of a listing; the last one has an error or is the end.
type chunk struct {
	entries []listed
	err     error
	end     bool
}

func (f *fsys) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.table.get(in.NodeId)
	switch {
	case n == nil || n.superseded.Load():
		return gofuse.Status(syscall.ESTALE)
	case !n.dir:
		return gofuse.ENOTDIR
	}
	out.Fh = f.dirs.add(&dirStream{node: n, base: firstListed, start: func(anew bool) (<-chan chunk, context.CancelFunc) {
		ctx, stop := f.req.begin()
		ch := make(chan chunk, dirAhead)
		f.req.workers.Go(func() {
			to := feeder{ctx: ctx, ch: ch}
			if !anew && f.listKnown(n.path, &to) {
				return
			}
			f.list(n.path, &to)
		})
		return ch, stop
	}})
	return gofuse.OK
}

// feeder cuts a listing into chunks.
type feeder struct {
	ctx  context.Context //nolint:containedctx // lives as long as the one listing
	ch   chan<- chunk
	part []listed
	fed  int // entries
}

// add feeds an entry; false ends the listing.
func (t *feeder) add(l listed) bool {
	t.fed++
	t.part = append(t.part, l)
	return len(t.part) < dirChunk || t.send(chunk{})
}

// send hands over what was added, and c with it.
func (t *feeder) send(c chunk) bool {
	c.entries, t.part = t.part, nil
	select {
	case t.ch <- c:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// listKnown feeds a directory whose whole listing is in the cache, and asks no
// master. It reports false if the cache has not all of it, or lost some
// meanwhile: what was fed then is the listing's beginning.
func (f *fsys) listKnown(dir string, to *feeder) bool {
	l := f.entries.whole.of(dir)
	if l == nil || !time.Now().Before(l.until) {
		return false
	}
	for _, p := range l.paths {
		a, ok := f.entries.peek(p)
		switch {
		case !ok || l.spoilt.Load():
			return false
		case a.entry == nil: // it went since
		case !to.add(listed{a.entry, a.asked}):
			return true
		}
	}
	to.send(chunk{end: true})
	return true
}

// list feeds a listing until it ends or its reader is gone, but for what was
// fed before, and the entries into the cache.
func (f *fsys) list(dir string, to *feeder) {
	skip := to.fed
	end, err := f.listInto(to.ctx, dir, func(l listed) bool {
		if skip > 0 {
			skip--
			return true
		}
		return to.add(l)
	})
	if end || err != nil {
		to.send(chunk{err: err, end: end})
	}
}

// listInto lists a directory from the masters, puts the entries into the
// cache, and calls add with each until that returns false. end says that all
// of them were there.
func (f *fsys) listInto(ctx context.Context, dir string, add func(listed) bool) (end bool, err error) {
	var until time.Time // zero while nothing came, or when nothing may be kept
	whole := f.entries.whole.begin(dir)
	defer func() {
		if !end {
			f.entries.whole.end(whole, time.Time{}, time.Time{})
		}
	}()
	first, asked := true, time.Now()
	for e, err := range f.client.List(ctx, dir, client.ListOptions{WithTickets: true}) {
		if err != nil {
			return false, err
		}
		if first || e.ValidUntil.Before(until) {
			first, until = false, e.ValidUntil
		}
		if !validName(path.Base(e.Path)) {
			continue
		}
		f.entries.put(e, asked, whole)
		if !add(listed{e, asked}) {
			return false, nil
		}
	}
	f.entries.whole.end(whole, until, asked.Add(absentFor))
	return true, nil
}

// at returns the entry at a position of the listing; ok is false behind its
// end. The caller holds d.mu.
func (d *dirStream) at(ctx context.Context, pos uint64) (l listed, ok bool, err error) {
	if pos < d.base || d.chunks == nil && !d.ended {
		d.rewind()
	}
	for pos >= d.base+uint64(len(d.window)) {
		if d.ended {
			return listed{}, false, nil
		}
		if d.chunks == nil {
			d.chunks, d.stop = d.start(d.anew)
		}
		select {
		case c := <-d.chunks:
			d.take(c)
			if c.err != nil {
				d.rewind()
				return listed{}, false, c.err
			}
		case <-ctx.Done():
			return listed{}, false, errs.Wrap(ctx.Err(), "list", d.node.path)
		}
	}
	return d.window[pos-d.base], true, nil
}

func (d *dirStream) take(c chunk) {
	d.window = append(d.window, c.entries...)
	if drop := len(d.window) - dirWindow; drop > dirWindow {
		d.window = append(d.window[:0:0], d.window[drop:]...)
		d.base += uint64(drop)
	}
	if c.end {
		d.ended = true
		d.halt()
	}
}

// rewind makes the next at start the listing anew.
func (d *dirStream) rewind() {
	d.halt()
	d.window, d.base, d.ended = nil, firstListed, false
}

func (d *dirStream) halt() {
	if d.stop != nil {
		d.stop()
	}
	d.chunks, d.stop = nil, nil
}

func (d *dirStream) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rewind()
	d.closed = true
}

// read adds entries from position pos on with add, which reports whether
// there was room.
func (d *dirStream) read(ctx context.Context, pos uint64, add func(l listed, next uint64) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errs.E(errs.Canceled, "list", d.node.path, nil)
	}
	if pos == 0 && (d.chunks != nil || d.ended) {
		d.rewind() // rewinddir(3) sees the directory as it is now
		d.anew = true
	}
	for first := pos; ; pos++ {
		var l listed
		if pos >= firstListed {
			var ok bool
			var err error
			if l, ok, err = d.at(ctx, pos); err != nil && pos == first {
				return err
			} else if err != nil || !ok {
				return nil // what there is is answered; the error comes at the next call
			}
		}
		if !add(l, pos+1) {
			return nil
		}
	}
}

func (f *fsys) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(cancel, in, func(de gofuse.DirEntry, _ listed) bool { return out.AddDirEntry(de) })
}

func (f *fsys) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(cancel, in, func(de gofuse.DirEntry, l listed) bool {
		entry := out.AddDirLookupEntry(de)
		if entry == nil {
			return false
		}
		if l.entry != nil { // "." and ".." refer to no node
			if f.table.len() >= f.listedNodes {
				return true // with no node either: it is looked up when it is used
			}
			f.fillEntry(entry, f.table.refer(l.entry, l.asked), time.Until(l.entry.ValidUntil))
			out.FixMode(entry.Mode)
		}
		return true
	})
}

func (f *fsys) readDir(cancel <-chan struct{}, in *gofuse.ReadIn, add func(gofuse.DirEntry, listed) bool) gofuse.Status {
	d, ok := f.dirs.get(in.Fh)
	if !ok {
		return gofuse.EBADF
	}
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	err := d.read(ctx, in.Offset, func(l listed, next uint64) bool {
		de := gofuse.DirEntry{Mode: typeDir, Off: next}
		switch {
		case l.entry != nil:
			de.Name, de.Ino = path.Base(l.entry.Path), inode(l.entry.Path)
			if !l.entry.Dir {
				de.Mode = typeFile
			}
		case next == 1:
			de.Name, de.Ino = ".", d.node.ino()
		default:
			de.Name = ".."
		}
		return add(de, l)
	})
	return f.faults.status("readdir", d.node.path, err)
}

func (f *fsys) ReleaseDir(in *gofuse.ReleaseIn) {
	if d, ok := f.dirs.remove(in.Fh); ok {
		d.close()
	}
}
