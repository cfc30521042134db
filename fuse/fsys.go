package fuse

import (
	"log/slog"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/client"
	"millrace/internal/errs"
)

const (
	typeFile uint32 = syscall.S_IFREG
	typeDir  uint32 = syscall.S_IFDIR

	// maxName is the longest name that the kernel takes in a directory, in
	// bytes. Longer ones cannot be reached through the mount.
	maxName = 1024

	// attrTimeout is for attributes that never change for a node's life.
	attrTimeout = time.Hour
	// openGrace lets the OPEN that follows a LOOKUP rely on its answer, when
	// answers may not be kept (freshness "always").
	openGrace = time.Second
	// outageTimeout is how long an entry lives that could not be confirmed,
	// since no master answered.
	outageTimeout = time.Second

	statBlock = 512     // unit of st_blocks
	ioSize    = 1 << 20 // preferred size of a read
)

// fsys answers the kernel's requests. Everything that is not answered here or
// in the files beside is "not implemented" by the embedded default.
type fsys struct {
	gofuse.RawFileSystem

	look    look
	client  Client
	table   *table
	req     *requests
	files   handles[*openFile]
	dirs    handles[*dirStream]
	faults  *faultLog
	metrics *metrics
	log     *slog.Logger
}

func newFsys(l look, root *client.Entry, c Client, req *requests, m *metrics, log *slog.Logger) *fsys {
	return &fsys{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		look:          l,
		client:        c,
		table:         newTable(root),
		req:           req,
		faults:        newFaultLog(log),
		metrics:       m,
		log:           log,
	}
}

func (f *fsys) String() string { return "millrace" }

// join returns the namespace path of a name in a directory.
func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName
}

func (f *fsys) Lookup(cancel <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	parent := f.table.get(header.NodeId)
	switch {
	case parent == nil:
		return gofuse.Status(syscall.ESTALE)
	case !parent.dir:
		return gofuse.ENOTDIR
	case len(name) > maxName:
		return gofuse.Status(syscall.ENAMETOOLONG)
	case !validName(name):
		return gofuse.ENOENT
	}
	path, now := join(parent.path, name), time.Now()
	if n, v := f.table.known(path); n != nil && now.Before(v.entry.ValidUntil) && f.table.retain(n) {
		f.fillEntry(out, n, v.entry.ValidUntil.Sub(now))
		return gofuse.OK
	}
	ctx, done := f.req.context(cancel, header.Pid)
	defer done()
	e, err := f.client.Stat(ctx, path, client.StatOptions{WithTicket: true})
	if err != nil {
		return f.lookupFailed(path, err, out)
	}
	n, v := f.table.refer(e, now)
	f.fillEntry(out, n, time.Until(v.entry.ValidUntil))
	return gofuse.OK
}

// lookupFailed answers a lookup that the masters did not: a name that does
// not exist is remembered by the kernel as long as that answer is valid, and
// a name that was known goes on with its ticket while no master can be asked.
func (f *fsys) lookupFailed(path string, err error, out *gofuse.EntryOut) gofuse.Status {
	kind := errs.KindOf(err)
	if kind == errs.NotFound {
		if left := time.Until(client.NotFoundUntil(err)); left > 0 {
			out.NodeId = 0
			out.SetEntryTimeout(left)
			return gofuse.OK
		}
		return gofuse.ENOENT
	}
	if n, v := f.table.known(path); n != nil && outlives(kind, v) && f.table.retain(n) {
		f.fillEntry(out, n, outageTimeout)
		return gofuse.OK
	}
	return f.faults.status("lookup", path, err)
}

// outlives reports whether a node may be used on when the masters failed to
// confirm it: not one whose answers must never be kept.
func outlives(kind errs.Kind, v view) bool {
	switch kind {
	case errs.Unavailable, errs.NotLeader, errs.Timeout, errs.Throttled:
	default:
		return false
	}
	return !v.entry.ValidUntil.IsZero() && (v.entry.Dir || ticketValid(v.entry, time.Now()))
}

// ticketValid reports whether the entry can be opened without a master.
func ticketValid(e *client.Entry, now time.Time) bool {
	return e.Ticket != nil && (e.Ticket.Expiry.IsZero() || now.Before(e.Ticket.Expiry))
}

func (f *fsys) Forget(nodeID, count uint64) { f.table.forget(nodeID, count) }

func (f *fsys) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n := f.table.get(in.NodeId)
	if n == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	f.fillAttr(&out.Attr, n)
	out.SetTimeout(attrTimeout)
	return gofuse.OK
}

// fillEntry answers with a node that has been referred to. valid is how long
// the name may stand for it.
func (f *fsys) fillEntry(out *gofuse.EntryOut, n *node, valid time.Duration) {
	out.NodeId = n.id
	out.Generation = 1
	f.fillAttr(&out.Attr, n)
	out.SetEntryTimeout(max(valid, 0))
	out.SetAttrTimeout(attrTimeout)
}

func (f *fsys) fillAttr(a *gofuse.Attr, n *node) {
	mtime := n.mtime
	if mtime.IsZero() {
		mtime = f.look.born
	}
	*a = gofuse.Attr{
		Ino: n.ino, Size: uint64(n.size), Blocks: uint64(n.size+statBlock-1) / statBlock,
		Mode: f.look.fileMode, Nlink: 1, Blksize: ioSize,
		Owner: gofuse.Owner{Uid: f.look.uid, Gid: f.look.gid},
	}
	if n.dir {
		// One link says that the number of subdirectories is unknown.
		a.Mode, a.Size, a.Blocks, a.Blksize = f.look.dirMode, 0, 0, 4096
	}
	a.SetTimes(&mtime, &mtime, &mtime)
}

// Access is answered by the kernel itself (default_permissions); this is for
// the rest.
func (f *fsys) Access(_ <-chan struct{}, in *gofuse.AccessIn) gofuse.Status {
	if in.Mask&gofuse.W_OK != 0 {
		return gofuse.EROFS
	}
	return gofuse.OK
}

// StatFs tells a size that stops nobody: the namespace is as large as its
// under-stores. It must not wait for anybody, for it also tells a mount that
// lives from one that is dead.
func (f *fsys) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	const pebibyte = 1 << 50
	*out = gofuse.StatfsOut{
		Bsize: 4096, Frsize: 4096, NameLen: 255,
		Blocks: pebibyte / 4096, Bfree: pebibyte / 4096, Bavail: pebibyte / 4096,
		Files: 1 << 32, Ffree: 1 << 32,
	}
	return gofuse.OK
}

// end lets go of what the kernel left open when the mount was cut off.
func (f *fsys) end() {
	for _, d := range f.dirs.drain() {
		d.close()
	}
	for _, o := range f.files.drain() {
		if err := o.file.Close(); err != nil {
			f.log.Debug("close", slog.String("path", o.node.path), slog.Any("error", err))
		}
	}
}
