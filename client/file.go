package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/internal/errs"
)

const (
	// pieceSize is what one request to a worker asks for at most, in bytes.
	pieceSize = 4 << 20
	// renewBefore is how long before its expiry a ticket is renewed, and
	// renewEvery how often that is tried.
	renewBefore = 30 * time.Minute
	renewEvery  = 30 * time.Second
)

// File reads one version of a file. It is safe for concurrent use.
type File struct {
	c      *Client
	entry  *Entry
	ticket atomic.Pointer[block.Ticket]
	routed atomic.Pointer[route]
	// local is the descriptor that the reads use, once there is one; looked is
	// set when they have looked for one and there is no news, asking while the
	// worker is asked.
	local  atomic.Pointer[Descriptor]
	looked atomic.Bool
	asking atomic.Bool
	copied atomic.Bool // bytes came from a worker
	// filling is what the worker's file is read by while it is not whole yet,
	// once there is one, and askFilling when to ask for it, by the client's clock.
	filling    atomic.Pointer[Filling]
	askFilling atomic.Int64
	// renewed is when a renewal was tried last, by the same.
	renewed  atomic.Int64
	replaced atomic.Bool // the path has another version: no renewal any more
	closed   atomic.Bool
}

var (
	_ io.ReaderAt = (*File)(nil)
	_ io.Closer   = (*File)(nil)
)

// Open opens the current version of a file. Within the validity of an earlier
// answer about it no master is asked.
func (c *Client) Open(ctx context.Context, p string) (*File, error) {
	p, err := clean("open", p)
	if err != nil {
		return nil, err
	}
	e, ok := c.entries.Get(p)
	if now := time.Now(); !ok || !now.Before(e.ValidUntil) || e.Ticket.ExpiredAt(now) {
		if e, err = c.Stat(ctx, p, StatOptions{WithTicket: true}); err != nil {
			return nil, err
		}
		if !e.Dir && e.Ticket != nil {
			c.entries.Add(p, e)
		}
	}
	return c.OpenEntry(ctx, e)
}

// OpenEntry opens the version of a file that e describes. It asks no master
// if e has a ticket that is valid; if it has none, and the file has another
// version by now, it is errs.Stale.
func (c *Client) OpenEntry(ctx context.Context, e *Entry) (*File, error) {
	if e.Dir {
		return nil, errs.E(errs.IsDir, "open", e.Path, nil)
	}
	if c.closed.Load() {
		return nil, errs.E(errs.Invalid, "open", e.Path, fs.ErrClosed)
	}
	if e.Ticket == nil || expired(e.Ticket, time.Now()) || c.doubted.Contains(e.Path) {
		fresh, err := c.Stat(ctx, e.Path, StatOptions{WithTicket: true})
		switch {
		case err != nil:
			return nil, err
		case fresh.FileID != e.FileID:
			return nil, errs.E(errs.Stale, "open", e.Path, nil)
		case fresh.Ticket == nil:
			return nil, errs.E(errs.Internal, "open", e.Path, errors.New("the master gave no ticket"))
		}
		e = fresh
	}
	f := &File{c: c, entry: e}
	f.ticket.Store(e.Ticket)
	return f, nil
}

// expired is stricter than Ticket.ExpiredAt: by this host's clock, without
// the skew that workers allow.
func expired(t *block.Ticket, now time.Time) bool {
	return !t.Expiry.IsZero() && !now.Before(t.Expiry)
}

// Size returns the length of the file in bytes.
func (f *File) Size() int64 { return f.entry.Size }

// Entry returns what was opened.
func (f *File) Entry() *Entry { return f.entry }

// Close makes later reads fail; those under way end as if it were open.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return errs.E(errs.Invalid, "close", f.entry.Path, fs.ErrClosed)
	}
	f.leaveLocal()
	f.leaveFilling()
	return nil
}

// ReadAt is ReadAtContext without a context; Config.ReadRetryFor bounds it.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	return f.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext fills p with the bytes at off, as io.ReaderAt says: it is
// short only with an error, which is io.EOF at the file's end. While no worker
// can serve, it tries again until ctx ends or Config.ReadRetryFor has passed.
// errs.Stale means that this version cannot be read any more.
func (f *File) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, _, err := f.read(ctx, p, off, false)
	return n, err
}

