package main

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"millrace/client"
)

func (a *app) statCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "stat PATH",
		Short: "Describe a file or directory, and where its blocks are cached",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, &args[0])
			if err != nil {
				return err
			}
			return errors.Join(a.stat(cmd.Context(), s, args[0]), s.Close())
		},
	}
	a.outputFlag(c.Flags())
	return c
}

func (a *app) stat(ctx context.Context, s *session, path string) error {
	e, err := s.Stat(ctx, path, client.StatOptions{WithCached: true})
	if err != nil {
		return err
	}
	var blocks []client.BlockLocation
	if !e.Dir {
		if e, blocks, err = s.Locate(ctx, path); err != nil {
			return err
		}
	}
	i := e.FileInfo(blocks)
	if !e.Dir {
		i.CachedBytes = 0
		for _, b := range blocks {
			i.CachedBytes += b.CachedBytes
		}
	}
	if a.output == "json" {
		return a.json(struct {
			client.FileInfo

			PathBase64 string `json:"path_base64,omitempty"`
		}{i, rawPath(i.Path)})
	}
	t := a.table()
	t.row("path", i.Path)
	t.row("type", i.Type)
	if e.Dir {
		return t.flush()
	}
	t.row("size", countText(i.Size)+" ("+sizeText(i.Size)+")")
	t.row("modified", timeText(e.MTime))
	t.row("cached", countText(i.CachedBytes)+" ("+cachedText(i.CachedBytes, i.Size)+")")
	t.row("version", i.Version)
	t.row("file ID", i.FileID)
	t.row("block size", sizeText(i.BlockSize))
	for _, b := range i.Blocks {
		t.row("block "+strconv.FormatUint(uint64(b.Index), 10), countText(b.CachedBytes)+" on "+strings.Join(b.Workers, ", "))
	}
	return t.flush()
}
