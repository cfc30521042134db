package cacheworker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/doubt"
	"millrace/internal/errs"
	"millrace/tier"
)

const (
	// peerTries bounds the workers that one flight asks for a block.
	peerTries = 2
	// maxPeers bounds the workers to which there is a connection.
	maxPeers = 256
)

// peers has pages from other workers that cache them: what was cached before
// a worker joined or another was drained comes from there, not from the
// under-store. They are asked for what they have and no more (CACHED_ONLY), so
// that nobody waits for a worker that itself waits for another one. Replicas
// come from the owner of the file, which asks the under-store for what it does
// not have (READ_THROUGH) and no worker that does the same. Whatever
// goes wrong, the under-store is asked; a worker that has nothing says so at
// once.
type peers struct {
	locator  *locator
	tier     *tier.Store
	gate     *gate
	share    *share        // of the gate
	timeout  time.Duration // of one request for chunkSize bytes, connecting included
	config   blockio.ClientConfig
	epoch    func() uint64 // of the placement
	placed   *ownership
	counters *counters
	log      *slog.Logger

	mu     sync.Mutex
	closed bool
	known  map[block.WorkerID]*peer
}

// peer is another worker at one address.
type peer struct {
	address string
	turn    chan struct{} // held by who dials
	doubt   doubt.Doubt

	// Guarded by the lock of peers.
	conn *blockio.Conn // nil: none yet
	used time.Time
}

func newPeers(cfg Config, w *Worker) *peers {
	self := w.identity.current().WorkerID
	config := blockio.DefaultClientConfig()
	config.WorkerID = string(self)
	return &peers{
		locator: newLocator(w.masters.finders, self, cfg.PeerTimeout.Std()/locateShare, w.log),
		tier:    w.tier, gate: w.fetcher.inflight, share: &share{most: int64(cfg.FetchConcurrency)},
		timeout: cfg.PeerTimeout.Std(), config: config,
		epoch:    func() uint64 { return w.placement.Load().GetEpoch() },
		placed:   w.placed,
		counters: w.counters, log: w.log, known: make(map[block.WorkerID]*peer),
	}
}

// fill has pages of the flight from other workers, publishes them, and returns
// the first one that is left for the under-store.
func (p *peers) fill(ctx context.Context, t *block.Ticket, fl *flight) (next int64) {
	geo := t.Geometry()
	for next = fl.first; next < fl.end; {
		index := geo.BlockOf(next * block.PageSize)
		_, end := geo.PageRange(geo.Block(index))
		end = min(end, fl.end)
		key := block.Key{File: t.FileID, Index: uint32(index)}
		var owner block.WorkerID
		if fl.replica {
			owner = p.placed.owner(t, next*block.PageSize)
		}
		holders, owning := p.find(ctx, key, owner)
		rand.Shuffle(len(holders), func(i, j int) { holders[i], holders[j] = holders[j], holders[i] })
		holders = holders[:min(len(holders), peerTries)]
		if owning != nil { // which has it in the end, and asks the under-store once for all
			holders = slices.Insert(holders, 0, owning)
		}
		for _, holder := range holders {
			var err error
			if next, err = p.have(ctx, holder, t, next, end, fl, holder == owning); next == end {
				break
			}
			_, unkept := errors.AsType[*unkeptError](err)
			if unkept || ctx.Err() != nil || errs.KindOf(err) == errs.Timeout { // one wait is enough
				return next
			}
		}
		if next < end {
			return next
		}
	}
	return next
}

// have fills the pages [first, end), of one block, from one worker: what it
// caches, or through it what it does not.
func (p *peers) have(ctx context.Context, from *api.Holder, t *block.Ticket, first, end int64, fl *flight, through bool) (next int64, err error) {
	e := t.Geometry().PagesExtent(first, end)
	h, err := p.tier.Acquire(p.placed.fileOf(t, fl.replica), e)
	if err != nil {
		return first, &unkeptError{err}
	}
	defer h.Release()
	room, err := h.Reserve(e)
	if err != nil {
		return first, &unkeptError{err}
	}
	defer room.Release()
	if err := p.gate.enter(ctx, p.share, e.Length, &fl.urgent); err != nil {
		return first, err
	}
	defer p.gate.leave(p.share, e.Length)

	read := reading{p: p, from: from, t: t, urgent: &fl.urgent, through: through}
	next, err = p.receive(ctx, &read, first, end, func(page int64, data []byte) error {
		if !h.Has(page) {
			if _, err := room.Fill(page, data); err != nil {
				return &unkeptError{err}
			}
		}
		fl.publish(page + 1)
		return nil
	})
	p.count(from, t, t.Geometry().PagesExtent(first, next).Length, err)
	return next, err
}

