package fuse

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// Passthrough: an open file whose bytes are all in a local file is handed to
// the kernel as that file, which then serves every read and mapping itself.
//
// The kernel has one backing file for a node, and refuses an open in one mode
// while the node is open in the other. So the first of the opens of a node
// that are there at the same time decides for all of them, and the last
// RELEASE, which the kernel sends after it left the mode, ends that. A file
// that is open in the copy mode for long when its local file is complete gets
// another node for the opens to come.

// reason is why an open went one way or the other; a metric's label.
type reason string

const (
	passedOn     reason = "complete"      // by passthrough: the file is wholly here
	switchedOff  reason = "switched_off"  // by the option
	notOffered   reason = "not_offered"   // by this kernel, to this process, or for this file system
	notCached    reason = "not_cached"    // not wholly, on this host
	noDescriptor reason = "no_descriptor" // the worker gives none, or nobody could be asked
	notAlone     reason = "not_alone"     // the local file holds more than this version
	openBefore   reason = "open_before"   // somebody has it open in the copy mode
	empty        reason = "empty"
	unasked      reason = "no_open" // by the option: the kernel tells of no opens
)

// reasons are those of opens in the copy mode.
func reasons() []reason {
	return []reason{switchedOff, notOffered, notCached, noDescriptor, notAlone, openBefore, empty, unasked}
}

