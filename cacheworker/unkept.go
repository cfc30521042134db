package cacheworker

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// looseBytes are a piece of a file on its way from the under-store, or from a
// worker that caches it, to readers without being kept: there is no room for it, or it may change unseen. Who
// comes while it is under way shares it; nobody finds it later.
type looseBytes struct {
	id     block.FileID
	e      block.Extent
	urgent atomic.Int32 // urgentRead
	cancel context.CancelFunc
	done   chan struct{} // closed when buf or err is there
	buf    *[chunkSize]byte
	err    error

	refs int // readers, and the fetch; guarded by the fetcher's lock
}

// unkept reads e, which cannot be kept, and passes it to write in order, in
// pieces that write may not hold on to. Each piece is received before it is
// written, so that a slow client holds no connection to the under-store; a
// reader holds one piece at a time.
func (f *fetcher) unkept(ctx context.Context, t *block.Ticket, e block.Extent, write func([]byte) error) error {
	for !e.IsEmpty() {
		// Pieces of all readers end at the same places.
		piece := block.Extent{Offset: e.Offset, Length: min(e.Length, chunkSize-e.Offset%chunkSize)}
		if err := f.unkeptPiece(ctx, t, piece, write); err != nil {
			return err
		}
		f.counters.unkeptBytes.Add(piece.Length)
		e = block.Extent{Offset: piece.End(), Length: e.Length - piece.Length}
	}
	return nil
}

func (f *fetcher) unkeptPiece(ctx context.Context, t *block.Ticket, e block.Extent, write func([]byte) error) error {
	l, err := f.joinLoose(ctx, t, e)
	if err != nil {
		return err
	}
	defer f.dropLoose(l)
	select {
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.err != nil {
		return l.err
	}
	from := e.Offset - l.e.Offset
	return write(l.buf[from : from+e.Length])
}

// joinLoose returns the piece that is under way and has e in it, or a new one.
// The caller drops it.
func (f *fetcher) joinLoose(ctx context.Context, t *block.Ticket, e block.Extent) (*looseBytes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return nil, errStopping
	}
	for _, l := range f.loose[t.FileID] {
		if e.Intersect(l.e) == e {
			l.refs++
			return l, nil
		}
	}
	fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &looseBytes{id: t.FileID, e: e, cancel: cancel, done: make(chan struct{}), refs: 2}
	f.loose[t.FileID] = append(f.loose[t.FileID], l)
	f.crew.do(func() {
		defer f.dropLoose(l)
		l.err = f.receive(fctx, t, l)
		f.mu.Lock()
		f.landLoose(l)
		f.mu.Unlock()
		if l.err != nil && fctx.Err() != nil {
			l.err = errStopping // or nobody is left to be told
		}
		close(l.done)
	})
	return l, nil
}

// landLoose lets nobody else join l. mu is held.
func (f *fetcher) landLoose(l *looseBytes) {
	left := slices.DeleteFunc(f.loose[l.id], func(o *looseBytes) bool { return o == l })
	if f.loose[l.id] = left; len(left) == 0 {
		delete(f.loose, l.id)
	}
}

// dropLoose ends one use of l. When the last reader goes its fetch is
// canceled, and the last use of all gives the memory back.
func (f *fetcher) dropLoose(l *looseBytes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.refs--
	switch l.refs {
	case 1:
		select {
		case <-l.done:
		default:
			f.landLoose(l)
			l.cancel()
		}
	case 0:
		l.cancel()
		if l.buf != nil {
			chunkBuffers.Put(l.buf)
		}
	}
}

// receive has l's bytes from a worker that caches them, or else fetches them.
func (f *fetcher) receive(ctx context.Context, t *block.Ticket, l *looseBytes) error {
	if f.peers != nil && !t.Unsettled {
		if l.buf = f.peers.borrow(ctx, t, l.e, &l.urgent); l.buf != nil {
			return nil
		}
	}
	m, release, err := f.mounts.use(ctx, t.MountID)
	if err != nil {
		return err
	}
	defer release()
	leave, err := f.enter(ctx, m, l.e.Length, &l.urgent)
	if err != nil {
		return err
	}
	defer leave()
	body, err := m.store.Read(ctx, ufs.Object{Path: t.Path, Tag: t.Tag, Length: t.Length}, l.e)
	if err != nil {
		return err
	}
	defer body.Close()
	buf, ok := chunkBuffers.Get().(*[chunkSize]byte)
	if !ok {
		return errs.E(errs.Internal, "", "", errors.New("a foreign buffer in the pool"))
	}
	l.buf = buf
	return readFull(body, buf[:l.e.Length], true)
}
