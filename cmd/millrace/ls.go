package main

import (
	"context"
	"errors"
	"path"

	"github.com/spf13/cobra"

	"millrace/client"
	"millrace/internal/errs"
)

// infoJSON is a listed entry with what JSON cannot say in `path`.
type infoJSON struct {
	client.Info

	PathBase64 string `json:"path_base64,omitempty"`
}

func (a *app) lsCommand() *cobra.Command {
	l := &lister{app: a}
	c := &cobra.Command{
		Use:   "ls [PATH...]",
		Short: "List files and directories",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			s, err := a.connect(cmd, pathArgs(args)...)
			if err != nil {
				return err
			}
			return errors.Join(l.list(cmd.Context(), s, args), s.Close())
		},
	}
	c.Flags().BoolVarP(&l.long, "long", "l", false, "sizes, times and what is cached")
	c.Flags().BoolVarP(&l.recursive, "recursive", "R", false, "all files below PATH")
	a.outputFlag(c.Flags())
	return c
}

type lister struct {
	*app

	long, recursive bool
}

// list prints what is at and below paths, as it comes.
func (l *lister) list(ctx context.Context, s *session, paths []string) error {
	if l.output == "json" {
		out := &jsonArray{w: l.stdout}
		err := l.each(ctx, s, paths, true, func(e *client.Entry) error {
			return out.add(infoJSON{e.Info(), rawPath(e.Path)})
		})
		return errors.Join(err, out.end())
	}
	if !l.long {
		t := l.table()
		return errors.Join(l.each(ctx, s, paths, false, func(e *client.Entry) error {
			t.row(l.name(e, len(paths) > 1))
			return t.flush()
		}))
	}
	t := l.table("TYPE", "SIZE", "CACHED", "MODIFIED", "PATH")
	err := l.each(ctx, s, paths, true, func(e *client.Entry) error {
		kind, size, cached := client.TypeFile, countText(e.Size), cachedText(e.CachedBytes, e.Size)
		if e.Dir {
			kind, size, cached = client.TypeDir, "-", "-"
		}
		t.row(kind, size, cached, timeText(e.MTime), l.name(e, len(paths) > 1))
		return t.err
	})
	return errors.Join(err, t.flush())
}

// name is how an entry is called in a table: in full where several
// directories are listed.
func (l *lister) name(e *client.Entry, full bool) string {
	name := e.Path
	if !full && !l.recursive {
		name = path.Base(name)
	}
	if e.Dir && name != "/" {
		name += "/"
	}
	return name
}

func (l *lister) each(ctx context.Context, s *session, paths []string, cached bool, do func(*client.Entry) error) error {
	o := client.ListOptions{Recursive: l.recursive, WithCached: cached}
	for _, p := range paths {
		for e, err := range s.List(ctx, p, o) {
			if errs.KindOf(err) == errs.NotDir {
				e, err = s.Stat(ctx, p, client.StatOptions{WithCached: cached})
			}
			if err != nil {
				return err
			}
			if err := do(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func cachedText(cached, size int64) string {
	switch {
	case size == 0 || cached >= size:
		return "100%"
	case cached == 0:
		return "0%"
	default:
		return percent(cached, size)
	}
}
