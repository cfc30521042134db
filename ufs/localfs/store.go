package localfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/ufslimit"
)

const scheme = "file://"

// settleTime is how old the time stamps of a file must be before its tag
// stands for its bytes.
const settleTime = 2 * time.Second

// The operations that observers are told.
const (
	opGet  = "get"
	opHead = "head"
	opList = "list"
)

// Store is a directory. It is safe for concurrent use.
type Store struct {
	dir      string
	observer ufs.Observer
	chunk    int // names of a directory in memory
	now      func() time.Time
}

var _ ufs.Opener = Open

// Open makes the store of cfg.URI, file:///DIR. The directory is looked up at
// each call, so it may be mounted, or made anew, later.
func Open(_ context.Context, cfg ufs.Config) (ufs.Store, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, err
	}
	limits, err := ufs.ParseLimits(cfg.Options)
	if err != nil {
		return nil, errs.Wrap(err, "open under-store", cfg.URI)
	}
	return ufslimit.Wrap(s, limits), nil
}

func open(cfg ufs.Config) (*Store, error) {
	dir, ok := strings.CutPrefix(cfg.URI, scheme)
	if !ok || !path.IsAbs(dir) || strings.IndexByte(dir, 0) >= 0 {
		return nil, errs.E(errs.Invalid, "open under-store", cfg.URI, errors.New("want file:///ABSOLUTE/DIRECTORY"))
	}
	if err := ufs.CheckOptions(cfg); err != nil {
		return nil, err
	}
	s := &Store{dir: path.Clean(dir), observer: cfg.Observer, chunk: 1 << 16, now: time.Now}
	if s.observer == nil {
		s.observer = nobody{}
	}
	return s, nil
}

// Close frees nothing: a store holds no descriptor between calls.
func (s *Store) Close() error { return nil }

// Stat describes name.
func (s *Store) Stat(ctx context.Context, name string) (ufs.Info, error) {
	const op = "stat"
	if err := s.check(ctx, op, name); err != nil {
		return ufs.Info{}, err
	}
	s.observer.Request(opHead)
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return ufs.Info{}, s.fail(op, name, err)
	}
	defer root.Close()
	fi, err := root.Stat(orDot(name))
	if err != nil {
		return ufs.Info{}, s.fail(op, name, err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ufs.Info{}, errs.E(errs.Internal, op, s.uri(name), fmt.Errorf("no stat_t in %T", fi.Sys()))
	}
	info, ok := s.info(name, statAttributes(st))
	if !ok {
		return ufs.Info{}, errs.E(errs.NotFound, op, s.uri(name), errors.New("neither a file nor a directory"))
	}
	return info, nil
}

// attributes are what a look at a file shows.
type attributes struct {
	mode         uint32
	inode        uint64
	size         int64
	mtime, ctime time.Time
}

// statAttributes takes the look of package os.
func statAttributes(st *syscall.Stat_t) attributes {
	return attributes{
		mode: st.Mode, inode: st.Ino, size: st.Size,
		mtime: time.Unix(st.Mtim.Unix()), ctime: time.Unix(st.Ctim.Unix()),
	}
}

// attributesOf takes the look of package unix.
func attributesOf(st *unix.Stat_t) attributes {
	return attributes{
		mode: st.Mode, inode: st.Ino, size: st.Size,
		mtime: time.Unix(st.Mtim.Unix()), ctime: time.Unix(st.Ctim.Unix()),
	}
}

// tag returns the version tag.
func (a attributes) tag() string {
	return fmt.Sprintf("%x-%x-%x", a.inode, a.ctime.UnixNano(), a.size)
}

// info describes a file or directory; false for anything else.
func (s *Store) info(name string, a attributes) (ufs.Info, bool) {
	switch a.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return ufs.Info{Path: name, Type: ufs.Dir, MTime: a.mtime}, true
	case unix.S_IFREG:
		now := s.now()
		return ufs.Info{
			Path: name, Type: ufs.File, Size: a.size, MTime: a.mtime, Tag: a.tag(),
			Unsettled: near(now, a.ctime) || near(now, a.mtime),
		}, true
	default:
		return ufs.Info{}, false
	}
}

// near reports whether t is within the settle time of now.
func near(now, t time.Time) bool { return now.Sub(t).Abs() <= settleTime }

// check looks at what each call has to look at first.
func (s *Store) check(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, s.uri(name))
	}
	if !ufs.ValidPath(name) {
		return errs.E(errs.Invalid, op, s.uri(name), errors.New(`the path has an empty component, "." or ".."`))
	}
	return nil
}

// fail gives an error of the system its kind.
func (s *Store) fail(op, name string, err error) error {
	e := errs.E(kindOf(err), op, s.uri(name), err)
	if pe, ok := errors.AsType[*fs.PathError](err); ok { // the URI says the path already
		e.Err = pe.Err
	}
	if e.Kind == errs.Permission {
		if _, ok := errors.AsType[syscall.Errno](err); !ok {
			return e.WithHint("a symbolic link leads out of the under-store")
		}
	}
	return e
}

// kindOf classifies an error of the system. One of os.Root that carries no
// errno is its refusal to leave the root.
func kindOf(err error) errs.Kind {
	no, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			return errs.Permission
		}
		return errs.KindOf(err)
	}
	switch no {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.ENXIO:
		return errs.NotFound
	case unix.EACCES, unix.EPERM:
		return errs.Permission
	case unix.ESTALE:
		return errs.Stale
	case unix.EIO, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.ENOTCONN, unix.EINTR, unix.EAGAIN:
		return errs.Unavailable
	default:
		return errs.Unknown
	}
}

// uri returns the URI of name, for messages.
func (s *Store) uri(name string) string {
	return scheme + path.Join(s.dir, name)
}

// orDot returns name as os.Root wants it.
func orDot(name string) string {
	if name == "" {
		return "."
	}
	return name
}

// nobody is the observer of a store without one.
type nobody struct{}

func (nobody) Request(string)  {}
func (nobody) FileBytes(int64) {}
func (nobody) ListBytes(int64) {}
