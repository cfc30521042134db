// Package ufsfault wraps an under-store so that its calls fail, wait or break
// off as a test, or a drill on a live system, wants.
//
// It changes no bytes: a fault is an error or a delay, as a real under-store
// has them.
package ufsfault

import (
	"context"
	"io"
	"iter"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// The operations that a hook is asked about.
const (
	OpStat = "stat"
	OpList = "list"
	OpRead = "read"
)

// Call is a call that a hook decides about.
type Call struct {
	Op     string
	Path   string
	Extent block.Extent // of a read
}

// Fault is what happens to a call. The zero Fault lets it pass.
type Fault struct {
	// Hold keeps the call back until it is closed or the call's context ends.
	Hold <-chan struct{}
	// Err is the call's error, or what a read or list ends with once After
	// has passed.
	Err error
	// After lets so many bytes of a read, or entries of a list, pass before
	// Err.
	After int64
}

// Store is an under-store with faults. It is safe for concurrent use if its
// hook is.
type Store struct {
	next ufs.Store
	hook func(Call) Fault
}

var _ ufs.Store = (*Store)(nil)

// New wraps next. hook decides about each call, on the caller's goroutine.
func New(next ufs.Store, hook func(Call) Fault) *Store {
	return &Store{next: next, hook: hook}
}

// Unwrap returns the store without faults.
func (s *Store) Unwrap() ufs.Store { return s.next }

// Close closes the wrapped store.
func (s *Store) Close() error { return s.next.Close() }

// Stat describes path.
func (s *Store) Stat(ctx context.Context, path string) (ufs.Info, error) {
	f := s.hook(Call{Op: OpStat, Path: path})
	if err := f.wait(ctx); err != nil {
		return ufs.Info{}, errs.Wrap(err, OpStat, path)
	}
	if f.Err != nil {
		return ufs.Info{}, f.Err
	}
	return s.next.Stat(ctx, path)
}

// List streams what is in dir.
func (s *Store) List(ctx context.Context, dir string, opts ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		f := s.hook(Call{Op: OpList, Path: dir})
		if err := f.wait(ctx); err != nil {
			yield(ufs.Info{}, errs.Wrap(err, OpList, dir))
			return
		}
		left := f.After
		if f.Err != nil && left == 0 {
			yield(ufs.Info{}, f.Err)
			return
		}
		for info, err := range s.next.List(ctx, dir, opts) {
			if !yield(info, err) || err != nil {
				return
			}
			if left--; f.Err != nil && left == 0 {
				yield(ufs.Info{}, f.Err)
				return
			}
		}
	}
}

// Read opens the bytes e of one version of a file.
func (s *Store) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	f := s.hook(Call{Op: OpRead, Path: obj.Path, Extent: e})
	if err := f.wait(ctx); err != nil {
		return nil, errs.Wrap(err, OpRead, obj.Path)
	}
	if f.Err != nil && f.After == 0 {
		return nil, f.Err
	}
	r, err := s.next.Read(ctx, obj, e)
	if err != nil || f.Err == nil {
		return r, err
	}
	return &reader{ReadCloser: r, left: f.After, err: f.Err}, nil
}

// wait keeps a call back.
func (f Fault) wait(ctx context.Context) error {
	if f.Hold == nil {
		return nil
	}
	select {
	case <-f.Hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reader breaks off after some bytes.
type reader struct {
	io.ReadCloser
	left int64
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}
