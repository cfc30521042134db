package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"millrace/fuse"
	"millrace/internal/size"
)

func (a *app) umountCommand() *cobra.Command {
	timeout := size.Duration(10 * time.Second)
	var lazy bool
	c := &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "End a mount",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout.Std())
			defer cancel()
			return fuse.Unmount(ctx, args[0], lazy)
		},
	}
	c.Flags().Var(&timeout, "timeout", "wait this long for open files")
	c.Flags().BoolVar(&lazy, "lazy", false, "take it out of sight at once; open files stay usable until they are closed")
	return c
}