// receive passes the pages [first, end) to take as they come, and returns the
// first one that it did not pass. The reading is over then.
func (p *peers) receive(ctx context.Context, read *reading, first, end int64, take func(page int64, data []byte) error) (int64, error) {
	buf, ok := chunkBuffers.Get().(*[chunkSize]byte)
	if !ok {
		return first, errs.E(errs.Internal, "", "", errors.New("a foreign buffer in the pool"))
	}
	defer chunkBuffers.Put(buf)
	geo := read.t.Geometry()
	defer read.close()
	for first < end {
		last := min(first+chunkSize/block.PageSize, end)
		e := geo.PagesExtent(first, last)
		if err := read.at(ctx, buf[:e.Length], e.Offset); err != nil {
			return first, err
		}
		for ; first < last; first++ {
			page := geo.Page(first)
			if err := take(first, buf[page.Offset-e.Offset:page.End()-e.Offset]); err != nil {
				return first, err
			}
		}
	}
	return first, nil
}

// reading is a file that is read from another worker.
type reading struct {
	p       *peers
	from    *api.Holder
	t       *block.Ticket
	urgent  *atomic.Int32 // an urgency
	through bool          // it reads through what it does not have
	conn    *blockio.Conn // nil before the first read
	handle  uint32
}

// at fills b with checked bytes, in the time for one request.
func (r *reading) at(ctx context.Context, b []byte, off int64) error {
	timeout := r.p.timeout
	if r.through {
		timeout *= throughPatience
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := r.readAt(within, b, off)
	if ctx.Err() == nil {
		r.p.judge(r.from, err)
	}
	return err
}

func (r *reading) readAt(ctx context.Context, b []byte, off int64) error {
	o := blockio.ReadOptions{CachedOnly: !r.through, ReadThrough: r.through, Checked: true, PlacementEpoch: r.p.epoch()}
	if urgency(r.urgent.Load()) >= urgentLoad {
		o.Priority = blockio.PriorityLoad
	}
	if r.conn != nil {
		_, err := r.conn.ReadAt(ctx, r.handle, b, off, o)
		return err
	}
	conn, err := r.p.connect(ctx, r.from)
	if err != nil {
		return err
	}
	handle, err := conn.OpenRead(ctx, r.t, b, off, o)
	if err == nil {
		r.conn, r.handle = conn, handle
	}
	return err
}

func (r *reading) close() {
	if r.conn != nil {
		r.conn.CloseHandle(r.handle)
	}
}

// connect returns a connection to a worker, which many use at a time.
func (p *peers) connect(ctx context.Context, to *api.Holder) (*blockio.Conn, error) {
	x, err := p.peer(to)
	if err != nil {
		return nil, err
	}
	select {
	case x.turn <- struct{}{}:
		defer func() { <-x.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	conn := x.conn
	p.mu.Unlock()
	if conn != nil {
		select {
		case <-conn.Done():
			_ = conn.Close() // it is over
		default:
			return conn, nil
		}
	}
	conn, err = blockio.Dial(ctx, "tcp", x.address, p.config)
	if err != nil {
		return nil, err
	}
	if id := conn.Hello().WorkerID; string(id) != to.GetId() {
		_ = conn.Close() // the mistake says more
		return nil, errs.E(errs.Unavailable, "connect to", x.address, errors.New("another worker answers"))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.known[block.WorkerID(to.GetId())] != x {
		_ = conn.Close() // nobody else knows it
		return nil, errs.E(errs.Unavailable, "connect to", x.address, errStopping)
	}
	x.conn = conn
	return conn, nil
}

// peer returns what is known of a worker, if it is to be asked now.
func (p *peers) peer(w *api.Holder) (*peer, error) {
	id, now := block.WorkerID(w.GetId()), time.Now()
	var left *blockio.Conn
	defer func() {
		if left != nil {
			_ = left.Close() // it waits for its goroutines
		}
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.known[id]
	switch {
	case p.closed:
		return nil, errStopping
	case x != nil && x.address == w.GetAddresses().GetData():
		if !x.doubt.Try() {
			return nil, errAvoided
		}
		x.used = now
		return x, nil
	case x != nil:
		left = x.conn
	case len(p.known) >= maxPeers:
		oldest := slices.MinFunc(slices.Collect(maps.Keys(p.known)), func(a, b block.WorkerID) int {
			return p.known[a].used.Compare(p.known[b].used)
		})
		left = p.known[oldest].conn
		delete(p.known, oldest)
	}
	x = &peer{address: w.GetAddresses().GetData(), turn: make(chan struct{}, 1), used: now}
	p.known[id] = x
	return x, nil
}

var errAvoided = errs.E(errs.Unavailable, "", "", errors.New("the worker failed a moment ago"))

// judge notes how a request to a worker ended. Only that it does not answer
// says something about it, not what it answers.
func (p *peers) judge(w *api.Holder, err error) {
	p.mu.Lock()
	x := p.known[block.WorkerID(w.GetId())]
	p.mu.Unlock()
	switch kind := errs.KindOf(err); {
	case x == nil, errors.Is(err, errAvoided):
	case kind == errs.Unavailable, kind == errs.Timeout, kind == errs.Canceled:
		x.doubt.Failed()
	default:
		x.doubt.Answered()
	}
}

// close ends all connections, and what is read on them.
func (p *peers) close() {
	p.mu.Lock()
	p.closed = true
	all := p.known
	p.known = nil
	p.mu.Unlock()
	for _, x := range all {
		if x.conn != nil {
			_ = x.conn.Close() // it waits for its goroutines
		}
	}
}
