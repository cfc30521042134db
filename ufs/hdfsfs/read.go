package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/wait"
	"millrace/ufs"
)

// How many bytes wait at once for the look at their version: few at first, so
// that a small read is not longer than it must be, then more, so that the
// NameNode is not asked all the time.
const (
	firstWindow = 256 << 10
	maxWindow   = 2 << 20
)

// Read opens the bytes e of one version of a file. Where its blocks are is
// asked once and remembered.
func (s *Store) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	const op = "read"
	if err := s.check(ctx, op, obj.Path); err != nil {
		return nil, err
	}
	if e.IsEmpty() || e.Offset < 0 || e.End() > obj.Length || obj.Path == "" || obj.Tag == "" {
		return nil, errs.E(errs.Invalid, op, s.uri(obj.Path), fmt.Errorf("extent %v of %d bytes, tag %q", e, obj.Length, obj.Tag))
	}
	r := &reader{store: s, ctx: ctx, obj: obj, rest: e, size: firstWindow, location: s.locations.get(obj)}
	if r.location == nil {
		if err := r.locate(); err != nil {
			return nil, s.fail(op, obj.Path, err)
		}
	}
	return s.limiter.Body(ctx, r, s.uri(obj.Path)), nil
}

// reader passes on the bytes of one extent of one version.
type reader struct {
	store *Store
	ctx   context.Context //nolint:containedctx // the reader's life is the request's
	obj   ufs.Object
	rest  block.Extent // not received yet
	err   error        // sticky

	window *[maxWindow]byte
	size   int64  // of the next window's use
	ready  []byte // received, and looked at since

	location *location
	block    *fileBlock // that is read; nil: none
	run      *run       // nil: none
	address  string     // of the run
	untried  []string   // replicas of the block
	failures []error    // of those that were tried
	located  bool       // the block's replicas were asked for since they failed
}

// Read reads the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case len(p) == 0:
		return 0, nil
	case len(r.ready) == 0 && r.rest.IsEmpty():
		return 0, io.EOF
	case len(r.ready) == 0:
		if err := r.fill(); err != nil {
			if r.ctx.Err() != nil {
				err = r.ctx.Err() // the cause of whatever it was
			}
			r.err = r.store.fail("read", r.obj.Path, err)
			return 0, r.err
		}
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// Close ends the run that is under way.
func (r *reader) Close() error {
	if r.err == nil {
		r.err = errs.E(errs.Invalid, "read", r.store.uri(r.obj.Path), errors.New("the reader is closed"))
	}
	r.endRun()
	if r.window != nil {
		r.store.windows.Put(r.window)
		r.window, r.ready = nil, nil
	}
	return nil
}

// fill receives the next bytes, and then looks whether the file still has the
// version that they are to be of.
func (r *reader) fill() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.window == nil {
		var ok bool
		if r.window, ok = r.store.windows.Get().(*[maxWindow]byte); !ok {
			return errs.E(errs.Internal, "", "", errors.New("a foreign buffer in the pool"))
		}
	}
	w := r.window[:min(r.size, r.rest.Length)]
	r.size = min(2*r.size, maxWindow)
	for n := 0; n < len(w); {
		m, err := r.receive(w[n:])
		if err != nil {
			return err
		}
		n += m
	}
	st, err := r.store.status(r.ctx, r.obj.Path, extras{})
	if err != nil {
		return err
	}
	if err := versionOf(st).check(r.obj); err != nil {
		return err
	}
	r.ready = w
	return nil
}

// receive reads the next bytes from the block they are in, from whichever
// replica serves them.
func (r *reader) receive(p []byte) (int, error) {
	for {
		if r.run == nil {
			if err := r.startRun(); err != nil {
				return 0, err
			}
		}
		n, err := r.run.read(p[:min(int64(len(p)), r.rest.Length)])
		switch {
		case err == nil:
			r.store.observer.FileBytes(int64(n))
			r.rest = block.Extent{Offset: r.rest.Offset + int64(n), Length: r.rest.Length - int64(n)}
			return n, nil
		case errors.Is(err, io.EOF): // of the block
			r.endRun()
			r.block = nil
		case r.ctx.Err() != nil:
			return 0, r.ctx.Err()
		default:
			r.avoid(err)
		}
	}
}