// read is ReadAtContext. With leave the bytes may stay where they are: if at
// is not nil, all of them are in there and p was not filled.
func (f *File) read(ctx context.Context, p []byte, off int64, leave bool) (n int, at *Filling, err error) {
	switch {
	case f.closed.Load():
		return 0, nil, errs.E(errs.Invalid, "read", f.entry.Path, fs.ErrClosed)
	case off < 0:
		return 0, nil, errs.E(errs.Invalid, "read", f.entry.Path, fmt.Errorf("offset %d is negative", off))
	case len(p) == 0:
		return 0, nil, nil
	case off >= f.entry.Size:
		return 0, nil, io.EOF
	}
	var atEnd error
	if left := f.entry.Size - off; int64(len(p)) > left {
		p, atEnd = p[:left], io.EOF
	}
	if f.readLocal(p, off) {
		return len(p), nil, atEnd
	}
	n, at, err = f.readPieces(ctx, time.Now().Add(f.c.cfg.ReadRetryFor.Std()), p, off, leave)
	if err == nil {
		f.seekLocal(int64(n))
		f.seekFilling(n)
		return n, at, atEnd
	}
	kind := errs.KindOf(err)
	switch {
	case ctx.Err() != nil:
		kind = errs.KindOf(ctx.Err())
	case kind == errs.NotFound:
		kind = errs.Stale // it was there when it was opened
	}
	if kind == errs.Stale {
		f.c.entries.Remove(f.entry.Path)
		f.c.doubted.Add(f.entry.Path, struct{}{})
		return n, nil, errs.E(kind, "read", f.entry.Path, err).WithHint("it has changed or was deleted since it was opened: open it again")
	}
	return n, nil, errs.E(kind, "read", f.entry.Path, err)
}

