package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) mastersCommand() *cobra.Command {
	c := &cobra.Command{Use: "masters", Short: "Look after the group of masters"}
	c.AddCommand(a.mastersListCommand(), a.mastersAddCommand(), a.mastersRemoveCommand(), a.mastersTransferCommand())
	return c
}

func (a *app) mastersListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the masters, those included that wait to be added",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			list, err := s.Masters(cmd.Context())
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(noNil(list))
			}
			t := a.table("ID", "ADDRESS", "RAFT", "STATE", "APPLIED")
			for _, m := range list {
				t.row(m.ID, m.Address, m.Raft, m.State, strconv.FormatUint(m.AppliedIndex, 10))
			}
			return t.flush()
		},
	}
	a.outputFlag(c.Flags())
	return c
}

func (a *app) mastersAddCommand() *cobra.Command {
	return a.masterChange("add ID", "Make a master that waits to be added a voter; returns when it has caught up",
		func(ctx context.Context, s *session, id string) error { return s.AddMaster(ctx, id) })
}

func (a *app) mastersRemoveCommand() *cobra.Command {
	return a.masterChange("remove ID", "Take a master out of the group, also one that has lost its disk",
		func(ctx context.Context, s *session, id string) error { return s.RemoveMaster(ctx, id) })
}

func (a *app) mastersTransferCommand() *cobra.Command {
	c := a.masterChange("transfer [ID]", "Make another master lead: ID, or the one that has applied most",
		func(ctx context.Context, s *session, id string) error { return s.TransferLeadership(ctx, id) })
	c.Args = cobra.MaximumNArgs(1)
	return c
}

// masterChange is a command that changes the group.
func (a *app) masterChange(use, short string, change func(context.Context, *session, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return errors.Join(change(cmd.Context(), s, id), s.Close())
		},
	}
}