// startRun asks one replica after the other for what is wanted of the block at
// hand, until one begins to serve it.
func (r *reader) startRun() error {
	for {
		if r.block == nil {
			if err := r.enterBlock(); err != nil {
				return err
			}
			r.failures, r.located = nil, false
		}
		if len(r.untried) == 0 {
			if err := r.relocate(); err != nil {
				return err
			}
			continue
		}
		r.address, r.untried = r.untried[0], r.untried[1:]
		if err := r.store.limiter.Request(r.ctx); err != nil {
			return err
		}
		r.store.observer.Request(opGet)
		err := r.ask()
		if err == nil {
			return nil
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		r.avoid(err)
	}
}

// ask starts a run at the replica whose turn it is.
func (r *reader) ask() error {
	conn, err := r.store.dial(r.ctx, "tcp", r.address)
	if err != nil {
		return err
	}
	from := r.rest.Offset - r.block.start
	length := min(r.block.end(), r.rest.End()) - r.rest.Offset
	r.run, err = startRun(r.ctx, conn, r.store.nameNode.settings.dataNodeTimeout, r.block, from, length)
	return err
}

// enterBlock turns to the block of the next byte.
func (r *reader) enterBlock() error {
	b, err := r.location.at(r.rest.Offset)
	if err != nil {
		return err
	}
	if r.store.nameNode.settings.protectedData && !b.privileged {
		return errs.E(errs.Unsupported, "", "", errors.New("DataNodes want SASL (dfs.data.transfer.protection or dfs.encrypt.data.transfer), which is not supported"))
	}
	r.block, r.untried = b, r.store.replicas.order(b.replicas)
	return nil
}

// avoid leaves the replica that failed.
func (r *reader) avoid(err error) {
	r.endRun()
	r.store.replicas.avoid(r.address)
	r.failures = append(r.failures, errs.Wrap(err, "DataNode", r.address))
}

// relocate asks where the block's replicas are, after all that were known have
// failed: blocks move, and tokens expire. It asks again while there is none at
// all, since a NameNode that starts does not know them at first.
func (r *reader) relocate() error {
	if r.located {
		return failed(r.failures)
	}
	r.located = true
	r.store.locations.drop(r.obj)
	end := time.Now().Add(r.store.nameNode.budget)
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		if err := wait.For(r.ctx, pause); err != nil {
			return err
		}
		if err := r.locate(); err != nil {
			return err
		}
		if err := r.enterBlock(); err != nil {
			return err
		}
		if len(r.untried) > 0 || time.Now().After(end) {
			return nil
		}
	}
}

// failed sums up why no replica of a block serves. Its kind is theirs where
// they agree.
func failed(failures []error) error {
	kind := errs.Unavailable
	for i, err := range failures {
		if k := errs.KindOf(err); i == 0 && (k == errs.Corrupt || k == errs.Unsupported) {
			kind = k
		} else if k != kind {
			kind = errs.Unavailable
		}
	}
	if len(failures) == 0 {
		return errs.E(kind, "", "", errors.New("the block has no replica"))
	}
	return errs.E(kind, "", "", fmt.Errorf("no replica of the block serves: %w", errors.Join(failures...)))
}

// locate asks where the blocks of the version are.
func (r *reader) locate() error {
	s := r.store
	st, err := s.status(r.ctx, r.obj.Path, extras{located: true})
	if err != nil {
		return err
	}
	if err := versionOf(st).check(r.obj); err != nil {
		return err
	}
	l, err := locate(st, s.nameNode.settings.useHostname)
	if err != nil {
		return err
	}
	if l.complete() {
		s.locations.put(r.obj, l)
	}
	r.location = l
	return nil
}

func (r *reader) endRun() {
	if r.run != nil {
		r.run.close()
		r.run = nil
	}
}
