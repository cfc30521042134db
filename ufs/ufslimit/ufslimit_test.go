package ufslimit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/ufs"
	"millrace/ufs/ufslimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zeros is a store whose files are all zeros.
type zeros struct{}

func (zeros) Close() error { return nil }
func (zeros) Stat(_ context.Context, path string) (ufs.Info, error) {
	return ufs.Info{Path: path}, nil
}

func (zeros) List(context.Context, string, ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) { yield(ufs.Info{Path: "a"}, nil) }
}

func (zeros) Read(_ context.Context, _ ufs.Object, e block.Extent) (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{}, e.Length)), nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestNoLimits(t *testing.T) {
	if s := ufslimit.Wrap(zeros{}, ufs.Limits{}); s != ufs.Store(zeros{}) {
		t.Errorf("wrapped in %T", s)
	}
	var none *ufslimit.Limiter
	if err := none.Request(t.Context()); err != nil {
		t.Error(err)
	}
	body := io.NopCloser(strings.NewReader("x"))
	if none.Body(t.Context(), body, "") != body {
		t.Error("a body without limits is wrapped")
	}
	s := ufslimit.Wrap(zeros{}, ufs.Limits{Requests: 1})
	if u, ok := s.(interface{ Unwrap() ufs.Store }); !ok || u.Unwrap() != ufs.Store(zeros{}) {
		t.Error("the wrapped store is not to be had")
	}
}

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ufslimit.Wrap(zeros{}, ufs.Limits{Requests: 10})
		start := time.Now()
		obj := ufs.Object{Path: "a", Tag: "t", Length: 10}
		for range 10 { // 30 requests: 10 at once, 20 in two seconds
			if _, err := s.Stat(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			for _, err := range s.List(t.Context(), "", ufs.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
			}
			r, err := s.Read(t.Context(), obj, block.Extent{Length: 10})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || len(got) != 10 {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
		if d := time.Since(start).Round(time.Millisecond); d != 2*time.Second {
			t.Errorf("30 requests at 10 a second took %v", d)
		}
	})
}

// TestBandwidth has readers that start at different times and share what there
// is.
func TestBandwidth(t *testing.T) {
	for _, readers := range []int{1, 7} {
		synctest.Test(t, func(t *testing.T) {
			const rate = size.MiB
			s := ufslimit.Wrap(zeros{}, ufs.Limits{Bandwidth: rate})
			start := time.Now()
			var g errgroup.Group
			for i := range readers {
				g.Go(func() error {
					length := int64(10*rate) / int64(readers)
					r, err := s.Read(t.Context(), ufs.Object{Path: "a", Tag: "t", Length: length}, block.Extent{Length: length})
					if err != nil {
						return err
					}
					n, err := io.CopyBuffer(io.Discard, onlyReader{r}, make([]byte, 1000*(i+1)))
					if n != length {
						return fmt.Errorf("%d of %d bytes", n, length)
					}
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			// An eighth of a second's worth is free.
			if d := time.Since(start); d < 9800*time.Millisecond || d > 10*time.Second {
				t.Errorf("%d readers: 10 MiB at 1 MiB/s took %v", readers, d)
			}
		})
	}
}

type onlyReader struct{ io.Reader }

func TestWaitingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ufslimit.Wrap(zeros{}, ufs.Limits{Requests: 0.1, Bandwidth: ufs.MinBandwidth})
		obj := ufs.Object{Path: "a", Tag: "t", Length: 1 << 20}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, cancel)
		r, err := s.Read(ctx, obj, block.Extent{Length: obj.Length})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		got, err := io.ReadAll(r)
		if !errors.Is(err, errs.Canceled) || len(got) == 0 || time.Since(start) != 3*time.Second {
			t.Errorf("%d bytes, %v after %v", len(got), err, time.Since(start))
		}
		if n, again := r.Read(make([]byte, 1)); n != 0 || !errors.Is(again, errs.Canceled) {
			t.Errorf("then %d bytes, %v", n, again)
		}

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start = time.Now()
		if _, err := s.Stat(ctx, "a"); !errors.Is(err, errs.Canceled) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := s.Stat(ctx, "a"); !errors.Is(err, errs.Canceled) {
			t.Errorf("a context that has ended: %v", err)
		}

		// A deadline before the turn: refused at once, with the reason.
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start = time.Now()
		for range 3 {
			_, err := s.Read(ctx, obj, block.Extent{Length: 1})
			if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "max_requests") || time.Since(start) != 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			for _, err := range s.List(ctx, "d", ufs.ListOptions{}) {
				if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "list d") {
					t.Errorf("got %v", err)
				}
			}
		}
		// Those who were refused or gave up did not use up turns: the next is
		// ten seconds after the first, of which four have gone.
		if _, err := s.Stat(t.Context(), "a"); err != nil || time.Since(start).Round(time.Millisecond) != 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestBodyRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ufslimit.New(ufs.Limits{Bandwidth: ufs.MinBandwidth})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second+time.Millisecond)
		defer cancel()
		r := l.Body(ctx, io.NopCloser(zeroReader{}), "k")
		n, err := io.Copy(io.Discard, onlyReader{r})
		if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "max_bandwidth") || !strings.Contains(err.Error(), "read k") {
			t.Errorf("got %v", err)
		}
		if most := 31 * int64(ufs.MinBandwidth); n > most || n < most-2*int64(ufs.MinBandwidth) {
			t.Errorf("%d bytes in 30 s", n)
		}
	})
}
