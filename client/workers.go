package client

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/doubt"
	"millrace/internal/errs"
)

const (
	// probeFor is how long a worker that is slow may take to say hello, and how
	// often it is asked for it.
	probeFor = time.Second
	// redialAfter keeps readers from dialing a dead worker one by one.
	redialAfter = 100 * time.Millisecond
	// idleTicketBytes bounds the tickets of idle handles on a connection.
	idleTicketBytes = 4 << 20
	ticketOverhead  = 128 // of a ticket beside its texts, in bytes
	// smallFile is up to which length a file is registered and read with one
	// request.
	smallFile = 1 << 20
)

// workers are the connections to the workers, by worker.
type workers struct {
	cfg    *Config
	bootID string // of this host; empty if unknown
	log    *slog.Logger

	mu     sync.Mutex
	byID   map[block.WorkerID]*worker
	closed bool
}

func newWorkers(cfg *Config, bootID string, log *slog.Logger) *workers {
	return &workers{cfg: cfg, bootID: bootID, log: log, byID: make(map[block.WorkerID]*worker)}
}

// worker is one worker at one set of addresses.
type worker struct {
	member

	slots []*slot
	next  atomic.Uint32

	doubt   doubt.Doubt
	history history
	probed  atomic.Int64 // when it was probed last, by the client's clock
	mute    atomic.Bool  // it did not say hello then, and has answered nothing since
}

// get returns the worker that m describes.
func (w *workers) get(m *member) (*worker, error) {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil, errs.E(errs.Canceled, "", "", errors.New("the client is closed"))
	}
	old := w.byID[m.id]
	if old != nil && old.sameAddresses(m) {
		w.mu.Unlock()
		return old, nil
	}
	fresh := &worker{member: *m, slots: make([]*slot, w.cfg.TCPConnections)}
	if w.local(m) {
		fresh.slots = make([]*slot, w.cfg.UnixConnections)
	}
	for i := range fresh.slots {
		fresh.slots[i] = &slot{turn: make(chan struct{}, 1)}
	}
	w.byID[m.id] = fresh
	w.mu.Unlock()
	if old != nil {
		old.close()
	}
	return fresh, nil
}

func (w *worker) sameAddresses(m *member) bool {
	return w.data == m.data && w.unix == m.unix && w.bootID == m.bootID
}

// local reports whether m is on this host and its socket can be seen: equal
// boot IDs alone do not tell, for containers share them.
func (w *workers) local(m *member) bool {
	if !w.sameHost(m) {
		return false
	}
	info, err := os.Stat(m.unix)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

// sameHost reports whether m says that it is on this host.
func (w *workers) sameHost(m *member) bool {
	return m.unix != "" && w.bootID != "" && m.bootID == w.bootID
}

// keep closes the connections to workers that are no longer members.
func (w *workers) keep(m *membership) {
	w.mu.Lock()
	var gone []*worker
	for id, x := range w.byID {
		if _, ok := m.members[id]; !ok {
			gone = append(gone, x)
			delete(w.byID, id)
		}
	}
	w.mu.Unlock()
	for _, x := range gone {
		x.close()
	}
}

func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	all := w.byID
	w.byID = make(map[block.WorkerID]*worker)
	w.mu.Unlock()
	for _, x := range all {
		x.close()
	}
}

// find returns a worker that was asked before; nil if it was not.
func (w *workers) find(id block.WorkerID) *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byID[id]
}

// doubtful reports whether a request to the worker failed a moment ago.
func (w *workers) doubtful(id block.WorkerID) bool {
	x := w.find(id)
	return x != nil && x.doubt.Now()
}

// silent reports whether the worker did not even say hello when it was last
// probed, nor has answered since.
func (w *workers) silent(id block.WorkerID) bool {
	x := w.find(id)
	return x != nil && x.mute.Load()
}

// worthTrying reports whether a read is to go to the worker first.
func (w *workers) worthTrying(id block.WorkerID) bool {
	x := w.find(id)
	return x == nil || x.doubt.Try()
}

// probe finds out whether a worker is there at all, by a connection of its own:
// one that does not even say hello will not answer what it was asked.
func (w *workers) probe(ctx context.Context, x *worker) {
	within, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	c, err := w.dial(within, &x.member)
	switch {
	case err == nil:
		_ = c.Close() // it waits for its goroutine
		x.mute.Store(false)
	case ctx.Err() == nil:
		x.mute.Store(true)
		x.doubt.Failed()
	}
}

