package fuse

import (
	"log/slog"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/time/rate"

	"millrace/internal/errs"
)

// Errno returns what a program that reads through the mount sees of an error
// of that kind. This is the one place where kinds become errno.
func Errno(kind errs.Kind) syscall.Errno {
	switch kind {
	case errs.NotFound:
		return syscall.ENOENT
	case errs.Permission:
		return syscall.EACCES
	case errs.Stale:
		return syscall.ESTALE
	case errs.Invalid:
		return syscall.EINVAL
	case errs.Exists:
		return syscall.EEXIST
	case errs.NotDir:
		return syscall.ENOTDIR
	case errs.IsDir:
		return syscall.EISDIR
	case errs.NotEmpty:
		return syscall.ENOTEMPTY
	case errs.NoSpace:
		return syscall.ENOSPC
	case errs.Canceled:
		return syscall.EINTR
	case errs.Unsupported:
		return syscall.EOPNOTSUPP
	case errs.ReadOnly:
		return syscall.EROFS
	case errs.Busy:
		return syscall.EBUSY
	// The cluster could not answer in the time that the client gave it. EAGAIN
	// would be truer for some, but means "would block" to programs.
	case errs.NotLeader, errs.Unavailable, errs.Throttled, errs.Timeout, errs.NotCached:
		return syscall.EIO
	case errs.Corrupt, errs.Internal, errs.Unknown:
		return syscall.EIO
	default:
		return syscall.EIO
	}
}

// faultLog tells the operator why programs get EIO: at most once a minute for
// a path, and a few times a second altogether.
type faultLog struct {
	log   *slog.Logger
	limit *rate.Limiter

	mu   sync.Mutex
	last map[string]time.Time
}

const (
	faultEvery = time.Minute
	faultPaths = 1024 // remembered
)

func newFaultLog(log *slog.Logger) *faultLog {
	return &faultLog{log: log, limit: rate.NewLimiter(5, 20), last: make(map[string]time.Time)}
}

// status translates err, and logs it when the program will see EIO.
func (l *faultLog) status(op, path string, err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	errno := Errno(errs.KindOf(err))
	if errno == syscall.EIO && l.first(path, time.Now()) {
		l.log.Warn("a program got an input/output error",
			slog.String("op", op), slog.String("path", path), slog.Any("error", err))
	}
	return gofuse.Status(errno)
}

func (l *faultLog) first(path string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.last[path]; ok && now.Sub(at) < faultEvery {
		return false
	}
	if !l.limit.AllowN(now, 1) {
		return false
	}
	if len(l.last) >= faultPaths {
		clear(l.last)
	}
	l.last[path] = now
	return true
}
