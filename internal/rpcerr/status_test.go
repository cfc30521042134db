package rpcerr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// kinds returns all kinds, and one that a later release may add.
func kinds() []errs.Kind {
	var all []errs.Kind
	for k := errs.Unknown; k <= errs.Internal; k++ {
		all = append(all, k)
	}
	return append(all, 999)
}

func TestKindsCrossTheWire(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(fmt.Sprintf("%d %s", kind, kind), func(t *testing.T) {
			sent := errs.Wrap(errs.E(kind, "stat", "/a", nil), "open", "/a")
			st := rpcerr.ToStatus(sent)
			if code := status.Code(st); code == codes.OK {
				t.Fatalf("status of an error is %v", code)
			}
			got := rpcerr.FromStatus(st)
			if k := errs.KindOf(got); k != kind {
				t.Errorf("kind is %d, want %d", k, kind)
			}
			if !errors.Is(got, kind) {
				t.Errorf("errors.Is(%v, %v) is false", got, kind)
			}
			if kind != errs.NotLeader && got.Error() != sent.Error() {
				t.Errorf("text is %q, want %q", got, sent)
			}
		})
	}
}

func TestKnownKindsHaveACode(t *testing.T) {
	for k := errs.NotFound; k <= errs.Internal; k++ {
		if code := status.Code(rpcerr.ToStatus(k)); code == codes.Unknown || code == codes.OK {
			t.Errorf("%v has code %v", k, code)
		}
	}
}

func TestTexts(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   error
		want string
	}{
		{"a bare kind", errs.NotFound, "not found"},
		{"a cause", errs.E(errs.Invalid, "add", "/x", errors.New("odd URI")), "add /x: odd URI"},
		{"a hint", errs.E(errs.Exists, "add", "/x", nil).WithHint("remove it first"), "add /x: already exists (remove it first)"},
		{"an inner hint", errs.Wrap(errs.E(errs.Exists, "add", "/x", nil).WithHint("remove it"), "up", ""), "up: add /x: already exists (remove it)"},
		{"unclassified", errors.New("boom"), "boom"},
		{"the standard library's", fmt.Errorf("open: %w", fs.ErrNotExist), "open: file does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := rpcerr.FromStatus(rpcerr.ToStatus(tc.in))
			if got.Error() != tc.want {
				t.Errorf("text is %q, want %q", got, tc.want)
			}
			if errs.KindOf(got) != errs.KindOf(tc.in) {
				t.Errorf("kind is %v, want %v", errs.KindOf(got), errs.KindOf(tc.in))
			}
		})
	}
}

func TestHintIsAField(t *testing.T) {
	got := rpcerr.FromStatus(rpcerr.ToStatus(errs.E(errs.NoSpace, "fill", "/x", nil).WithHint("free some")))
	var e *errs.Error
	if !errors.As(got, &e) || e.Hint != "free some" {
		t.Errorf("got %#v", got)
	}
}

func TestNotLeader(t *testing.T) {
	for _, leader := range []string{"", "10.0.0.1:7760"} {
		sent := &rpcerr.NotLeader{Leader: leader}
		if !errors.Is(sent, errs.NotLeader) || errs.KindOf(sent) != errs.NotLeader {
			t.Fatalf("%v is not errs.NotLeader", sent)
		}
		got := rpcerr.FromStatus(rpcerr.ToStatus(errs.Wrap(sent, "stat", "/x")))
		var nl *rpcerr.NotLeader
		if !errors.As(got, &nl) || nl.Leader != leader {
			t.Errorf("got %#v, want leader %q", got, leader)
		}
		if !strings.Contains(got.Error(), leader) {
			t.Errorf("%q does not name the leader", got)
		}
	}
}

func TestErrorsThatAreNotOurs(t *testing.T) {
	for code, want := range map[codes.Code]errs.Kind{
		codes.Canceled:          errs.Canceled,
		codes.Unknown:           errs.Unknown,
		codes.InvalidArgument:   errs.Invalid,
		codes.DeadlineExceeded:  errs.Timeout,
		codes.NotFound:          errs.NotFound,
		codes.AlreadyExists:     errs.Exists,
		codes.PermissionDenied:  errs.Permission,
		codes.ResourceExhausted: errs.Internal,
		codes.Aborted:           errs.Unavailable,
		codes.Unimplemented:     errs.Unsupported,
		codes.Internal:          errs.Internal,
		codes.Unavailable:       errs.Unavailable,
		codes.DataLoss:          errs.Corrupt,
		codes.Unauthenticated:   errs.Permission,
	} {
		plain := status.Error(code, "x")
		if got := rpcerr.FromStatus(plain); errs.KindOf(got) != want {
			t.Errorf("FromStatus of %v has kind %v, want %v", code, errs.KindOf(got), want)
		}
		// A handler that passes on a status keeps its meaning.
		if got := rpcerr.ToStatus(plain); !errors.Is(got, plain) {
			t.Errorf("ToStatus changed the status %v to %v", plain, got)
		}
		if got := rpcerr.FromStatus(rpcerr.ToStatus(fmt.Errorf("asking: %w", plain))); errs.KindOf(got) != want {
			t.Errorf("a wrapped %v arrives as %v, want %v", code, errs.KindOf(got), want)
		}
	}
}

func TestErrorsThatPass(t *testing.T) {
	plain := errs.E(errs.NotFound, "stat", "/x", nil)
	for _, err := range []error{nil, io.EOF, context.Canceled, plain} {
		if got := rpcerr.FromStatus(err); got != err { //nolint:errorlint // identity is what is tested
			t.Errorf("FromStatus(%v) = %v", err, got)
		}
	}
	if got := rpcerr.ToStatus(nil); got != nil {
		t.Errorf("ToStatus(nil) = %v", got)
	}
	if got := rpcerr.FromStatus(rpcerr.ToStatus(context.DeadlineExceeded)); !errors.Is(got, context.DeadlineExceeded) {
		t.Errorf("a deadline arrives as %v", got)
	}
	if got := rpcerr.FromStatus(rpcerr.ToStatus(context.Canceled)); !errors.Is(got, context.Canceled) {
		t.Errorf("a cancellation arrives as %v", got)
	}
}

func TestTextIsCleanAndBounded(t *testing.T) {
	long := strings.Repeat("\u00e4", 64<<10)
	for _, err := range []error{
		errs.E(errs.NotFound, "stat", "/a\xff\xfeb", nil),
		errs.E(errs.NotFound, "stat", long, nil),
		errs.E(errs.NotFound, "stat", "/a", nil).WithHint("\xff" + long),
		&rpcerr.NotLeader{Leader: "\xff"},
	} {
		st, _ := status.FromError(rpcerr.ToStatus(err))
		if len(st.Details()) != 1 {
			t.Errorf("details are lost: %v", st.Details())
		}
		if m := st.Message(); !utf8.ValidString(m) || len(m) > 4<<10 {
			t.Errorf("message of %d bytes, valid %v", len(m), utf8.ValidString(m))
		}
		if k := errs.KindOf(rpcerr.FromStatus(st.Err())); k != errs.KindOf(err) {
			t.Errorf("kind is %v, want %v", k, errs.KindOf(err))
		}
	}
}
