package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

const (
	// maxTouched bounds the files of one notice; uses of more are not told.
	maxTouched = 8192
	// askTimeout bounds the question for a descriptor: a worker that hangs must
	// not delay who wants what it may not even have. One that says no is not
	// asked again for a while: that a file is not cached whole may be over soon,
	// that it is not handed out is not.
	askTimeout   = time.Second
	askAgain     = time.Second
	askAgainLate = 15 * time.Second
	maxRefusals  = 4096
	// prepareParallel is how many descriptors are asked for at once that nobody
	// waits for.
	prepareParallel = 16
	maxDescriptors  = 16384
	// otherFiles is what a process has open beside descriptors.
	otherFiles = 512
)

// Descriptor is an open file of this host that holds all bytes of one version
// of a file. It is shared by all who read that version: they read at offsets,
// and do not seek, close or change it. The bytes are the local disk's word;
// they stay readable until Close whatever becomes of worker and cache.
type Descriptor struct {
	File   *os.File
	Base   int64 // where in File the bytes begin
	Length int64 // of the version

	of     *descriptors
	shared *sharedFile
	fresh  bool
	closed atomic.Bool
}

// IsFresh reports whether nobody used the descriptor before.
func (d *Descriptor) IsFresh() bool { return d.fresh }

// FD returns the number of the descriptor, good until Close.
func (d *Descriptor) FD() int { return int(d.File.Fd()) }

// Extent says which bytes of the local file are the version.
func (d *Descriptor) Extent() (base, length int64) { return d.Base, d.Length }

// Close gives the descriptor back. It is idempotent.
func (d *Descriptor) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.of.release(d.shared)
}

// Count tells that n bytes were read through File, for the cluster's counters.
func (d *Descriptor) Count(n int64) { d.of.bytes.Add(n) }

// readAt fills p from the version's bytes at off.
func (d *Descriptor) readAt(p []byte, off int64) error {
	n, err := d.File.ReadAt(p, d.Base+off)
	if n < len(p) {
		return fmt.Errorf("%d of %d bytes at %d of a cached file: %w", n, len(p), off, err)
	}
	d.Count(int64(n))
	return nil
}

// sharedFile is one descriptor and who uses it.
type sharedFile struct {
	id     block.FileID
	worker block.WorkerID // that handed it out
	file   *os.File
	base   int64
	length int64
	round  int64     // descriptors.rounds before the worker was asked
	came   time.Time // from the worker

	// Guarded by descriptors.mu.
	keeper     *keeper // once it is in descriptors.files
	used       bool    // by anybody
	users      int
	recalled   bool        // not kept when its last user leaves
	gone       bool        // not to be found any more: its last user closes it
	prev, next *sharedFile // in descriptors.idle; nil while it is used
	idleAt     time.Time
}

// refusal is why a file had no descriptor a moment ago.
type refusal struct {
	err   error
	until time.Time
}

type touched struct {
	worker block.WorkerID
	count  uint32
}

// descriptors keeps the descriptors that workers of this host handed out: at
// most limit of them, those that nobody uses for a while.
type descriptors struct {
	limit    int // 0: short-circuit is off
	clock    clock
	log      *slog.Logger
	bytes    atomic.Int64 // read through descriptors
	refusals *lru.Cache[block.FileID, refusal]

	rounds atomic.Int64  // answers of workers that recalled something
	wake   chan struct{} // there is a worker that was not asked yet what it recalls

	mu      sync.Mutex
	keepers map[block.WorkerID]*keeper
	files   map[block.FileID]*sharedFile
	idle    sharedFile // the ends of a list: next is the one used last, prev the one that was longest not
	asked   int        // questions under way, each of which may bring one
	touches map[block.FileID]touched
	lent    map[*Filling]*File // they count as questions under way
	closed  bool
}