func (w *worker) close() {
	for _, s := range w.slots {
		s.close()
	}
}

// readAt reads from the worker x, on one of its connections. With replica, x is
// to keep a replica.
func (w *workers) readAt(ctx context.Context, x *worker, t *block.Ticket, r *piece, epoch uint64, replica bool) error {
	began := time.Now()
	c, err := x.slot(t).get(ctx, w, &x.member)
	if err == nil {
		o := blockio.ReadOptions{Priority: blockio.PriorityRead, PlacementEpoch: epoch, Replica: replica}
		if r.in != nil && r.in.worker == x.id && c.places {
			r.inPlace, err = c.readInPlace(ctx, t, r, o)
		} else {
			err = c.readAt(ctx, t, r.p, r.off, o)
		}
	}
	if err == nil {
		x.history.note(len(r.p), time.Since(began))
	}
	x.judge(ctx, err)
	return err
}

// judge notes how a request to the worker ended.
func (w *worker) judge(ctx context.Context, err error) {
	switch {
	case err == nil:
		w.doubt.Answered()
		if w.mute.Load() {
			w.mute.Store(false)
		}
	case failover(err) && ctx.Err() == nil || errs.KindOf(err) == errs.Timeout:
		w.doubt.Failed()
	}
}

// errPassesNone is said of a worker whose connection passes no descriptors:
// its socket cannot be seen from here, or it does not trust this user.
var errPassesNone = errors.New("it passes no descriptors to this process")

// descriptor asks the worker, which is on this host, for the file's
// descriptor. That it has none to give says nothing about the worker.
func (w *workers) descriptor(ctx context.Context, m *member, t *block.Ticket, o blockio.DescriptorOptions) (*os.File, int64, error) {
	x, err := w.get(m)
	if err != nil {
		return nil, 0, err
	}
	c, err := x.slot(t).get(ctx, w, m)
	if err != nil {
		x.judge(ctx, err)
		return nil, 0, err
	}
	if !c.passes {
		return nil, 0, errs.E(errs.Unsupported, "", "", errPassesNone)
	}
	return c.descriptor(ctx, t, o)
}

// touch tells a worker which files were used through descriptors.
func (w *workers) touch(ctx context.Context, id block.WorkerID, touches []blockio.Touch) error {
	c, err := w.first(ctx, id)
	if err != nil {
		return err
	}
	return c.Touch(ctx, touches)
}

// first returns the first connection to a worker, if it is still there.
func (w *workers) first(ctx context.Context, id block.WorkerID) (*dataConn, error) {
	x := w.find(id)
	if x == nil {
		return nil, errs.E(errs.Unavailable, "", "", errors.New("it has left"))
	}
	return x.slots[0].get(ctx, w, &x.member)
}

// recalls asks a worker which descriptors it wants back.
func (w *workers) recalls(ctx context.Context, id block.WorkerID, since uint64) (blockio.Recalls, error) {
	c, err := w.first(ctx, id)
	if err != nil {
		return blockio.Recalls{}, err
	}
	return c.Recalls(ctx, since)
}

// slot returns the connection to read a file on: always the same one for a
// small file, so that it is registered once, and each in turn for a large one,
// whose reads are worth more than one connection carries.
func (w *worker) slot(t *block.Ticket) *slot {
	if t.Length <= pieceSize {
		return w.slots[int(t.FileID[len(t.FileID)-1])%len(w.slots)]
	}
	return w.slots[int(w.next.Add(1))%len(w.slots)]
}

