package localfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/ufs"
)

// readAhead is how many names are read from a directory at once.
const readAhead = 1024

// List streams what is in dir. Both kinds of list are in byte order, where a
// directory counts as its name and a slash. What goes away meanwhile is left
// out.
func (s *Store) List(ctx context.Context, dir string, opts ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		l := &listing{store: s, ctx: ctx, opts: opts, yield: yield}
		if err := l.run(dir); err != nil && !errors.Is(err, errStop) {
			yield(ufs.Info{}, err)
		}
	}
}

// errStop says that the consumer of a listing has seen enough.
var errStop = errors.New("stop")

// listing is one List under way.
type listing struct {
	store *Store
	ctx   context.Context //nolint:containedctx // a listing is one call
	opts  ufs.ListOptions
	yield func(ufs.Info, error) bool
	root  *os.Root
	above []identity // the directories that the listing is in
}

// identity tells directories apart.
type identity struct{ device, inode uint64 }

func (l *listing) run(dir string) error {
	const op = "list"
	s := l.store
	if err := s.check(l.ctx, op, dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return s.fail(op, dir, err)
	}
	defer root.Close()
	l.root = root
	err = l.dir(dir)
	if errors.Is(err, errNotDir) {
		return errs.E(errs.NotDir, op, s.uri(dir), nil)
	}
	return err
}

// errNotDir says that what was opened as a directory is none.
var errNotDir = errors.New("not a directory")

// dir yields what is in one directory, and for a recursive list in those
// below it.
func (l *listing) dir(dir string) error {
	const op = "list"
	s := l.store
	s.observer.Request(opList)
	f, err := l.root.OpenFile(orDot(dir), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return s.fail(op, dir, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return s.fail(op, dir, err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !ok {
		return errNotDir
	}
	self := identity{device: st.Dev, inode: st.Ino}
	if slices.Contains(l.above, self) {
		return nil // a link that leads back up
	}
	l.above = append(l.above, self)
	defer func() { l.above = l.above[:len(l.above)-1] }()

	from, some := l.start(dir)
	if !some {
		return nil
	}
	for {
		names, more, err := l.names(f, dir, from)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := l.entry(f, dir, n); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		from = bound{key: names[len(names)-1].key}
	}
}

// bound is where the names of a directory start: behind key, or with it.
type bound struct {
	key       string
	inclusive bool
}

func (b bound) skips(key string) bool {
	return key < b.key || (key == b.key && !b.inclusive)
}

// start returns where After puts the start in dir: behind a file, or with the
// directory that After is in; false when all of dir is up to After.
func (l *listing) start(dir string) (bound, bool) {
	all := bound{inclusive: true}
	if !l.opts.Recursive || l.opts.After == "" {
		return all, true
	}
	rest := l.opts.After
	if dir != "" {
		var in bool
		if rest, in = strings.CutPrefix(l.opts.After, dir+"/"); !in {
			return all, l.opts.After < dir+"/"
		}
	}
	if name, _, deeper := strings.Cut(rest, "/"); deeper {
		return bound{key: name + "/", inclusive: true}, true
	}
	return bound{key: rest}, true
}

// name is an entry of a directory. Its key is the name, with a slash behind
// that of a directory: byte order of the keys is byte order of the paths.
type name struct {
	key  string
	link bool
}

// names returns the first names of a directory behind from, in order, and
// whether there are more.
func (l *listing) names(f *os.File, dir string, from bound) (names []name, more bool, err error) {
	const op = "list"
	s := l.store
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, false, s.fail(op, dir, err)
	}
	for {
		if err := l.ctx.Err(); err != nil {
			return nil, false, errs.Wrap(err, op, s.uri(dir))
		}
		entries, err := f.ReadDir(readAhead)
		for _, e := range entries {
			if n, ok := l.name(dir, e); ok && !from.skips(n.key) {
				names = append(names, n)
			}
		}
		// Twice the bound is let in before it is cut down again.
		if end := errors.Is(err, io.EOF); end || len(names) >= 2*s.chunk {
			slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.key, b.key) })
			if len(names) > s.chunk {
				clear(names[s.chunk:])
				names, more = names[:s.chunk], true
			}
			if end {
				return names, more, nil
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, false, s.fail(op, dir, err)
		}
	}
}

// name turns a directory entry into a name; false for what is left out.
func (l *listing) name(dir string, e fs.DirEntry) (name, bool) {
	mode := e.Type()
	link := mode&fs.ModeSymlink != 0
	if link {
		fi, err := l.root.Stat(ufs.Join(dir, e.Name()))
		if err != nil {
			return name{}, false // broken, or it leads out of the root
		}
		mode = fi.Mode().Type()
	}
	switch {
	case mode.IsDir():
		return name{key: e.Name() + "/", link: link}, true
	case mode.IsRegular():
		return name{key: e.Name(), link: link}, true
	default:
		return name{}, false
	}
}

// entry yields one name of dir, which is open as f, or what is below it.
func (l *listing) entry(f *os.File, dir string, n name) error {
	const op = "list"
	s := l.store
	base, isDir := strings.CutSuffix(n.key, "/")
	path := ufs.Join(dir, base)
	if err := l.ctx.Err(); err != nil {
		return errs.Wrap(err, op, s.uri(path))
	}
	if l.opts.Recursive && isDir {
		err := l.dir(path)
		if errors.Is(err, errNotDir) || errors.Is(err, errs.NotFound) {
			return nil // it went away since its name was read
		}
		return err
	}
	a, err := l.look(f, path, base, n.link)
	if err != nil {
		if kindOf(err) == errs.NotFound {
			return nil
		}
		return s.fail(op, path, err)
	}
	info, ok := s.info(path, a)
	if !ok || (info.Type == ufs.Dir) != isDir {
		return nil // replaced since its name was read
	}
	if !l.yield(info, nil) {
		return errStop
	}
	return nil
}

// look returns the attributes of base in the open directory f. A link is
// resolved from the root, so that it does not lead out.
func (l *listing) look(f *os.File, path, base string, link bool) (attributes, error) {
	if link {
		fi, err := l.root.Stat(path)
		if err != nil {
			return attributes{}, err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return attributes{}, unix.ENOENT
		}
		return statAttributes(st), nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return attributes{}, err
	}
	var st unix.Stat_t
	var statErr error
	err = raw.Control(func(fd uintptr) {
		statErr = unix.Fstatat(int(fd), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err := errors.Join(err, statErr); err != nil {
		return attributes{}, err
	}
	return attributesOf(&st), nil
}