func newDescriptors(cfg *Config, clock clock, log *slog.Logger) (*descriptors, error) {
	refusals, err := lru.New[block.FileID, refusal](maxRefusals)
	if err != nil {
		return nil, errs.E(errs.Internal, "client", "", err)
	}
	s := &descriptors{
		limit: cfg.Descriptors, clock: clock, log: log, refusals: refusals,
		wake: make(chan struct{}, 1), keepers: make(map[block.WorkerID]*keeper),
		files: make(map[block.FileID]*sharedFile), touches: make(map[block.FileID]touched),
		lent: make(map[*Filling]*File),
	}
	s.idle.prev, s.idle.next = &s.idle, &s.idle
	switch {
	case !cfg.ShortCircuit:
		s.limit = 0
	case s.limit == 0:
		s.limit = defaultDescriptors()
	}
	return s, nil
}

// defaultDescriptors is a quarter of the files that this process may have
// open, the first few apart, which connections and its other users need. That
// may be none.
func defaultDescriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return shareOfFiles(limit.Cur)
}

func shareOfFiles(limit uint64) int {
	return int(min((max(limit, otherFiles)-otherFiles)/4, maxDescriptors))
}

// Descriptor returns a descriptor of the version that f reads, if a worker of
// this host has all of it. Each call counts as one use of the file for the
// cache's replacement, and the caller closes what it got.
//
// errs.NotCached: not all of it is cached here yet; ask again later.
// errs.Unsupported: it will not be handed out, so that it is read through the
// worker. errs.Timeout: the worker did not answer within a second, or ctx
// ended. Answers are remembered for a moment. Other errors are the worker's.
func (f *File) Descriptor(ctx context.Context) (*Descriptor, error) {
	return f.descriptor(ctx, blockio.DescriptorOptions{})
}

// FillDescriptor is Descriptor for who is about to read all of the file: if it
// has at most one page, and is to be cached on this host, it is fetched first,
// as far as that is done within the second. What is fetched then is what reads
// would have.
func (f *File) FillDescriptor(ctx context.Context) (*Descriptor, error) {
	return f.descriptor(ctx, blockio.DescriptorOptions{Fill: true})
}

func (f *File) descriptor(ctx context.Context, o blockio.DescriptorOptions) (*Descriptor, error) {
	const op = "open the cached file of"
	switch {
	case f.closed.Load():
		return nil, errs.E(errs.Invalid, op, f.entry.Path, os.ErrClosed)
	case f.entry.Size == 0:
		return nil, errs.E(errs.Unsupported, op, f.entry.Path, errors.New("it is empty"))
	}
	s := f.c.descriptors
	d, err := s.take(f.entry.FileID)
	if d == nil && err == nil {
		d, err = f.askDescriptor(ctx, o)
	}
	if err != nil {
		return nil, errs.Wrap(err, op, f.entry.Path)
	}
	f.looked.Store(false) // the next read finds it
	return d, nil
}

// askDescriptor asks the worker; take has made room for the answer.
func (f *File) askDescriptor(ctx context.Context, o blockio.DescriptorOptions) (*Descriptor, error) {
	within := f.c.attempts.begin(ctx, time.Now().Add(askTimeout))
	defer within.end()
	shared := f.c.descriptors.question(f.entry)
	err := f.fetchDescriptor(within, shared, o) //nolint:contextcheck // within is made of ctx
	return f.c.descriptors.answered(shared, err, ctx.Err() == nil)
}

// PrepareDescriptors gets the descriptors of files that are likely to be opened
// soon, as far as workers of this host have them and there is room, beside the
// caller and many at once. Files of at most a page are fetched for it, as by
// FillDescriptor. It is a hint: errors are nobody's.
func (c *Client) PrepareDescriptors(entries []*Entry) {
	ahead := blockio.DescriptorOptions{Fill: true, Priority: blockio.PriorityLoad}
	c.background(func(ctx context.Context) {
		var group errgroup.Group
		group.SetLimit(prepareParallel)
		for _, e := range entries {
			if e.Dir || e.Size == 0 || e.Ticket == nil || !c.descriptors.reserve(e.FileID) {
				continue
			}
			group.Go(func() error {
				f := &File{c: c, entry: e}
				f.ticket.Store(e.Ticket)
				shared := c.descriptors.question(e)
				within := c.attempts.begin(ctx, time.Now().Add(askTimeout))
				defer within.end()
				err := f.fetchDescriptor(within, shared, ahead) //nolint:contextcheck // within is made of ctx
				c.descriptors.prepared(shared, err, ctx.Err() == nil)
				return nil
			})
		}
		_ = group.Wait() // there are no errors
	})
}

