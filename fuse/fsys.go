package fuse

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
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
	// knownPatience is how long the masters are asked about a name that can go
	// on without them.
	knownPatience = 3 * time.Second
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
	entries *entryCache
	// siblings lists directories whose names are asked for one by one.
	siblings *siblings
	// listedNodes is how many nodes there may be for listings to make more.
	listedNodes int
	// silentUntil is until when the masters are taken to be silent, for names
	// that can go on without them; a moment of the table's.
	silentUntil atomic.Int64

	pass    *passthrough
	backer  func(*gofuse.Server) backer
	spliced span // the reads that are, by their lengths

	ahead    *openAhead
	unopened *unopened // nil if the kernel tells of opens

	req     *requests
	files   handles[*openFile]
	dirs    handles[*dirStream]
	replies replies
	faults  *faultLog
	metrics *metrics
	log     *slog.Logger
}

func newFsys(cfg *Config, l look, root *client.Entry, c Client, req *requests, m *metrics, log *slog.Logger) *fsys {
	t := newTable(root)
	mode := cfg.Passthrough
	if cfg.NoOpen {
		mode = PassthroughOff
	}
	f := &fsys{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		look:          l,
		client:        c,
		table:         t,
		pass:          newPassthrough(t, mode, log),
		entries:       newEntryCache(int64(cfg.EntryCache)),
		siblings:      newSiblings(),
		listedNodes:   cfg.ListedNodes,
		req:           req,
		faults:        newFaultLog(log),
		metrics:       m,
		log:           log,
	}
	f.ahead = newOpenAhead(c, f.entries)
	f.pass.fresh = f.ahead.note
	if cfg.NoOpen {
		f.unopened = newUnopened()
	}
	return f
}

// Init implements gofuse.RawFileSystem.
func (f *fsys) Init(s *gofuse.Server) {
	f.pass.begin(f.backer(s), s.KernelSettings().Flags64()&gofuse.CAP_PASSTHROUGH != 0)
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
	if e, asked, until, absent, ok := f.entries.glance(path, now); ok {
		if absent {
			return nothing(out, until.Sub(now))
		}
		f.fillEntry(out, f.table.refer(&e, asked), until.Sub(now))
		return gofuse.OK
	}
	a, known := f.entries.get(path)
	if !known {
		if until, ok := f.entries.absent(path, now); ok {
			return nothing(out, until.Sub(now))
		}
	}
	f.listSiblings(parent.path, now)
	ctx := f.req.context(cancel, header.Pid)
	defer ctx.end()
	e, err := f.confirm(ctx, path, now, a.entry)
	if err != nil {
		return f.lookupFailed(path, a.entry, err, out)
	}
	f.fillEntry(out, f.table.refer(e, now), time.Until(e.ValidUntil))
	return gofuse.OK
}

// stat asks the masters and keeps the answer, also that nothing is there.
func (f *fsys) stat(ctx context.Context, path string, now time.Time, o client.StatOptions) (*client.Entry, error) {
	e, err := f.client.Stat(ctx, path, o)
	switch {
	case err == nil:
		f.entries.put(e, now, nil)
	case errs.KindOf(err) == errs.NotFound:
		f.entries.putAbsent(path, now, client.NotFoundUntil(err))
	}
	return e, err
}

// confirm is stat for a path of which known, if not nil, was said before. A
// name that can go on without the masters does not wait for them as long as
// others do, and while they are silent only one question in that time is sent.
func (f *fsys) confirm(ctx context.Context, path string, now time.Time, known *client.Entry) (*client.Entry, error) {
	o := client.StatOptions{WithTicket: true}
	if !outlives(errs.Unavailable, known) {
		return f.stat(ctx, path, now, o)
	}
	if int64(f.table.epoch.moment(now)) < f.silentUntil.Load() {
		return nil, errs.E(errs.Unavailable, "stat", path, errors.New("the masters were silent a moment ago"))
	}
	bound, cancel := context.WithTimeout(ctx, knownPatience)
	defer cancel()
	e, err := f.stat(bound, path, now, o)
	if err != nil && ctx.Err() == nil && outlives(errs.KindOf(err), known) {
		f.silentUntil.Store(int64(f.table.epoch.moment(time.Now().Add(knownPatience))))
	}
	return e, err
}

// nothing answers that a name does not exist; the kernel remembers it as long
// as that answer is valid.
func nothing(out *gofuse.EntryOut, valid time.Duration) gofuse.Status {
	if valid <= 0 {
		return gofuse.ENOENT
	}
	out.NodeId = 0
	out.SetEntryTimeout(valid)
	return gofuse.OK
}

// lookupFailed answers a lookup that the masters did not: a name that was
// known goes on with its ticket while no master can be asked.
func (f *fsys) lookupFailed(path string, known *client.Entry, err error, out *gofuse.EntryOut) gofuse.Status {
	kind := errs.KindOf(err)
	if kind == errs.NotFound {
		return nothing(out, time.Until(client.NotFoundUntil(err)))
	}
	if outlives(kind, known) {
		f.fillEntry(out, f.table.refer(known, time.Time{}), outageTimeout)
		return gofuse.OK
	}
	return f.faults.status("lookup", path, err)
}

// outlives reports whether an entry may be used on when the masters failed to
// confirm it: not one whose answers must never be kept.
func outlives(kind errs.Kind, e *client.Entry) bool {
	switch kind {
	case errs.Unavailable, errs.NotLeader, errs.Timeout, errs.Throttled:
	default:
		return false
	}
	return e != nil && !e.ValidUntil.IsZero() && (e.Dir || ticketValid(e, time.Now()))
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
	mtime := f.look.born
	if n.mtime != 0 {
		mtime = time.Unix(0, n.mtime)
	}
	*a = gofuse.Attr{
		Ino: n.ino(), Size: uint64(n.size), Blocks: uint64(n.size+statBlock-1) / statBlock,
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
		f.release(o)
	}
	if f.unopened != nil {
		f.closeUnopened(f.unopened.idle(time.Now())...)
	}
	f.replies.close()
}
