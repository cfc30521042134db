package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"millrace/client"
)

func (a *app) workersCommand() *cobra.Command {
	c := &cobra.Command{Use: "workers", Short: "Look after the workers"}
	c.AddCommand(
		a.workersListCommand(),
		a.workersChangeCommand("drain", "Send new reads elsewhere, so that the worker can be stopped", (*client.Client).DrainWorker),
		a.workersChangeCommand("undrain", "Give a drained worker its share of the reads again", (*client.Client).UndrainWorker),
		a.workersChangeCommand("forget", "Take a worker that is gone for good off the list", (*client.Client).ForgetWorker),
	)
	return c
}

func (a *app) workersListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the workers",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			st, err := s.Status(cmd.Context())
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(st.Workers)
			}
			t := a.table("ID", "ADDRESS", "DATA", "STATE", "DIRECTORIES", "USED", "CAPACITY")
			for _, w := range st.Workers {
				var used, capacity int64
				for _, d := range w.Tiers {
					used += d.UsedBytes
					capacity += d.CapacityBytes
				}
				t.row(w.ID, w.Address, w.DataAddress, w.State, countText(int64(len(w.Tiers))), sizeText(used), sizeText(capacity))
			}
			return t.flush()
		},
	}
	a.outputFlag(c.Flags())
	return c
}

// workersChangeCommand does something to each worker that is named, as far as
// that succeeds.
func (a *app) workersChangeCommand(name, short string, do func(*client.Client, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   name + " ID...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			var failed error
			for _, id := range ids {
				failed = errors.Join(failed, do(s.Client, cmd.Context(), id))
			}
			return errors.Join(failed, s.Close())
		},
	}
}
