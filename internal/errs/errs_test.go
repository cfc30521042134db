package errs_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"millrace/internal/errs"
)

// TestKindNumbers holds the numbers that cross the wires.
func TestKindNumbers(t *testing.T) {
	for _, tc := range []struct {
		kind   errs.Kind
		number uint16
		text   string
	}{
		{errs.Unknown, 0, "unknown error"},
		{errs.NotFound, 1, "not found"},
		{errs.Permission, 2, "permission denied"},
		{errs.Stale, 3, "object has changed"},
		{errs.Invalid, 4, "invalid request"},
		{errs.Exists, 5, "already exists"},
		{errs.NotDir, 6, "not a directory"},
		{errs.IsDir, 7, "is a directory"},
		{errs.NotEmpty, 8, "not empty"},
		{errs.NoSpace, 9, "no space left"},
		{errs.NotLeader, 10, "not the leader"},
		{errs.Corrupt, 11, "data is corrupt"},
		{errs.Unavailable, 12, "unavailable"},
		{errs.Throttled, 13, "throttled"},
		{errs.Timeout, 14, "timed out"},
		{errs.Canceled, 15, "canceled"},
		{errs.Unsupported, 16, "not supported"},
		{errs.ReadOnly, 17, "read-only"},
		{errs.NotCached, 18, "not cached"},
		{errs.Busy, 19, "busy"},
		{errs.Internal, 20, "internal error"},
		{errs.Kind(21), 21, "unknown error"}, // of a later release
	} {
		if uint16(tc.kind) != tc.number {
			t.Errorf("%v has number %d, want %d", tc.kind, tc.kind, tc.number)
		}
		if tc.kind.String() != tc.text || tc.kind.Error() != tc.text {
			t.Errorf("kind %d is %q, want %q", tc.number, tc.kind, tc.text)
		}
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("connection refused")
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"kind alone", errs.E(errs.NotFound, "", "", nil), "not found"},
		{"op", errs.E(errs.NotFound, "stat", "", nil), "stat: not found"},
		{"path", errs.E(errs.NotFound, "", "/a", nil), "/a: not found"},
		{"op and path", errs.E(errs.NotFound, "stat", "/a", nil), "stat /a: not found"},
		{"cause", errs.E(errs.Unavailable, "stat", "/a", cause), "stat /a: connection refused"},
		{"hint", errs.E(errs.Exists, "mount", "/a", nil).WithHint("choose another"), "mount /a: already exists (choose another)"},
		{"a kind as cause", errs.E(errs.NotFound, "stat", "/a", errs.NotFound), "stat /a: not found"},
		{"wrapped", errs.Wrap(errs.E(errs.NotFound, "stat", "/a", nil), "open", "x"), "open x: stat /a: not found"},
		{"a path with a space at its end", errs.E(errs.NotFound, "stat", "/a ", nil), "stat /a : not found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.err.Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	_, notExist := os.Open("/nonexistent/file")
	for _, tc := range []struct {
		name string
		err  error
		want errs.Kind
	}{
		{"nil", nil, errs.Unknown},
		{"plain", errors.New("x"), errs.Unknown},
		{"kind", errs.Stale, errs.Stale},
		{"error", errs.E(errs.Stale, "read", "/a", nil), errs.Stale},
		{"wrapped by fmt", fmt.Errorf("x: %w", errs.E(errs.Stale, "read", "/a", nil)), errs.Stale},
		{"wrapped kind", fmt.Errorf("x: %w", errs.Busy), errs.Busy},
		{"wrapped by Wrap", errs.Wrap(errs.Busy, "umount", "/a"), errs.Busy},
		{"the outermost counts", errs.E(errs.Unavailable, "ask", "", errs.E(errs.NotFound, "stat", "", nil)), errs.Unavailable},
		{"joined", errors.Join(errors.New("x"), errs.Corrupt), errs.Corrupt},
		{"canceled", fmt.Errorf("x: %w", context.Canceled), errs.Canceled},
		{"deadline", context.DeadlineExceeded, errs.Timeout},
		{"not exist", notExist, errs.NotFound},
		{"permission", fs.ErrPermission, errs.Permission},
		{"exist", fs.ErrExist, errs.Exists},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := errs.KindOf(tc.err); got != tc.want {
				t.Errorf("KindOf(%v) = %v, want %v", tc.err, got, tc.want)
			}
		})
	}
}

func TestIs(t *testing.T) {
	for _, tc := range []struct {
		kind errs.Kind
		std  error
	}{
		{errs.NotFound, fs.ErrNotExist},
		{errs.Permission, fs.ErrPermission},
		{errs.ReadOnly, fs.ErrPermission},
		{errs.Exists, fs.ErrExist},
		{errs.Invalid, fs.ErrInvalid},
		{errs.Timeout, context.DeadlineExceeded},
		{errs.Canceled, context.Canceled},
	} {
		for _, err := range []error{tc.kind, errs.E(tc.kind, "op", "/p", errors.New("x")), errs.Wrap(tc.kind, "op", "/p")} {
			if !errors.Is(err, tc.std) {
				t.Errorf("%v (%d) is not %v", err, tc.kind, tc.std)
			}
			if !errors.Is(err, tc.kind) {
				t.Errorf("%v is not %v", err, tc.kind)
			}
			if errors.Is(err, errs.Corrupt) || errors.Is(err, fs.ErrClosed) {
				t.Errorf("%v is what it is not", err)
			}
		}
	}
	if errors.Is(errs.Corrupt, fs.ErrNotExist) {
		t.Error("a corrupt page is a file that does not exist")
	}
}

func TestWrap(t *testing.T) {
	if err := errs.Wrap(nil, "op", "/p"); err != nil {
		t.Errorf("Wrap(nil) = %v", err)
	}
	cause := errors.New("x")
	err := errs.Wrap(cause, "op", "/p")
	if !errors.Is(err, cause) || errs.KindOf(err) != errs.Unknown {
		t.Errorf("Wrap lost the cause or made up a kind: %v", err)
	}
	e, ok := errors.AsType[*errs.Error](err)
	if !ok || e.Op != "op" || e.Path != "/p" {
		t.Errorf("got %#v", e)
	}
}

func TestWrapOnce(t *testing.T) {
	if err := errs.WrapOnce(nil, "stat", "/p"); err != nil {
		t.Errorf("WrapOnce(nil) = %v", err)
	}
	for said, want := range map[string]string{
		"stat /p: gone":      "stat /p: gone",
		"stat /prefix: gone": "stat /p: stat /prefix: gone",
		"gone":               "stat /p: gone",
	} {
		err := errs.WrapOnce(errs.E(errs.NotFound, "", "", errors.New(said)), "stat", "/p")
		if err.Error() != want || errs.KindOf(err) != errs.NotFound {
			t.Errorf("%q became %q of kind %v, want %q", said, err, errs.KindOf(err), want)
		}
	}
}

func TestWithHintCopies(t *testing.T) {
	e := errs.E(errs.NotFound, "stat", "/a", nil)
	if h := e.WithHint("look"); e.Hint != "" || h.Hint != "look" || h.Kind != e.Kind {
		t.Errorf("%#v, %#v", e, h)
	}
}
