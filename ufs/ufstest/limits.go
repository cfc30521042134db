package ufstest

import (
	"context"
	"strings"
	"testing"
	"time"

	"millrace/internal/errs"
	"millrace/ufs"
)

// testLimits sees that the store obeys the limits of its mount: each kind has
// to see to that itself.
func testLimits(t *testing.T, f Fixture) {
	const size = 1 << 20
	f.Put(t, "d/f", content(1, size))
	// One request, and the next after a hundred seconds.
	s := f.OpenWith(t, map[string]string{ufs.OptionMaxRequests: "0.01"})
	defer s.Close()
	o := object(t, s, "d/f")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	limited := func(what string, err error) {
		t.Helper()
		wantKind(t, what, err, errs.Timeout)
		if err != nil && !strings.Contains(err.Error(), ufs.OptionMaxRequests) {
			t.Errorf("%s: %v does not name the option", what, err)
		}
	}
	_, err := s.Stat(ctx, "d/f")
	limited("Stat", err)
	_, err = tryRead(ctx, s, o, whole(o))
	limited("Read", err)
	err = nil
	for _, e := range s.List(ctx, "d", ufs.ListOptions{}) {
		err = e
	}
	limited("List", err)

	// A minute's worth of bytes for a reader who has half a second.
	narrow := f.OpenWith(t, map[string]string{ufs.OptionMaxBandwidth: ufs.MinBandwidth.String()})
	defer narrow.Close()
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	got, err := tryRead(ctx, narrow, o, whole(o))
	wantKind(t, "a slow Read", err, errs.Timeout)
	if len(got) > size/32 {
		t.Errorf("%d bytes passed in half a second", len(got))
	}
}
