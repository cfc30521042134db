package fuse

import (
	"context"
	"errors"
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
	node  *node
	file  File
	local local
}

// close lets go of what was opened.
func (o *openFile) close() error { return errors.Join(o.local.close(), o.file.Close()) }

func (f *fsys) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.table.get(in.NodeId)
	switch {
	case n == nil:
		return gofuse.Status(syscall.ESTALE)
	case n.dir:
		return gofuse.EISDIR
	case in.Flags&syscall.O_ACCMODE != uint32(os.O_RDONLY) || in.Flags&uint32(os.O_TRUNC) != 0:
		return gofuse.EROFS
	case f.unopened != nil:
		return gofuse.ENOSYS // the kernel does not ask again
	}
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	e, file, status := f.openNode(ctx, n)
	if status != gofuse.OK {
		return status
	}
	o := &openFile{node: n, file: file}
	backing, why := f.pass.enter(ctx, n, file)
	f.client.CountOpen(backing != 0)
	f.metrics.open(backing != 0, why)
	if out.OpenFlags = gofuse.FOPEN_NOFLUSH; backing != 0 {
		out.OpenFlags |= gofuse.FOPEN_PASSTHROUGH
		out.BackingID = backing
	} else {
		if !n.mayHaveOtherPages(e.Ticket) {
			out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
		}
		if why == notCached || why == noDescriptor {
			o.local.later(f.table, time.Now())
		}
	}
	out.Fh = f.files.add(o)
	return gofuse.OK
}

// openNode opens the version that a node stands for.
func (f *fsys) openNode(ctx context.Context, n *node) (*client.Entry, File, gofuse.Status) {
	e, status := f.current(ctx, n)
	if status != gofuse.OK {
		return nil, nil, status
	}
	file, err := f.client.OpenEntry(ctx, e)
	if err != nil {
		if errs.KindOf(err) == errs.Stale {
			f.entries.drop(n.path)
		}
		return nil, nil, f.faults.status("open", n.path, err)
	}
	return e, file, gofuse.OK
}

// current returns an entry with a valid ticket of the node's version, if that
// is the path's current one; else ESTALE, which makes the kernel look again.
func (f *fsys) current(ctx context.Context, n *node) (*client.Entry, gofuse.Status) {
	const again = gofuse.Status(syscall.ESTALE)
	if n.superseded.Load() {
		return nil, again
	}
	now := time.Now()
	a, known := f.entries.get(n.path)
	if known && (a.fresh(now) || now.Sub(a.asked) < openGrace) {
		switch {
		case a.entry == nil || !n.is(a.entry):
			return nil, again
		case ticketValid(a.entry, now):
			return a.entry, gofuse.OK
		}
	}
	e, err := f.confirm(ctx, n.path, now, a.entry)
	switch kind := errs.KindOf(err); {
	case err == nil:
	case kind == errs.NotFound:
		return nil, again
	case outlives(kind, a.entry) && n.is(a.entry):
		return a.entry, gofuse.OK
	default:
		return nil, f.faults.status("open", n.path, err)
	}
	if !f.table.stillIs(n, e, now) {
		return nil, again
	}
	return e, gofuse.OK
}

func (f *fsys) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	o, ok := f.files.remove(in.Fh)
	if !ok {
		return
	}
	f.release(o)
}

// release lets go of an open file.
func (f *fsys) release(o *openFile) {
	f.pass.leave(o.node)
	f.closeFile(o)
}

func (f *fsys) closeFile(o *openFile) {
	if err := o.close(); err != nil {
		f.log.Debug("close", slog.String("path", o.node.path), slog.Any("error", err))
	}
}

// Flush and fsync have nothing to do: nothing is ever dirty. Where opens are
// not asked for, they cannot say that a close is not to flush: the kernel
// learns it here, for the life of the mount.
func (f *fsys) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status {
	if f.unopened != nil {
		return gofuse.ENOSYS
	}
	return gofuse.OK
}

func (f *fsys) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }

func (f *fsys) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }
