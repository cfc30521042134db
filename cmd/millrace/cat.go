package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"millrace/client"
	"millrace/internal/errs"
	"millrace/internal/size"
)

func (a *app) catCommand() *cobra.Command {
	var offset size.Bytes
	length := optionalSize{}
	c := &cobra.Command{
		Use:   "cat PATH...",
		Short: "Write files to the standard output",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, pathArgs(args)...)
			if err != nil {
				return err
			}
			for _, p := range args {
				if err = a.cat(cmd.Context(), s, p, int64(offset), length); err != nil {
					break
				}
			}
			return errors.Join(err, s.Close())
		},
	}
	c.Flags().Var(&offset, "offset", "begin at byte `SIZE`")
	c.Flags().Var(&length, "length", "write at most `SIZE` bytes")
	return c
}

// optionalSize is a size flag that tells 0 from not given.
type optionalSize struct {
	size.Bytes

	set bool
}

func (o *optionalSize) Set(s string) error {
	o.set = true
	return o.Bytes.Set(s)
}

func (o *optionalSize) String() string {
	if !o.set {
		return ""
	}
	return o.Bytes.String()
}

func (a *app) cat(ctx context.Context, s *session, path string, offset int64, length optionalSize) error {
	f, err := s.Open(ctx, path)
	if err != nil {
		return err
	}
	end := f.Size()
	if length.set {
		end = min(end, offset+int64(length.Bytes))
	}
	err = copyRange(ctx, a.stdout, f, offset, end, nil)
	return errors.Join(errs.Wrap(err, "cat", path), f.Close())
}

// copyBuffer is how much a command asks for at once, in bytes.
const copyBuffer = 4 << 20

// copyRange writes the bytes [offset, end) of f to w; count is told of each
// piece and may be nil.
func copyRange(ctx context.Context, w io.Writer, f *client.File, offset, end int64, count func(int64)) error {
	if offset >= end {
		return nil
	}
	buf := make([]byte, min(copyBuffer, end-offset))
	for offset < end {
		n, err := f.ReadAtContext(ctx, buf[:min(int64(len(buf)), end-offset)], offset)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			offset += int64(n)
			if count != nil {
				count(int64(n))
			}
		}
		if err != nil && (!errors.Is(err, io.EOF) || offset < end) {
			return err
		}
	}
	return nil
}
