package fuse

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/client"
	"millrace/internal/errs"
)

// openFile is an open descriptor of the kernel.
type openFile struct {
	node *node
	file File
}

func (f *fsys) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.table.get(in.NodeId)
	switch {
	case n == nil:
		return gofuse.Status(syscall.ESTALE)
	case n.dir:
		return gofuse.EISDIR
	case in.Flags&syscall.O_ACCMODE != uint32(os.O_RDONLY) || in.Flags&uint32(os.O_TRUNC) != 0:
		return gofuse.EROFS
	}
	ctx, done := f.req.context(cancel, in.Pid)
	defer done()
	e, status := f.current(ctx, n)
	if status != gofuse.OK {
		return status
	}
	file, err := f.client.OpenEntry(ctx, e)
	if err != nil {
		if errs.KindOf(err) == errs.Stale {
			f.table.doubt(n)
		}
		return f.faults.status("open", n.path, err)
	}
	f.client.CountOpen(false)
	out.Fh = f.files.add(&openFile{n, file})
	// The pages that the kernel has of this node are those of its version.
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE | gofuse.FOPEN_NOFLUSH
	return gofuse.OK
}

// current returns an entry with a valid ticket of the node's version, if that
// is the path's current one; else ESTALE, which makes the kernel look again.
func (f *fsys) current(ctx context.Context, n *node) (*client.Entry, gofuse.Status) {
	v, now := f.table.view(n), time.Now()
	if v.superseded {
		return nil, gofuse.Status(syscall.ESTALE)
	}
	recent := now.Before(v.entry.ValidUntil) || now.Sub(v.checked) < openGrace
	if recent && ticketValid(v.entry, now) {
		return v.entry, gofuse.OK
	}
	e, err := f.client.Stat(ctx, n.path, client.StatOptions{WithTicket: true})
	switch kind := errs.KindOf(err); {
	case err == nil:
	case kind == errs.NotFound:
		f.table.doubt(n)
		return nil, gofuse.Status(syscall.ESTALE)
	case outlives(kind, v):
		return v.entry, gofuse.OK
	default:
		return nil, f.faults.status("open", n.path, err)
	}
	if f.table.refresh(e, now) != n {
		return nil, gofuse.Status(syscall.ESTALE)
	}
	return f.table.view(n).entry, gofuse.OK
}

func (f *fsys) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	o, ok := f.files.get(in.Fh)
	if !ok {
		return nil, gofuse.EBADF
	}
	off := int64(in.Offset)
	want := min(int64(in.Size), int64(len(buf)), o.node.size-off)
	if want <= 0 {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	ctx, done := f.req.context(cancel, in.Pid)
	defer done()
	n, err := o.file.ReadAtContext(ctx, buf[:want], off)
	f.metrics.readBytes.Add(float64(n))
	switch {
	case int64(n) == want:
		return gofuse.ReadResultData(buf[:n]), gofuse.OK
	case err == nil || errors.Is(err, io.EOF):
		// A short answer would be the file's end to the kernel.
		err = errs.E(errs.Internal, "read", o.node.path, io.ErrUnexpectedEOF)
	case errs.KindOf(err) == errs.Stale:
		f.table.doubt(o.node)
	}
	return nil, f.faults.status("read", o.node.path, err)
}

func (f *fsys) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	o, ok := f.files.remove(in.Fh)
	if !ok {
		return
	}
	if err := o.file.Close(); err != nil {
		f.log.Debug("close", slog.String("path", o.node.path), slog.Any("error", err))
	}
}

// Flush and fsync have nothing to do: nothing is ever dirty.
func (f *fsys) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.OK }

func (f *fsys) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }

func (f *fsys) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }
