package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"millrace/client"
	"millrace/internal/errs"
)

func (a *app) getCommand() *cobra.Command {
	g := &getter{app: a}
	c := &cobra.Command{
		Use:   "get SRC DST",
		Short: "Copy files out of the namespace",
		Long: "Copies the file SRC to DST, or into DST if that is a directory. With -r SRC may be a directory,\n" +
			"whose content goes to DST, or to a directory of its name in DST if DST exists.\n" +
			"A destination file appears when it is complete, and not before.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if g.parallel < 1 || g.parallel > 256 {
				return usagef("--parallel %d: want 1 to 256", g.parallel)
			}
			s, err := a.connect(cmd, &args[0])
			if err != nil {
				return err
			}
			return errors.Join(g.get(cmd.Context(), s, args[0], args[1]), s.Close())
		},
	}
	c.Flags().BoolVarP(&g.recursive, "recursive", "r", false, "copy a directory")
	c.Flags().IntVar(&g.parallel, "parallel", 8, "copy `N` files at once")
	return c
}

type getter struct {
	*app

	recursive bool
	parallel  int

	files, bytes           atomic.Int64 // copied
	totalFiles, totalBytes atomic.Int64 // found so far
}

func (g *getter) get(ctx context.Context, s *session, src, dst string) error {
	e, err := s.Stat(ctx, src, client.StatOptions{WithTicket: true})
	if err != nil {
		return err
	}
	if e.Dir && !g.recursive {
		return errs.E(errs.IsDir, "get", src, nil).WithHint("copy a directory with -r")
	}
	if fi, err := os.Stat(dst); err == nil && fi.IsDir() && src != "/" {
		dst = filepath.Join(dst, path.Base(src))
	}
	if !e.Dir {
		if err := replaceable(dst); err != nil {
			return err
		}
	}
	p := g.progress("get " + src)
	if e.Dir {
		err = g.tree(ctx, s, src, dst, p)
	} else {
		g.totalFiles.Add(1)
		g.totalBytes.Add(e.Size)
		err = g.fresh(ctx, s, e, dst, func() { g.show(p, false) })
	}
	g.show(p, true)
	p.end()
	if err == nil {
		_, err = fmt.Fprintf(g.stderr, "copied %s, %s\n", plural(g.files.Load(), "file", "files"), sizeText(g.bytes.Load()))
	}
	return err
}

// replaceable refuses a destination that a rename would take away from all who
// use it: a device, a pipe, a socket, a link.
func replaceable(dst string) error {
	fi, err := os.Lstat(dst)
	if err != nil || fi.Mode().IsRegular() || fi.IsDir() {
		return nil //nolint:nilerr // what is not there can be made, or making it says why not
	}
	return errs.E(errs.Invalid, "get", dst, errors.New("the destination is there and is no regular file")).
		WithHint("write to devices and pipes with `millrace cat`")
}

func (g *getter) show(p progress, final bool) {
	p.update(progressState{
		doneBytes: g.bytes.Load(), totalBytes: g.totalBytes.Load(),
		doneFiles: g.files.Load(), totalFiles: g.totalFiles.Load(), final: final,
	})
}

// tree copies all files below src, several at once; the first error ends it.
func (g *getter) tree(ctx context.Context, s *session, src, dst string, p progress) error {
	if err := os.MkdirAll(dst, 0o777); err != nil { //nolint:gosec // the user's umask decides
		return errs.Wrap(err, "make directory", dst)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(g.parallel)
	var listing error
	for e, err := range s.List(ctx, src, client.ListOptions{Recursive: true, WithTickets: true}) {
		if err != nil {
			listing = err
			break
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(e.Path, src), "/")
		if !filepath.IsLocal(rel) {
			listing = errs.E(errs.Invalid, "get", e.Path, errors.New("its name leads out of the destination"))
			break
		}
		g.totalFiles.Add(1)
		g.totalBytes.Add(e.Size)
		group.Go(func() error {
			to := filepath.Join(dst, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil { //nolint:gosec // the user's umask decides
				return errs.Wrap(err, "make directory", filepath.Dir(to))
			}
			return g.fresh(ctx, s, e, to, func() { g.show(p, false) })
		})
	}
	err := group.Wait()
	if err != nil {
		return err // the cause of whatever the listing says
	}
	return listing
}

// fresh copies a file, and once more if the version that the master named is
// gone: its answer may be older than the change.
func (g *getter) fresh(ctx context.Context, s *session, e *client.Entry, dst string, step func()) error {
	err := g.file(ctx, s, e, dst, step)
	if !errors.Is(err, errs.Stale) {
		return err
	}
	now, again := s.Stat(ctx, e.Path, client.StatOptions{WithTicket: true}) // the SDK has it looked at
	if again != nil || now.Dir || now.FileID == e.FileID {
		return err
	}
	g.totalBytes.Add(now.Size - e.Size)
	return g.file(ctx, s, now, dst, step)
}

// file copies one file to a temporary name beside dst and renames it.
func (g *getter) file(ctx context.Context, s *session, e *client.Entry, dst string, step func()) error {
	f, err := s.OpenEntry(ctx, e)
	if err != nil {
		return err
	}
	tmp, err := createTemp(filepath.Dir(dst))
	if err != nil {
		return errors.Join(errs.Wrap(err, "create a file in", filepath.Dir(dst)), f.Close())
	}
	var copied int64
	err = copyRange(ctx, tmp, f, 0, f.Size(), func(n int64) {
		copied += n
		g.bytes.Add(n)
		step()
	})
	err = errors.Join(err, f.Close(), tmp.Close())
	if err == nil {
		if !e.MTime.IsZero() {
			err = os.Chtimes(tmp.Name(), e.MTime, e.MTime)
		}
		if err == nil {
			err = os.Rename(tmp.Name(), dst)
		}
	}
	if err != nil {
		g.bytes.Add(-copied)
		return errors.Join(errs.Wrap(err, "get", e.Path), os.Remove(tmp.Name()))
	}
	g.files.Add(1)
	step()
	return nil
}

// createTemp makes a new file whose mode is what the umask leaves, unlike
// os.CreateTemp's.
func createTemp(dir string) (*os.File, error) {
	for {
		name := filepath.Join(dir, ".millrace-get-"+randomText())
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // the user's umask decides
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}
