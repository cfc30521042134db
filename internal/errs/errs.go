package errs

import (
	"context"
	"errors"
	"io/fs"
	"strings"
)

// Kind classifies an error by what its receiver can do about it. It is an
// error, so errors.Is(err, errs.NotFound) asks whether err is of that kind.
type Kind uint16

// The kinds and their wire numbers. Numbers are never changed or reused.
const (
	Unknown     Kind = 0  // not classified: a defect or a failure without a better name
	NotFound    Kind = 1  // the name does not exist
	Permission  Kind = 2  // the under-store or Millrace refuses the caller
	Stale       Kind = 3  // the object's version is no longer the one asked for
	Invalid     Kind = 4  // the request itself is wrong; repeating it cannot help
	Exists      Kind = 5  // the name is taken
	NotDir      Kind = 6  // a directory is needed, the name is a file
	IsDir       Kind = 7  // a file is needed, the name is a directory
	NotEmpty    Kind = 8  // the thing still holds others
	NoSpace     Kind = 9  // no room can be made
	NotLeader   Kind = 10 // this master does not lead; another may
	Corrupt     Kind = 11 // bytes do not match their checksum or their description
	Unavailable Kind = 12 // the other side cannot be reached or cannot serve now; try later
	Throttled   Kind = 13 // the other side asks for fewer requests
	Timeout     Kind = 14 // the deadline passed first
	Canceled    Kind = 15 // the caller gave up
	Unsupported Kind = 16 // not offered here
	ReadOnly    Kind = 17 // writing is not allowed here
	NotCached   Kind = 18 // not in the cache, and the request said not to fetch
	Busy        Kind = 19 // in use; end the use first
	Internal    Kind = 20 // an invariant of Millrace is broken: a defect
)

var kindText = [...]string{ //nolint:gochecknoglobals // a constant table
	Unknown: "unknown error", NotFound: "not found", Permission: "permission denied",
	Stale: "object has changed", Invalid: "invalid request", Exists: "already exists",
	NotDir: "not a directory", IsDir: "is a directory", NotEmpty: "not empty",
	NoSpace: "no space left", NotLeader: "not the leader", Corrupt: "data is corrupt",
	Unavailable: "unavailable", Throttled: "throttled", Timeout: "timed out",
	Canceled: "canceled", Unsupported: "not supported", ReadOnly: "read-only",
	NotCached: "not cached", Busy: "busy", Internal: "internal error",
}

// String returns the kind's name as it stands in messages.
func (k Kind) String() string {
	if int(k) < len(kindText) {
		return kindText[k]
	}
	return kindText[Unknown]
}

// Error makes a Kind an error by itself.
func (k Kind) Error() string { return k.String() }

// Is matches the standard library's equivalents, so that users of the SDK can
// ask for fs.ErrNotExist and the like.
func (k Kind) Is(target error) bool {
	switch k {
	case NotFound:
		return target == fs.ErrNotExist
	case Permission, ReadOnly:
		return target == fs.ErrPermission
	case Exists:
		return target == fs.ErrExist
	case Invalid:
		return target == fs.ErrInvalid
	case Timeout:
		return target == context.DeadlineExceeded
	case Canceled:
		return target == context.Canceled
	default:
		return false
	}
}

// Error is an error with a kind and with what was being done to what.
// The zero fields are left out of its text.
type Error struct {
	Kind Kind
	Op   string // what was being done: "stat", "fill"
	Path string // to what: a path, URI or address, without secrets
	Err  error  // the cause
	Hint string // what the user can do about it
}

// E makes an *Error. A nil cause leaves the kind to speak for itself.
func E(kind Kind, op, path string, cause error) *Error {
	return &Error{Kind: kind, Op: op, Path: path, Err: cause}
}

// Wrap adds op and path to err and keeps its kind. Wrap(nil) is nil.
func Wrap(err error, op, path string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Op: op, Path: path, Err: err}
}

// WrapOnce is Wrap for what another process said, which may have named op and
// path itself: then err is returned as it is.
func WrapOnce(err error, op, path string) error {
	if err != nil && strings.HasPrefix(err.Error(), (&Error{Op: op, Path: path, Err: errors.New("")}).Error()) {
		return err
	}
	return Wrap(err, op, path)
}

// WithHint returns a copy of e that tells the user what to do.
func (e *Error) WithHint(hint string) *Error {
	c := *e
	c.Hint = hint
	return &c
}

// Error names operation, path, cause and hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Op != "" && e.Path != "" {
		b.WriteByte(' ')
	}
	b.WriteString(e.Path)
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.Kind.String())
	}
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteByte(')')
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is e's kind or stands for it.
func (e *Error) Is(target error) bool {
	if k, ok := target.(Kind); ok {
		return e.Kind == k
	}
	return e.Kind.Is(target)
}

// KindOf returns the kind of the outermost classified error in err's chain.
// Errors of the context and io/fs packages have their kinds; a nil error and
// any other have Unknown.
func KindOf(err error) Kind {
	var e *Error
	var k Kind
	switch {
	case err == nil:
		return Unknown
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission):
		return Permission
	case errors.Is(err, fs.ErrExist):
		return Exists
	default:
		return Unknown
	}
}