// dial connects to a worker: through its socket if it is on this host.
func (w *workers) dial(ctx context.Context, m *member) (*dataConn, error) {
	cfg := blockio.DefaultClientConfig()
	cfg.BootID, cfg.Peer = w.bootID, m.data
	var c *blockio.Conn
	var err error
	if w.local(m) {
		c, err = blockio.Dial(ctx, "unix", m.unix, cfg)
	}
	if c == nil { // its socket may be out of reach, as from a container
		c, err = blockio.Dial(ctx, "tcp", m.data, cfg)
	}
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Kind == errs.Unavailable {
		return nil, e.WithHint("is the worker running? millrace status tells")
	}
	if err != nil {
		return nil, err
	}
	if id := c.Hello().WorkerID; id != m.id {
		_ = c.Close() // the mistake says more
		return nil, errs.E(errs.Unavailable, "connect to", m.data, fmt.Errorf("worker %s answers, not %s", id, m.id))
	}
	d := newDataConn(c, w.cfg.IdleHandles)
	d.passes = c.Hello().Features&blockio.FeatureFD != 0
	d.places = c.Hello().Features&blockio.FeatureInPlace != 0
	return d, nil
}

// slot is a place for one connection, which is dialed when it is needed.
type slot struct {
	turn   chan struct{} // held by who looks at the fields below
	conn   *dataConn
	failed time.Time
	err    error // of the last dial
	closed bool
}

func (s *slot) get(ctx context.Context, w *workers, m *member) (*dataConn, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, errs.E(errs.KindOf(ctx.Err()), "", "", ctx.Err())
	}
	defer func() { <-s.turn }()
	if s.closed {
		return nil, errs.E(errs.Unavailable, "", "", errors.New("the worker has other addresses now"))
	}
	if s.conn != nil {
		select {
		case <-s.conn.Done():
			_ = s.conn.Close() // it is over; this waits for its goroutines
			s.conn = nil
		default:
			return s.conn, nil
		}
	}
	if s.err != nil && time.Since(s.failed) < redialAfter {
		return nil, s.err
	}
	c, err := w.dial(ctx, m)
	if err != nil {
		if ctx.Err() == nil { // else it says nothing about the worker
			s.failed, s.err = time.Now(), err
		}
		return nil, err
	}
	s.conn, s.err = c, nil
	return c, nil
}

func (s *slot) close() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.closed = true
	if s.conn != nil {
		_ = s.conn.Close() // reads under way fail and go elsewhere
		s.conn = nil
	}
}

// wire is what is used of a *blockio.Conn.
type wire interface {
	Open(ctx context.Context, t *block.Ticket) (uint32, error)
	OpenRead(ctx context.Context, t *block.Ticket, p []byte, off int64, o blockio.ReadOptions) (handle uint32, err error)
	CloseHandle(handle uint32)
	ReadAt(ctx context.Context, handle uint32, p []byte, off int64, o blockio.ReadOptions) (int, error)
	passing
	Close() error
	Done() <-chan struct{}
}

// passing is what of it is about local files.
type passing interface {
	Descriptor(ctx context.Context, handle uint32, o blockio.DescriptorOptions) (f *os.File, base int64, err error)
	PartialDescriptor(ctx context.Context, handle uint32) (f *os.File, base int64, mark uint64, err error)
	ReadInPlace(ctx context.Context, handle uint32, p []byte, off int64, mark uint64, o blockio.ReadOptions) (inPlace bool, err error)
	Touch(ctx context.Context, touches []blockio.Touch) error
	Recalls(ctx context.Context, since uint64) (blockio.Recalls, error)
}

// dataConn is a connection and the files that are registered on it. A file is
// registered by its first read, and stays so for the reads to come until
// too many others are idle.
type dataConn struct {
	wire
	maxIdle int
	passes  bool // descriptors
	places  bool // those of files that still fill

	mu        sync.Mutex
	handles   map[block.FileID]*handle
	idle      *list.List // of *handle, the one used last in front
	idleBytes int
}

type handle struct {
	file   block.FileID
	expiry time.Time // of the ticket it was registered with
	bytes  int       // of the ticket, about
	opened chan struct{}

	// id and err are written before opened is closed.
	id  uint32
	err error

	// Guarded by dataConn.mu.
	users    int
	detached bool          // not in handles any more: closed by its last user
	elem     *list.Element // in idle
}

func newDataConn(w wire, maxIdle int) *dataConn {
	return &dataConn{wire: w, maxIdle: maxIdle, handles: make(map[block.FileID]*handle), idle: list.New()}
}

