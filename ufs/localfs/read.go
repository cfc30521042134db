package localfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// Read opens the bytes e of one version of a file. The file is looked at when
// it is opened, and again after each piece of bytes before they are passed on.
func (s *Store) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	const op = "read"
	if err := s.check(ctx, op, obj.Path); err != nil {
		return nil, err
	}
	if e.IsEmpty() || e.Offset < 0 || e.End() > obj.Length || obj.Path == "" || obj.Tag == "" {
		return nil, errs.E(errs.Invalid, op, s.uri(obj.Path), fmt.Errorf("extent %v of %d bytes, tag %q", e, obj.Length, obj.Tag))
	}
	s.observer.Request(opGet)
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, s.fail(op, obj.Path, err)
	}
	defer root.Close()
	// Without O_NONBLOCK the open of a pipe would wait for a writer.
	f, err := root.OpenFile(obj.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.fail(op, obj.Path, err)
	}
	r := &reader{store: s, ctx: ctx, f: f, obj: obj, rest: e}
	if err := r.look(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// reader passes on the bytes of one extent of one version.
type reader struct {
	store *Store
	ctx   context.Context //nolint:containedctx // the reader's life is the request's
	f     *os.File
	obj   ufs.Object
	rest  block.Extent
	err   error // sticky
}

// Read reads the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case len(p) == 0:
		return 0, nil
	case r.rest.IsEmpty():
		return 0, io.EOF
	case r.ctx.Err() != nil:
		return 0, r.failed(r.ctx.Err())
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.rest.Length)], r.rest.Offset)
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return 0, r.failed(err)
	}
	if err := r.look(); err != nil {
		r.err = err
		return 0, err
	}
	if n == 0 { // the look found the length that the reading did not
		return 0, r.failed(io.ErrUnexpectedEOF)
	}
	r.store.observer.FileBytes(int64(n))
	r.rest.Offset += int64(n)
	r.rest.Length -= int64(n)
	return n, nil
}

// look fails when the file is no longer the version asked for.
func (r *reader) look() error {
	const op = "read"
	var st unix.Stat_t
	var err error
	raw, rawErr := r.f.SyscallConn()
	if rawErr == nil {
		rawErr = raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	}
	if err := errors.Join(rawErr, err); err != nil {
		return r.store.fail(op, r.obj.Path, err)
	}
	a := attributesOf(&st)
	if a.mode&unix.S_IFMT != unix.S_IFREG {
		return errs.E(errs.Stale, op, r.store.uri(r.obj.Path), errors.New("no longer a regular file"))
	}
	if tag := a.tag(); tag != r.obj.Tag || a.size != r.obj.Length {
		return errs.E(errs.Stale, op, r.store.uri(r.obj.Path),
			fmt.Errorf("the version is %s with %d bytes, not %s with %d", tag, a.size, r.obj.Tag, r.obj.Length))
	}
	return nil
}

func (r *reader) failed(err error) error {
	r.err = r.store.fail("read", r.obj.Path, err)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		r.err = errs.E(errs.Unavailable, "read", r.store.uri(r.obj.Path), err)
	}
	return r.err
}

// Close closes the file.
func (r *reader) Close() error {
	if r.err == nil {
		r.err = errs.E(errs.Invalid, "read", r.store.uri(r.obj.Path), errors.New("the reader is closed"))
	}
	return r.f.Close()
}