// backer is the kernel's side of passthrough.
type backer interface {
	RegisterBackingFd(m *gofuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
	EntryNotify(parent uint64, name string) gofuse.Status
	InodeNotify(node uint64, off, length int64) gofuse.Status
}

func backerOf(s *gofuse.Server) backer { return s }

// passthrough decides how nodes are opened.
type passthrough struct {
	kernel backer // nil until the mount has begun
	table  *table
	fresh  func(path string) // told of files for whose descriptor a worker was asked
	log    *slog.Logger
	// off is why nothing is passed through; empty if it is.
	off atomic.Pointer[reason]

	// silentUntil is until when no descriptors are asked for, since a worker
	// did not answer; a moment of the table's.
	silentUntil atomic.Int64

	// notices are the nodes whose names the kernel should look up again.
	notices chan *node
}

// descriptorPause is how long no descriptor is asked for when a worker did not
// answer: one that hangs must not delay who wants what it may not even have.
const descriptorPause = time.Second

// maxNotices bounds the names that wait to be looked up again. One that finds
// no room is noticed by a later open.
const maxNotices = 256

func newPassthrough(t *table, mode string, log *slog.Logger) *passthrough {
	p := &passthrough{table: t, log: log, notices: make(chan *node, maxNotices)}
	why := notOffered // before begin
	if mode == PassthroughOff {
		why = switchedOff
	}
	p.off.Store(&why)
	return p
}

// begin says that the kernel's side is there, and whether it knows of
// passthrough.
func (p *passthrough) begin(k backer, offered bool) {
	p.kernel = k
	if *p.off.Load() == switchedOff {
		return
	}
	p.off.Store(nil)
	if !offered {
		p.disable(noPassthrough)
	}
}

// opening is how a node is open, for as long as it is. It is guarded by the
// lock of the node's shard.
type opening struct {
	count   int
	backing int32      // 0 in the copy mode
	held    Descriptor // of the backing file
	asked   time.Time  // when a descriptor was asked for last, in the copy mode
}

// enter counts an open of a node and says how it is served: by the backing
// file of that ID, or in the copy mode for that reason if it is 0.
func (p *passthrough) enter(ctx context.Context, n *node, file File) (int32, reason) {
	off := p.off.Load()
	switch id, joined := p.join(n, off != nil); {
	case id != 0:
		return id, passedOn
	case off != nil:
		return 0, *off
	case joined:
		p.renew(ctx, n, file)
		return 0, openBefore
	}
	d, why := p.descriptor(ctx, n, file, true) // who opens a small file reads it
	id, kept := p.decide(n, d, &why)
	if d != nil && !kept {
		_ = d.Close() // nothing was written
	}
	return id, why
}

// join counts an open of a node that is open already, in the mode that it has;
// with begin also one of a node that is not, in the copy mode.
func (p *passthrough) join(n *node, begin bool) (id int32, joined bool) {
	s := p.table.shardOf(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.opening == nil {
		if !begin {
			return 0, false
		}
		n.opening = &opening{}
	}
	n.opening.count++
	return n.opening.backing, true
}

// descriptor returns the local file of a node, if it can back the node. With
// fill, a small one that is not cached is fetched first.
func (p *passthrough) descriptor(ctx context.Context, n *node, file File, fill bool) (Descriptor, reason) {
	if n.size == 0 {
		return nil, empty
	}
	d, err := p.ask(ctx, n, file, fill)
	switch kind := errs.KindOf(err); {
	case kind == errs.NotCached:
		return nil, notCached
	case err != nil:
		return nil, noDescriptor
	case !alone(d, n.size):
		_ = d.Close() // nothing was written
		return nil, notAlone
	}
	return d, passedOn
}

// ask asks for the local file of an open file, unless a worker hangs.
func (p *passthrough) ask(ctx context.Context, n *node, file File, fill bool) (Descriptor, error) {
	if int64(p.table.epoch.moment(time.Now())) < p.silentUntil.Load() {
		return nil, errs.E(errs.Unavailable, "", "", errors.New("a worker was silent a moment ago"))
	}
	d, err := file.Descriptor(ctx, fill)
	if err != nil && errs.KindOf(err) == errs.Timeout && ctx.Err() == nil {
		p.silentUntil.Store(int64(p.table.epoch.moment(time.Now().Add(descriptorPause))))
	}
	if err == nil && d.IsFresh() {
		p.fresh(n.path)
	}
	return d, err
}

// alone reports whether a local file is a version and nothing else: the kernel
// shows all of it, from its start to its end.
func alone(d Descriptor, size int64) bool {
	base, length := d.Extent()
	var st unix.Stat_t
	return base == 0 && length == size && unix.Fstat(d.FD(), &st) == nil && st.Size == size
}

// decide counts an open of a node that was not open a moment ago. d is nil for
// the copy mode; it is kept if it backs the node from now on.
func (p *passthrough) decide(n *node, d Descriptor, why *reason) (id int32, kept bool) {
	s := p.table.shardOf(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := n.opening; o != nil { // another was faster
		o.count++
		if *why = passedOn; o.backing == 0 {
			*why = openBefore
		}
		return o.backing, false
	}
	n.opening = &opening{count: 1, asked: time.Now()}
	if d == nil {
		return 0, false
	}
	if id = p.register(d, why); id == 0 {
		return 0, false
	}
	n.opening.backing, n.opening.held = id, d
	return id, true
}

// register gives a local file to the kernel; 0 if it does not take it.
func (p *passthrough) register(d Descriptor, why *reason) int32 {
	id, errno := p.kernel.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(d.FD())})
	if errno == 0 {
		return id
	}
	cause := refusedFor(errno)
	if cause == "" { // it is about this one file
		p.log.Debug("register a backing file", slog.Any("error", errno))
		*why = noDescriptor
		return 0
	}
	*why = notOffered
	p.disable(cause, slog.Any("error", errno))
	return 0
}

// refusedFor says what it is about the kernel, this process or the cache that
// makes passthrough impossible; nothing if another file may do.
func refusedFor(errno syscall.Errno) string {
	switch errno {
	case unix.EPERM:
		return "FUSE passthrough needs CAP_SYS_ADMIN"
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.ENOSYS:
		return noPassthrough
	case unix.ELOOP:
		return "the cache directory is on a file system that is stacked on another"
	default:
		return ""
	}
}

const noPassthrough = "this kernel has no FUSE passthrough"

// disable ends passthrough for this mount, and says so once.
func (p *passthrough) disable(cause string, more ...any) {
	why := notOffered
	if p.off.CompareAndSwap(nil, &why) {
		p.log.With(more...).Info("cached files are not handed to the kernel, which would be faster: reads are copied", slog.String("cause", cause))
	}
}

// leave takes an open back.
func (p *passthrough) leave(n *node) {
	s := p.table.shardOf(n)
	s.mu.Lock()
	o := n.opening
	if o.count--; o.count > 0 {
		s.mu.Unlock()
		return
	}
	n.opening = nil
	if o.backing != 0 {
		if errno := p.kernel.UnregisterBackingFd(o.backing); errno != 0 {
			p.log.Debug("unregister a backing file", slog.String("path", n.path), slog.Any("error", errno))
		}
	}
	s.mu.Unlock()
	if o.held != nil {
		_ = o.held.Close() // nothing was written
	}
}

// renew sees to it that a node which is open in the copy mode gets a successor
// when its local file is complete, so that the opens to come are passed
// through. What is open, and an OPEN that the kernel has sent meanwhile, goes
// on in the copy mode.
func (p *passthrough) renew(ctx context.Context, n *node, file File) {
	if !p.mayAsk(n) {
		return
	}
	d, _ := p.descriptor(ctx, n, file, false)
	if d == nil {
		return
	}
	_ = d.Close() // it is asked for again
	select {
	case p.notices <- n:
	default:
	}
}

// mayAsk reports whether it is time to look for the local file of a node that
// is open in the copy mode.
func (p *passthrough) mayAsk(n *node) bool {
	now := time.Now()
	s := p.table.shardOf(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := n.opening; o == nil || o.backing != 0 || s.byPath[n.path] != n || now.Sub(o.asked) < localAgain {
		return false
	}
	n.opening.asked = now
	return true
}

// run tells the kernel of names that it should look up again, until ctx ends.
// It has a goroutine of its own since the kernel takes the directory's lock
// for it, which one that waits for our answer may hold.
func (p *passthrough) run(ctx context.Context) {
	for {
		select {
		case n := <-p.notices:
			p.replace(n)
		case <-ctx.Done():
			return
		}
	}
}

// replace makes the next lookup of a node's path find another node.
func (p *passthrough) replace(n *node) {
	if !p.table.detach(n) {
		return
	}
	parent, name, ok := p.table.parentOf(n)
	if !ok {
		return // the kernel has forgotten the directory, and the name with it
	}
	if status := p.kernel.EntryNotify(parent, name); status != gofuse.OK && !errors.Is(syscall.Errno(status), unix.ENOENT) {
		p.log.Debug("have a name looked up again", slog.String("path", n.path), slog.Any("error", status))
	}
}
