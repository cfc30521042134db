package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) loadCommand() *cobra.Command {
	var detach bool
	c := &cobra.Command{
		Use:   "load PATH...",
		Short: "Load files into the cache and follow the job",
		Long: "Loads all files at and below the paths. Ends with 0 only if every file is cached.\n" +
			"Ctrl-C ends the following; the job goes on.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, pathArgs(args)...)
			if err != nil {
				return err
			}
			return errors.Join(a.load(cmd.Context(), s, args, detach), s.Close())
		},
	}
	c.Flags().BoolVar(&detach, "detach", false, "print the job's ID and do not follow it")
	a.outputFlag(c.Flags())
	return c
}

func (a *app) load(ctx context.Context, s *session, paths []string, detach bool) error {
	id, err := s.SubmitLoad(ctx, paths)
	if err != nil {
		return err
	}
	if !detach {
		return a.follow(ctx, s, id, false)
	}
	if a.output == "json" {
		return a.json(map[string]string{"id": id})
	}
	_, err = fmt.Fprintln(a.stdout, id)
	return err
}
