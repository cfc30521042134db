package ufsfault

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/localfs"
)

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next, err := localfs.Open(t.Context(), ufs.Config{URI: "file://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	var fault Fault
	s := New(next, func(Call) Fault { return fault })
	defer s.Close()
	if s.Unwrap() != next {
		t.Error("Unwrap returns another store")
	}
	info, err := s.Stat(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	read := func(ctx context.Context) (int, error) {
		r, err := s.Read(ctx, ufs.Object{Path: "a", Tag: info.Tag, Length: 100}, block.Extent{Length: 100})
		if err != nil {
			return 0, err
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		return len(got), err
	}
	list := func(ctx context.Context) (int, error) {
		n := 0
		for _, err := range s.List(ctx, "", ufs.ListOptions{}) {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	check := func(what string, got int, err error, want int, kind errs.Kind) {
		t.Helper()
		if got != want || errs.KindOf(err) != kind {
			t.Errorf("%s: %d, %v; want %d, %v", what, got, err, want, kind)
		}
	}
	n, err := read(t.Context())
	check("read", n, err, 100, errs.Unknown)
	n, err = list(t.Context())
	check("list", n, err, 3, errs.Unknown)

	fault = Fault{Err: errs.Unavailable}
	n, err = read(t.Context())
	check("read", n, err, 0, errs.Unavailable)
	n, err = list(t.Context())
	check("list", n, err, 0, errs.Unavailable)
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, errs.Unavailable) {
		t.Errorf("stat: %v", err)
	}
	fault.After = 2
	n, err = read(t.Context())
	check("read", n, err, 2, errs.Unavailable)
	n, err = list(t.Context())
	check("list", n, err, 2, errs.Unavailable)

	fault = Fault{Hold: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err = read(ctx)
	check("held read", n, err, 0, errs.Canceled)
	n, err = list(ctx)
	check("held list", n, err, 0, errs.Canceled)
}