// fetchDescriptor fills in what the first owner on this host hands out. Only the
// first of all owners is to fetch the file for it: the others have it only when
// that one fails, and a replica is filled by reads.
func (f *File) fetchDescriptor(ctx context.Context, to *sharedFile, o blockio.DescriptorOptions) error {
	t, err := f.validTicket(ctx)
	if err != nil {
		return err
	}
	m, _, err := f.c.members.wait(ctx)
	if err != nil {
		return err
	}
	owners := f.owners(m, block.Key{File: f.entry.FileID}, f.c.cfg.Owners, never)
	for i := range owners {
		w := &owners[i]
		if !f.c.workers.sameHost(w) {
			continue
		}
		to.worker = w.id
		o.Fill = o.Fill && i == 0 && !w.replica
		if to.file, to.base, err = f.c.workers.descriptor(ctx, w, t, o); !errors.Is(err, errPassesNone) {
			return err
		}
	}
	return errs.E(errs.Unsupported, "", "", errors.New("no worker of this host, whose socket can be seen, is to have it"))
}

// take returns a descriptor that is there, or why there is none. If both are
// nil, the caller asks the worker, and says so with answered.
func (s *descriptors) take(id block.FileID) (*Descriptor, error) {
	if s.limit == 0 {
		return nil, errs.E(errs.Unsupported, "", "", errors.New("short-circuit reads are off"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.find(id); f != nil {
		return s.use(f), nil
	}
	return nil, s.ask(id)
}

// question is what the answer of a worker will be entered in.
func (s *descriptors) question(e *Entry) *sharedFile {
	return &sharedFile{id: e.FileID, length: e.Size, round: s.rounds.Load()}
}

// ask takes the place of one more descriptor, unless it is known that there
// will be none. The caller holds s.mu.
func (s *descriptors) ask(id block.FileID) error {
	if s.closed {
		return errs.E(errs.Canceled, "", "", errors.New("the client is closed"))
	}
	if r, ok := s.refusals.Get(id); ok && time.Now().Before(r.until) {
		return r.err
	}
	if !s.makeRoom() {
		return errs.E(errs.Unsupported, "", "", fmt.Errorf("all %d descriptors are in use", s.limit))
	}
	s.asked++
	return nil
}

// reserve is take for who wants nothing but that there is one soon: if it is
// true, the caller asks the worker, and says so with prepared.
func (s *descriptors) reserve(id block.FileID) bool {
	if s.limit == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(id) == nil && s.ask(id) == nil
}

// known is take for who would not ask: nil if there is none.
func (s *descriptors) known(id block.FileID) *Descriptor {
	if s.limit == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.find(id); f != nil {
		return s.use(f)
	}
	return nil
}

// find returns the descriptor of a file, unless it is time to ask the worker
// anew. The caller holds s.mu.
func (s *descriptors) find(id block.FileID) *sharedFile {
	f := s.files[id]
	if f != nil && f.users == 0 && !f.keeper.holds(f, time.Now()) {
		s.forget(f)
		return nil
	}
	return f
}

// worthAsking reports whether a worker may have another answer than the last
// one. It takes no lock that questions hold.
func (s *descriptors) worthAsking(id block.FileID) bool {
	if s.limit == 0 {
		return false
	}
	r, ok := s.refusals.Get(id)
	return !ok || !time.Now().Before(r.until)
}

// makeRoom closes the descriptor that was longest not used, if there are too
// many; false if all are used. The caller holds s.mu.
func (s *descriptors) makeRoom() bool {
	for len(s.files)+s.asked >= s.limit {
		oldest := s.idle.prev
		if oldest == &s.idle {
			return false
		}
		s.forget(oldest)
	}
	return true
}

// use adds a user. The caller holds s.mu.
func (s *descriptors) use(f *sharedFile) *Descriptor {
	f.leaveIdle()
	f.users++
	s.touch(f)
	d := &Descriptor{File: f.file, Base: f.base, Length: f.length, of: s, shared: f, fresh: !f.used}
	f.used = true
	return d
}

// touch notes one use. The caller holds s.mu.
func (s *descriptors) touch(f *sharedFile) {
	if t, ok := s.touches[f.id]; ok || len(s.touches) < maxTouched {
		s.touches[f.id] = touched{f.worker, t.count + 1}
	}
}

// answered ends a question: with a descriptor, in the place of which another
// one may have come meanwhile, or with an error, which is remembered if it is
// the worker's.
func (s *descriptors) answered(f *sharedFile, err error, remember bool) (*Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err = s.keep(f, err, remember)
	if err != nil {
		return nil, err
	}
	return s.use(f), nil
}

// prepared is answered for what reserve began. That a file did not come in time
// says nothing about when somebody waits for it.
func (s *descriptors) prepared(f *sharedFile, err error, remember bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err = s.keep(f, err, remember && !errors.Is(err, errs.NotCached))
	switch {
	case err != nil || f.users > 0 || f.next != nil:
	case f.gone:
		_ = f.file.Close() // was only opened
	default:
		s.leave(f)
	}
}

// keep enters what the worker answered, and returns the file's descriptor. The
// caller holds s.mu.
func (s *descriptors) keep(f *sharedFile, err error, remember bool) (*sharedFile, error) {
	s.asked--
	if err != nil {
		if remember {
			wait := askAgain
			if errors.Is(err, errs.Unsupported) {
				wait = askAgainLate
			}
			s.refusals.Add(f.id, refusal{err, time.Now().Add(wait)})
		}
		return nil, err
	}
	s.refusals.Remove(f.id)
	if other := s.files[f.id]; other != nil {
		_ = f.file.Close() // was only opened
		return other, nil
	}
	f.came = time.Now()
	f.recalled = f.round != s.rounds.Load() // perhaps: it was handed out before, or after
	if s.closed {
		f.gone = true
	} else {
		s.files[f.id] = f
		f.keeper = s.keeperOf(f.worker)
		f.keeper.files++
	}
	return f, nil
}

// release takes a user away.
func (s *descriptors) release(f *sharedFile) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.users--
	switch {
	case f.users > 0:
		return nil
	case f.gone:
		return f.file.Close()
	}
	s.leave(f)
	return nil
}

// leave makes f one that nobody uses. The caller holds s.mu.
func (s *descriptors) leave(f *sharedFile) {
	if f.recalled {
		s.forget(f)
		return
	}
	f.idleAt = time.Now()
	f.prev, f.next = &s.idle, s.idle.next
	f.prev.next, f.next.prev = f, f
}

// leaveIdle takes f out of those that nobody uses. The caller holds
// descriptors.mu.
func (f *sharedFile) leaveIdle() {
	if f.next != nil {
		f.prev.next, f.next.prev = f.next, f.prev
		f.prev, f.next = nil, nil
	}
}

// forget makes f not to be found any more, and closes it if nobody uses it.
// The caller holds s.mu.
func (s *descriptors) forget(f *sharedFile) {
	if f.gone {
		return
	}
	f.gone = true
	delete(s.files, f.id)
	f.keeper.files--
	f.leaveIdle()
	if f.users == 0 {
		_ = f.file.Close() // was only read
	}
}

// broken takes a descriptor that does not give its bytes out of use.
func (s *descriptors) broken(d *Descriptor, err error) {
	s.log.Warn("a cached file cannot be read on this host: its worker is asked instead", "file", d.shared.id.String(), "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(d.shared)
	s.refusals.Add(d.shared.id, refusal{errs.E(errs.Unavailable, "", "", err), time.Now().Add(askAgainLate)})
}

// close closes what nobody uses; the rest is closed by its users.
func (s *descriptors) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, f := range s.files {
		s.forget(f)
	}
}
