package rpcerr

import (
	"errors"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace/api"
	"millrace/internal/errs"
)

// maxText bounds, in bytes, each text of a status. They travel in HTTP/2
// trailers, whose size peers limit.
const maxText = 4 << 10

// NotLeader says that a master does not lead, and who does. It is
// errs.NotLeader to errors.Is and errs.KindOf.
type NotLeader struct {
	Leader string // gRPC address; empty when unknown
}

// Error names the leader if it is known.
func (e *NotLeader) Error() string {
	if e.Leader == "" {
		return errs.NotLeader.String() + ", and none is known"
	}
	return errs.NotLeader.String() + ", which is at " + e.Leader
}

// Unwrap returns errs.NotLeader.
func (e *NotLeader) Unwrap() error { return errs.NotLeader }

// grpcStatus is what errors of the gRPC library implement.
type grpcStatus interface{ GRPCStatus() *status.Status }

// ToStatus turns err into a gRPC status error that carries its kind, its hint
// and, for a NotLeader, the leader's address. ToStatus(nil) is nil. An error
// that already is a status is returned as it is.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(grpcStatus); ok { // a wrapped one is classified below
		return err
	}
	kind, text, hint := errs.KindOf(err), err.Error(), hintOf(err)
	var s grpcStatus
	if kind == errs.Unknown && errors.As(err, &s) {
		kind = kindOfCode(s.GRPCStatus().Code())
	}
	detail := &api.ErrorDetail{Kind: uint32(kind), Hint: clean(hint)}
	if nl, ok := errors.AsType[*NotLeader](err); ok {
		detail.LeaderAddress = clean(nl.Leader)
	}
	if hint != "" {
		text = strings.TrimSuffix(text, " ("+hint+")") // FromStatus puts it back
	}
	st := status.New(codeOf(kind), clean(text))
	if with, err := st.WithDetails(detail); err == nil {
		st = with
	}
	return st.Err()
}

// FromStatus turns a gRPC status error into an *errs.Error of the kind that
// its server meant, or a *NotLeader. A failure without a detail did not come
// from a handler: it gets its kind from the code, so that a connection that
// broke is errs.Unavailable and a deadline errs.Timeout. Other errors, io.EOF
// and nil among them, are returned as they are.
func FromStatus(err error) error {
	var s grpcStatus
	if err == nil || !errors.As(err, &s) {
		return err
	}
	st := s.GRPCStatus()
	if st.Code() == codes.OK {
		return nil
	}
	for _, d := range st.Details() {
		detail, ok := d.(*api.ErrorDetail)
		if !ok {
			continue
		}
		kind := errs.Unknown
		if detail.GetKind() <= math.MaxUint16 {
			kind = errs.Kind(detail.GetKind())
		}
		if kind == errs.NotLeader {
			return &NotLeader{Leader: detail.GetLeaderAddress()}
		}
		return &errs.Error{Kind: kind, Err: cause(kind, st.Message()), Hint: detail.GetHint()}
	}
	kind := kindOfCode(st.Code())
	return &errs.Error{Kind: kind, Err: cause(kind, st.Message())}
}

// cause makes the remote side's text an error; nil if it says no more than
// the kind does.
func cause(kind errs.Kind, text string) error {
	if text == "" || text == kind.String() {
		return nil
	}
	return errors.New(text)
}

// hintOf returns the outermost hint in err's chain.
func hintOf(err error) string {
	for err != nil {
		var e *errs.Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// clean makes s fit for a protobuf string of bounded length.
func clean(s string) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= maxText {
		return s
	}
	cut := maxText - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// codeOf returns the code that tells most about kind to tools that do not
// know our details.
func codeOf(kind errs.Kind) codes.Code {
	switch kind {
	case errs.NotFound:
		return codes.NotFound
	case errs.Permission, errs.ReadOnly:
		return codes.PermissionDenied
	case errs.Invalid:
		return codes.InvalidArgument
	case errs.Exists:
		return codes.AlreadyExists
	case errs.Stale:
		return codes.Aborted
	case errs.NotDir, errs.IsDir, errs.NotEmpty, errs.NotLeader, errs.NotCached, errs.Busy:
		return codes.FailedPrecondition
	case errs.NoSpace, errs.Throttled:
		return codes.ResourceExhausted
	case errs.Corrupt:
		return codes.DataLoss
	case errs.Unavailable:
		return codes.Unavailable
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.Canceled:
		return codes.Canceled
	case errs.Unsupported:
		return codes.Unimplemented
	case errs.Internal:
		return codes.Internal
	default:
		return codes.Unknown
	}
}

// kindOfCode classifies a status that carries no detail: one of the gRPC
// library's own, or of a server that is not ours.
func kindOfCode(code codes.Code) errs.Kind {
	switch code {
	case codes.Canceled:
		return errs.Canceled
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition:
		return errs.Invalid
	case codes.DeadlineExceeded:
		return errs.Timeout
	case codes.NotFound:
		return errs.NotFound
	case codes.AlreadyExists:
		return errs.Exists
	case codes.PermissionDenied, codes.Unauthenticated:
		return errs.Permission
	case codes.Aborted, codes.Unavailable:
		return errs.Unavailable
	case codes.Unimplemented:
		return errs.Unsupported
	case codes.DataLoss:
		return errs.Corrupt
	case codes.ResourceExhausted, codes.Internal: // the library's word for a message over the limit
		return errs.Internal
	default:
		return errs.Unknown
	}
}