func (c *dataConn) readAt(ctx context.Context, t *block.Ticket, p []byte, off int64, o blockio.ReadOptions) error {
	first := firstRead{p: p, off: off, o: o}
	h, err := c.acquire(ctx, t, &first)
	if err != nil {
		return err
	}
	defer c.release(h)
	if first.done {
		return nil
	}
	n, err := c.ReadAt(ctx, h.id, p, off, o)
	if err == nil && n < len(p) {
		err = errs.E(errs.Corrupt, "read", "", fmt.Errorf("%d bytes came, %d were asked for", n, len(p)))
	}
	return err
}

func (c *dataConn) descriptor(ctx context.Context, t *block.Ticket, o blockio.DescriptorOptions) (*os.File, int64, error) {
	h, err := c.acquire(ctx, t, nil)
	if err != nil {
		return nil, 0, err
	}
	defer c.release(h)
	return c.Descriptor(ctx, h.id, o)
}

// firstRead is a read that goes with the registration of a file that is not
// registered yet, if the file is small: others who want it wait for both.
type firstRead struct {
	p    []byte
	off  int64
	o    blockio.ReadOptions
	done bool
}

// open registers the ticket's file, with its first read where there is one.
func (c *dataConn) open(ctx context.Context, t *block.Ticket, first *firstRead) (uint32, error) {
	if first != nil && t.Length <= smallFile {
		id, err := c.OpenRead(ctx, t, first.p, first.off, first.o)
		if !errors.Is(err, errs.Unsupported) {
			first.done = err == nil
			return id, err
		}
	}
	return c.Open(ctx, t)
}

// acquire returns a handle for the ticket's file, which release gives back.
// first may be nil.
func (c *dataConn) acquire(ctx context.Context, t *block.Ticket, first *firstRead) (*handle, error) {
	for {
		h, mine := c.find(t)
		if mine {
			h.id, h.err = c.open(ctx, t, first)
			close(h.opened)
		} else {
			select {
			case <-h.opened:
			case <-ctx.Done():
				c.release(h)
				return nil, errs.E(errs.KindOf(ctx.Err()), "", "", ctx.Err())
			}
		}
		if h.err == nil {
			return h, nil
		}
		c.release(h)
		// Another reader gave up while it opened the file for us.
		kind := errs.KindOf(h.err)
		if !mine && ctx.Err() == nil && (kind == errs.Canceled || kind == errs.Timeout) {
			continue
		}
		return nil, h.err
	}
}

// find returns the file's handle with one user more. mine is true for who has
// to open it.
func (c *dataConn) find(t *block.Ticket) (h *handle, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h = c.handles[t.FileID]; h != nil && !h.expiry.Before(t.Expiry) {
		if h.elem != nil {
			c.idle.Remove(h.elem)
			h.elem = nil
			c.idleBytes -= h.bytes
		}
		h.users++
		return h, false
	}
	if h != nil {
		c.detach(h) // registered with a ticket that ends earlier
	}
	h = &handle{
		file: t.FileID, expiry: t.Expiry, bytes: len(t.Path) + len(t.Tag) + ticketOverhead,
		opened: make(chan struct{}), users: 1,
	}
	c.handles[t.FileID] = h
	return h, true
}

func (c *dataConn) release(h *handle) {
	failed := false
	select {
	case <-h.opened:
		failed = h.err != nil
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.users--
	if failed && !h.detached {
		c.detach(h)
	}
	switch {
	case h.users > 0:
	case h.detached:
		if !failed {
			c.CloseHandle(h.id)
		}
	default:
		h.elem = c.idle.PushFront(h)
		c.idleBytes += h.bytes
		for c.idle.Len() > c.maxIdle || c.idleBytes > idleTicketBytes {
			oldest, _ := c.idle.Back().Value.(*handle)
			c.detach(oldest)
		}
	}
}

// detach takes h out of handles, and closes it if nobody uses it. The caller
// holds c.mu.
func (c *dataConn) detach(h *handle) {
	if c.handles[h.file] == h {
		delete(c.handles, h.file)
	}
	h.detached = true
	if h.elem != nil {
		c.idle.Remove(h.elem)
		h.elem = nil
		c.idleBytes -= h.bytes
		c.CloseHandle(h.id)
	}
}

// failover reports whether another worker may do better.
func failover(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Timeout, errs.Canceled, errs.Throttled, errs.Corrupt, errs.NoSpace, errs.Busy, errs.Internal, errs.Unknown:
		return true
	default:
		return false
	}
}
