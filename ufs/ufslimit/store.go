package ufslimit

import (
	"context"
	"io"
	"iter"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// Store is an under-store that is held to limits. It is safe for concurrent
// use.
type Store struct {
	next    ufs.Store
	limiter *Limiter
}

var _ ufs.Store = (*Store)(nil)

// Wrap holds next to limits: each Stat, List and Read is a request. It returns
// next itself when limits bound nothing.
func Wrap(next ufs.Store, limits ufs.Limits) ufs.Store {
	limiter := New(limits)
	if limiter == nil {
		return next
	}
	return &Store{next: next, limiter: limiter}
}

// Unwrap returns the store without limits.
func (s *Store) Unwrap() ufs.Store { return s.next }

// Close closes the wrapped store.
func (s *Store) Close() error { return s.next.Close() }

// Stat describes path.
func (s *Store) Stat(ctx context.Context, path string) (ufs.Info, error) {
	if err := s.limiter.Request(ctx); err != nil {
		return ufs.Info{}, errs.Wrap(err, "stat", path)
	}
	return s.next.Stat(ctx, path)
}

// List streams what is in dir.
func (s *Store) List(ctx context.Context, dir string, opts ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		if err := s.limiter.Request(ctx); err != nil {
			yield(ufs.Info{}, errs.Wrap(err, "list", dir))
			return
		}
		s.next.List(ctx, dir, opts)(yield)
	}
}

// Read opens the bytes e of one version of a file.
func (s *Store) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	if err := s.limiter.Request(ctx); err != nil {
		return nil, errs.Wrap(err, "read", obj.Path)
	}
	r, err := s.next.Read(ctx, obj, e)
	if err != nil {
		return nil, err
	}
	return s.limiter.Body(ctx, r, obj.Path), nil
}
