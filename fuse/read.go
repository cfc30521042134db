package fuse

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// localAgain is how long a file that was not wholly here is read through the
// client before its descriptor is asked for again.
const localAgain = time.Second

// span is a range of lengths in bytes, both ends included.
type span struct{ from, to int64 }

func (s span) has(n int64) bool { return n >= s.from && n <= s.to }

func (f *fsys) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	if f.unopened != nil {
		return f.readUnopened(cancel, in, buf)
	}
	o, ok := f.files.get(in.Fh)
	if !ok {
		return nil, gofuse.EBADF
	}
	return f.read(cancel, in, buf, o)
}

// read answers a READ of an open file.
func (f *fsys) read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte, o *openFile) (gofuse.ReadResult, gofuse.Status) {
	off := int64(in.Offset)
	want := min(int64(in.Size), int64(len(buf)), o.node.size-off)
	if want <= 0 {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	// What is on this host waits for nobody, and needs no context.
	if res := f.readLocal(o, o.local.now(), buf[:want], off); res != nil {
		return res, gofuse.OK
	}
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	if res := f.readLocal(o, o.local.seek(ctx, f.pass, o), buf[:want], off); res != nil {
		return res, gofuse.OK
	}
	res, status := f.readRemote(ctx, o, buf[:want], off)
	if status == gofuse.OK {
		f.metrics.readBytes.Add(float64(want))
	}
	return res, status
}

// readLocal answers with what the local file d has, or with nil if there is
// none or it fails.
func (f *fsys) readLocal(o *openFile, d Descriptor, buf []byte, off int64) gofuse.ReadResult {
	if d == nil {
		return nil
	}
	want := int64(len(buf))
	res := f.readFile(o, d, buf, off)
	if res == nil {
		o.local.distrust()
		return nil
	}
	d.Count(want)
	f.metrics.readBytes.Add(float64(want))
	return res
}

// readFile answers with bytes that the local file d has, or with nil if it
// does not give them.
func (f *fsys) readFile(o *openFile, d Descriptor, buf []byte, off int64) gofuse.ReadResult {
	if want := int64(len(buf)); f.spliced.has(want) && !o.local.copied.Load() {
		if p := f.replies.ofFile(f, o, d, off, want); p != nil {
			return p
		}
	}
	if base, _ := d.Extent(); !preadFull(d.FD(), buf, base+off) {
		return nil
	}
	return f.replies.of(buf)
}

// readRemote answers with what the client brings, to buf or to a local file
// that fills.
func (f *fsys) readRemote(ctx context.Context, o *openFile, buf []byte, off int64) (gofuse.ReadResult, gofuse.Status) {
	n, d, err := o.file.ReadInPlace(ctx, buf, off)
	if d != nil {
		res := f.readFile(o, d, buf, off)
		if p, ok := res.(*fileReply); ok {
			p.held = d // until the bytes have left
			return res, gofuse.OK
		}
		_ = d.Close() // was only read
		if res != nil {
			return res, gofuse.OK
		}
		n, err = o.file.ReadAtContext(ctx, buf, off)
	}
	b, status := f.outcome(o, buf, n, err)
	if status != gofuse.OK {
		return nil, status
	}
	return f.replies.of(b), gofuse.OK
}

// readAt fills p through the client.
func (f *fsys) readAt(ctx context.Context, o *openFile, p []byte, off int64) ([]byte, gofuse.Status) {
	n, err := o.file.ReadAtContext(ctx, p, off)
	return f.outcome(o, p, n, err)
}

// outcome answers with p, of which the client filled n bytes.
func (f *fsys) outcome(o *openFile, p []byte, n int, err error) ([]byte, gofuse.Status) {
	switch {
	case n == len(p):
		return p, gofuse.OK
	case err == nil || errors.Is(err, io.EOF):
		// A short answer would be the file's end to the kernel.
		err = errs.E(errs.Internal, "read", o.node.path, io.ErrUnexpectedEOF)
	case errs.KindOf(err) == errs.Stale:
		f.entries.drop(o.node.path)
	}
	return nil, f.faults.status("read", o.node.path, err)
}

// preadFull reports whether p was filled from the local file.
func preadFull(fd int, p []byte, off int64) bool {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n == 0:
			return false
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return true
}

// local is the descriptor that an open file is read by, from when the file is
// wholly on this host.
type local struct {
	held    atomic.Pointer[Descriptor]
	copied  atomic.Bool  // splicing failed once
	useless atomic.Bool  // reading failed once: the client may do better
	ask     atomic.Int64 // not before that moment of the table's
}

// now returns the local file that there is, nil if there is none.
func (l *local) now() Descriptor {
	if d := l.held.Load(); d != nil && !l.useless.Load() {
		return *d
	}
	return nil
}

// seek asks for the local file; nil if there is none, or if it was asked for a
// moment ago: the reads beside the one that asks do not wait.
func (l *local) seek(ctx context.Context, p *passthrough, o *openFile) Descriptor {
	if l.useless.Load() {
		return nil
	}
	if !l.later(p.table, time.Now()) {
		return nil
	}
	d, err := p.ask(ctx, o.node, o.file, false)
	if err != nil {
		return nil // it is not here: the client knows where it is
	}
	if !holds(d, o.node.size) || !l.held.CompareAndSwap(nil, &d) {
		_ = d.Close() // nothing was written
		return nil
	}
	return d
}

// later puts off the next question, and reports whether it was time for one.
func (l *local) later(t *table, now time.Time) bool {
	ask := l.ask.Load()
	return int64(t.epoch.moment(now)) >= ask && l.ask.CompareAndSwap(ask, int64(t.epoch.moment(now.Add(localAgain))))
}

// holds reports whether the local file has all bytes of a version: a short
// one would be read as the file's end.
func holds(d Descriptor, size int64) bool {
	base, length := d.Extent()
	var st unix.Stat_t
	return length == size && unix.Fstat(d.FD(), &st) == nil && st.Size >= base+length
}

// distrust has the open file read through the client from now on. The
// descriptor stays open, for others may be reading by it.
func (l *local) distrust() { l.useless.Store(true) }

func (l *local) close() error {
	if d := l.held.Swap(nil); d != nil {
		return (*d).Close()
	}
	return nil
}
