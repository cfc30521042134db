package hdfsfs

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/colinmarc/hdfs/v2"

	"millrace/internal/errs"
	"millrace/ufs"
)

// batch is how many entries one call lists: as many as a NameNode answers at
// once, unless it is told otherwise.
const batch = 1000

// List streams what is in dir: the children in the order of the NameNode, or
// all files in byte order of their paths. What goes away meanwhile is left out.
func (s *Store) List(ctx context.Context, dir string, opts ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		const op = "list"
		err := s.check(ctx, op, dir)
		if err == nil {
			l := &listing{store: s, ctx: ctx, after: opts.After, yield: yield}
			if opts.Recursive {
				err = l.below(dir)
			} else {
				err = l.children(dir)
			}
			if err != nil && !errors.Is(err, errStop) {
				err = s.fail(op, dir, err)
			}
		}
		if err != nil && !errors.Is(err, errStop) {
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
	after string
	yield func(ufs.Info, error) bool
}

// children yields what is in one directory.
func (l *listing) children(dir string) error {
	for info, err := range l.entries(dir) {
		if err != nil {
			return err
		}
		if err := l.emit(info); err != nil {
			return err
		}
	}
	return nil
}

// emit yields one entry.
func (l *listing) emit(info ufs.Info) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if !l.yield(info, nil) {
		return errStop
	}
	return nil
}

// entries streams one directory in the order of the NameNode.
func (l *listing) entries(dir string) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		after := ""
		for {
			list, err := l.store.list(l.ctx, dir, after)
			if err != nil {
				yield(ufs.Info{}, err)
				return
			}
			for _, st := range list {
				name := string(st.GetPath())
				after = name
				if name == "" || !validPath(name) {
					continue
				}
				info, err := l.store.info(ufs.Join(dir, name), st)
				if errors.Is(err, errs.NotFound) {
					continue // a symbolic link
				}
				if !yield(info, err) || err != nil {
					return
				}
			}
			if len(list) < batch {
				return
			}
		}
	}
}

// list asks for the entries of dir behind the name after, batch at most; fewer
// are the last ones.
func (s *Store) list(ctx context.Context, dir, after string) ([]*hdfs.FileStatus, error) {
	var out []*hdfs.FileStatus
	err := s.nameNode.call(ctx, opList, extras{located: true, after: after}, func(c *hdfs.Client) error {
		f, err := c.Open(s.path(dir))
		if err != nil {
			return err
		}
		if !f.Stat().IsDir() {
			return errs.E(errs.NotDir, "", "", nil)
		}
		list, err := f.Readdir(batch)
		if err != nil && !errors.Is(err, io.EOF) { // there is nothing
			return err
		}
		out = out[:0]
		for _, fi := range list {
			if st, ok := fi.Sys().(*hdfs.FileStatus); ok {
				out = append(out, st)
			}
		}
		return nil
	})
	return out, err
}

// below yields the files below dir in byte order.
func (l *listing) below(dir string) error {
	from, some := l.start(dir)
	if !some {
		return nil
	}
	for {
		chunk, more, err := l.sorted(dir, from)
		if err != nil {
			return err
		}
		for _, info := range chunk {
			if info.Type == ufs.File {
				err = l.emit(info)
			} else {
				err = l.below(info.Path)
				if kind := errs.KindOf(err); kind == errs.NotFound || kind == errs.NotDir {
					err = nil // it went away since it was listed
				}
			}
			if err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		from = bound{key: key(chunk[len(chunk)-1])}
	}
}

// key is what entries are ordered by: byte order of the keys is byte order of
// the paths of files.
func key(info ufs.Info) string {
	if info.Type == ufs.Dir {
		return info.Path + "/"
	}
	return info.Path
}

// sorted returns the first entries of a directory behind from, in order, and
// whether there are more. The order of a NameNode is another.
func (l *listing) sorted(dir string, from bound) (out []ufs.Info, more bool, err error) {
	cut := func() {
		slices.SortFunc(out, func(a, b ufs.Info) int { return strings.Compare(key(a), key(b)) })
		if most := l.store.chunk; len(out) > most {
			clear(out[most:])
			out, more = out[:most], true
		}
	}
	for info, err := range l.entries(dir) {
		if err != nil {
			return nil, false, err
		}
		if from.skips(key(info)) {
			continue
		}
		// Twice the bound is let in before it is cut down again.
		if out = append(out, info); len(out) >= 2*l.store.chunk {
			cut()
		}
	}
	cut()
	return out, more, nil
}

// bound is where the entries of a directory start: behind key, or with it.
type bound struct {
	key       string
	inclusive bool
}

func (b bound) skips(key string) bool {
	return key < b.key || (key == b.key && !b.inclusive)
}

// start returns where after puts the start in dir: behind a file, or with the
// directory that after is in; false when all of dir is up to after.
func (l *listing) start(dir string) (bound, bool) {
	all := bound{inclusive: true}
	if l.after == "" {
		return all, true
	}
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
	rest, in := strings.CutPrefix(l.after, prefix)
	if !in {
		return all, l.after < prefix
	}
	if name, _, deeper := strings.Cut(rest, "/"); deeper {
		return bound{key: prefix + name + "/", inclusive: true}, true
	}
	return bound{key: l.after}, true
}
