package fuse

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
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
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	e, status := f.current(ctx, n)
	if status != gofuse.OK {
		return status
	}
	file, err := f.client.OpenEntry(ctx, e)
	if err != nil {
		if errs.KindOf(err) == errs.Stale {
			f.entries.drop(n.path)
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
	if f.table.refresh(e, now) != n {
		return nil, again
	}
	return e, gofuse.OK
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
	ctx := f.req.context(cancel, in.Pid)
	defer ctx.end()
	n, err := o.file.ReadAtContext(ctx, buf[:want], off)
	f.metrics.readBytes.Add(float64(n))
	switch {
	case int64(n) == want:
		return f.replies.of(buf[:n]), gofuse.OK
	case err == nil || errors.Is(err, io.EOF):
		// A short answer would be the file's end to the kernel.
		err = errs.E(errs.Internal, "read", o.node.path, io.ErrUnexpectedEOF)
	case errs.KindOf(err) == errs.Stale:
		f.entries.drop(o.node.path)
	}
	return nil, f.faults.status("read", o.node.path, err)
}

// replies are the results of reads, which are used again: a READ of the
// kernel costs no allocation of ours.
type replies struct{ pool sync.Pool }

// reply hands bytes to the kernel that are in go-fuse's own buffer.
type reply struct {
	of   *replies
	data []byte
}

func (r *replies) of(data []byte) *reply {
	p, ok := r.pool.Get().(*reply)
	if !ok {
		p = &reply{of: r}
	}
	p.data = data
	return p
}

// Bytes implements gofuse.ReadResult.
func (p *reply) Bytes([]byte) ([]byte, gofuse.Status) { return p.data, gofuse.OK }

// Size implements gofuse.ReadResult.
func (p *reply) Size() int { return len(p.data) }

// Done implements gofuse.ReadResult.
func (p *reply) Done() {
	p.data = nil
	p.of.pool.Put(p)
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