// readPieces fills p from as many workers as own it, trying again until the
// time is over. It returns how many bytes from the front are filled. What is
// one piece may be left in a local file.
func (f *File) readPieces(ctx context.Context, until time.Time, p []byte, off int64, leave bool) (n int, at *Filling, err error) {
	g := f.entry.geometry()
	whole := block.Extent{Offset: off, Length: int64(len(p))}
	if first := nextPiece(g, whole); first == whole {
		if at, err = f.placePiece(ctx, until, p, off, leave); err != nil {
			return 0, nil, err
		}
		return len(p), at, nil
	}
	type part struct {
		e   block.Extent
		err error
	}
	var parts []*part
	var group errgroup.Group
	group.SetLimit(f.c.cfg.ReadParallel)
	for rest := whole; !rest.IsEmpty(); {
		one := &part{e: nextPiece(g, rest)}
		parts = append(parts, one)
		rest = block.Extent{Offset: one.e.End(), Length: rest.End() - one.e.End()}
		group.Go(func() error {
			start := one.e.Offset - off
			_, one.err = f.placePiece(ctx, until, p[start:start+one.e.Length], one.e.Offset, false)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, nil, err
	}
	for _, one := range parts {
		if one.err != nil {
			return n, nil, one.err
		}
		n += int(one.e.Length)
	}
	return n, nil, nil
}

// nextPiece cuts the first piece off e: within one block, not too long, and
// ending at a page's end, so that whole pages can be checked.
func nextPiece(g block.Geometry, e block.Extent) block.Extent {
	end := min(e.End(), g.Block(g.BlockOf(e.Offset)).End())
	if e.Offset+pieceSize < end {
		end = (e.Offset + pieceSize) / block.PageSize * block.PageSize
	}
	return block.Extent{Offset: e.Offset, Length: end - e.Offset}
}

func (e *Entry) geometry() block.Geometry {
	return block.Geometry{Length: e.Size, BlockSize: e.BlockSize}
}

// piece is a read of bytes of one block.
type piece struct {
	key block.Key
	p   []byte
	off int64
	// in is the local file whose bytes need not come; nil if all are to.
	// inPlace says that they are in there and p was not filled.
	in      *Filling
	inPlace bool
}

// readPiece reads bytes of one block from the first of its owners that can
// serve them. The first attempt, which is nearly always the last, allocates
// nothing.
func (f *File) readPiece(ctx context.Context, until time.Time, r *piece) error {
	key := r.key
	t := f.ticket.Load()
	m, _ := f.c.members.now()
	var first, said error
	if m != nil && !nearsEnd(t, time.Now()) {
		if w := f.route(m, key); w != nil && f.c.workers.worthTrying(w.id) {
			if first = f.try(ctx, until, w, t, r, m); first == nil {
				return nil
			}
			if ctx.Err() == nil && !failover(first) && !refused(first, t) {
				return first
			}
			said = errs.Wrap(first, "from worker", string(w.id))
		}
	}
	budget, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if refused(first, t) {
		if f.renewRefused(budget, t) == nil {
			return first
		}
		return f.readSlowly(budget, until, r, true, said)
	}
	return f.readSlowly(budget, until, r, false, said)
}

// route is where the reads of a block go first.
type route struct {
	at    *membership
	index uint32
	until time.Time // then another one is to be found; zero: at the next membership
	to    *member   // nil if nobody who is believed to answer owns it
}

// owners returns who to ask for a block, best first: its first n owners, and before
// them the worker of this host that is to keep a file as a replica, if it is one
// that is placed whole; of a hot block, one of those that serve it.
func (f *File) owners(m *membership, key block.Key, n int, doubtful func(block.WorkerID) bool) []member {
	unsettled := f.ticket.Load().Unsettled
	keep := !f.entry.Spread && !unsettled && m.placement.PlacesWhole(f.entry.Size)
	servers := m.servers(key, f.entry.Size)
	list := m.owners(key, f.entry.Size, max(n, servers), doubtful, keep)
	if servers < 2 || unsettled || len(list) == 0 || list[0].replica {
		return list
	}
	return m.spread(list, key, f.entry.Size, doubtful)
}

// route returns the first owner of a block; nil if it should not be asked.
func (f *File) route(m *membership, key block.Key) *member {
	if r := f.routed.Load(); r != nil && r.at == m && r.index == key.Index && (r.until.IsZero() || time.Now().Before(r.until)) {
		return r.to
	}
	r := &route{at: m, index: key.Index}
	if m.servers(key, f.entry.Size) > 1 {
		r.until = m.hotUntil
	}
	if owners := f.owners(m, key, f.c.cfg.Owners, never); len(owners) > 0 && owners[0].believed() {
		r.to = &owners[0]
	}
	f.routed.Store(r)
	return r.to
}

func never(block.WorkerID) bool { return false }

// refused reports whether a worker may have refused the ticket because its
// time is over by the worker's clock. The under-store's refusal looks the same.
func refused(err error, t *block.Ticket) bool {
	return errs.KindOf(err) == errs.Permission && !t.Expiry.IsZero()
}

// readSlowly tries the owners of a block in turn, more of them each time, until
// one serves it or ctx ends. A ticket that is refused is renewed once, unless it just was. last is
// what an attempt before said; nil if there was none.
func (f *File) readSlowly(ctx context.Context, until time.Time, r *piece, renewed bool, last error) error {
	c := f.c
	var wait pause
	for round := 1; ; round++ {
		t, err := f.validTicket(ctx)
		if err != nil {
			return err
		}
		m, news, err := c.members.wait(ctx)
		if err != nil {
			return errors.Join(err, last)
		}
		owners := f.owners(m, r.key, round*c.cfg.Owners, c.workers.doubtful)
		if len(owners) == 0 {
			last = errs.E(errs.Unavailable, "", "", errors.New("no worker is registered"))
		}
		for i := range owners {
			w := &owners[i]
			err := f.try(ctx, until, w, t, r, m)
			if refused(err, t) && !renewed && ctx.Err() == nil {
				renewed = true
				if again := f.renewRefused(ctx, t); again != nil {
					t = again
					err = f.try(ctx, until, w, t, r, m)
				}
			}
			switch {
			case err == nil:
				return nil
			case ctx.Err() == nil && !failover(err):
				return err
			}
			over := ctx.Err() != nil || !time.Now().Before(until)
			if !over || last == nil { // the end of the time says less than a failure before it
				last = errs.Wrap(err, "from worker", string(w.id))
			}
			if over {
				break
			}
		}
		if !wait.wait(ctx, news) {
			return spent(ctx, last)
		}
	}
}

// renewRefused returns a ticket that is good for longer than one that a worker
// refused; nil if there is none, so that the refusal stands.
func (f *File) renewRefused(ctx context.Context, t *block.Ticket) *block.Ticket {
	now := f.ticket.Load()
	if now == t {
		if f.replaced.Load() || f.renew(ctx) != nil {
			return nil // the worker's refusal says more
		}
		now = f.ticket.Load()
	}
	if !now.Expiry.IsZero() && !now.Expiry.After(t.Expiry) {
		return nil
	}
	return now
}

// spent is the error of a read whose time is over; last is what the last
// attempt said.
func spent(ctx context.Context, last error) error {
	if last == nil {
		last = ctx.Err()
	}
	if kind := errs.KindOf(last); kind == errs.Canceled || kind == errs.Unknown {
		return errs.E(errs.KindOf(ctx.Err()), "", "", last)
	}
	return last
}

// try reads from w, and from another owner as well if w is slow.
func (f *File) try(ctx context.Context, until time.Time, w *member, t *block.Ticket, r *piece, m *membership) error {
	began := time.Now()
	if latest := began.Add(f.c.cfg.ReadTimeout.Std()); latest.Before(until) {
		until = latest
	}
	x, err := f.c.workers.get(w)
	if err != nil {
		return err
	}
	a := f.c.attempts.begin(ctx, until)
	defer a.end()
	f.c.hedges.earn()
	watched := len(m.placement.Workers) > 1
	if watched {
		a.watch(hedgedRead{f: f, from: x, t: t, key: r.key, p: r.p, off: r.off, began: began}, until)
	}
	err = f.c.workers.readAt(a, x, t, r, m.placement.Epoch, w.replica) //nolint:contextcheck // a is made of ctx
	if watched {
		err = a.settle(err)
	}
	if err != nil && a.Err() != nil && !time.Now().Before(until) && errs.KindOf(err) == errs.Timeout {
		return errs.E(errs.Timeout, "", "", fmt.Errorf("no answer within %v: %w", until.Sub(began).Round(time.Millisecond), err)).
			WithHint("is the under-store slow, or out of the worker's reach?")
	}
	return err
}

// nearsEnd reports whether a ticket is to be renewed.
func nearsEnd(t *block.Ticket, now time.Time) bool {
	return !t.Expiry.IsZero() && !now.Before(t.Expiry.Add(-renewBefore))
}

// validTicket returns the ticket to read with, and sees to it that it is
// renewed in time.
func (f *File) validTicket(ctx context.Context) (*block.Ticket, error) {
	t, now := f.ticket.Load(), time.Now()
	if !nearsEnd(t, now) {
		return t, nil
	}
	if !expired(t, now) {
		f.renewLater()
		return t, nil
	}
	if f.replaced.Load() {
		return nil, errs.E(errs.Stale, "", "", errors.New("the ticket has expired, and the path has another version"))
	}
	err := f.renew(ctx)
	t = f.ticket.Load()
	// Workers take a ticket for a while after its expiry.
	if err != nil && (t.ExpiredAt(now) || errs.KindOf(err) == errs.Stale) {
		return nil, errs.Wrap(err, "renew the ticket", "")
	}
	return t, nil
}

// renewLater starts a renewal beside the reads, unless one was tried a moment
// ago or too many are under way.
func (f *File) renewLater() {
	now, last := f.c.clock.now(), f.renewed.Load()
	if f.replaced.Load() || now-last < int64(renewEvery) || !f.renewed.CompareAndSwap(last, now) {
		return
	}
	f.c.background(func(ctx context.Context) {
		// A failure is tried again later; the ticket is still valid.
		_ = f.renew(ctx)
	})
}

// renew gets a new ticket for the same version. If the path has another one,
// it is errs.Stale.
func (f *File) renew(ctx context.Context) error {
	e, err := f.c.Stat(ctx, f.entry.Path, StatOptions{WithTicket: true})
	switch {
	case errs.KindOf(err) == errs.NotFound, err == nil && e.FileID != f.entry.FileID:
		f.replaced.Store(true)
		return errs.E(errs.Stale, "", "", nil)
	case err != nil:
		return err
	case e.Ticket == nil:
		return errs.E(errs.Internal, "", "", errors.New("the master gave no ticket"))
	}
	f.ticket.Store(e.Ticket)
	return nil
}
