package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"millrace/client"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/wait"
)

func (a *app) statusCommand() *cobra.Command {
	var wait size.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster: masters, workers, under-stores and counters",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			st, err := a.statusOf(cmd.Context(), s, wait.Std())
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(st)
			}
			return a.printStatus(st)
		},
	}
	c.Flags().Var(&wait, "wait", "wait this long for the cluster to serve reads; fail if it does not")
	a.outputFlag(c.Flags())
	return c
}

// statusOf asks once, or, with wait, until the cluster serves.
func (a *app) statusOf(ctx context.Context, s *session, wait time.Duration) (*client.Status, error) {
	if wait <= 0 {
		return s.Status(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return waitServing(ctx, s.Client)
}

// pollInterval is how often something is asked for that cannot be waited for.
const pollInterval = 50 * time.Millisecond

// waitServing asks for the status until it says that reads work. When ctx ends
// first, the error says what was missing.
func waitServing(ctx context.Context, c *client.Client) (*client.Status, error) {
	var why error
	for {
		st, err := c.Status(ctx)
		switch {
		case err == nil && st.Serving:
			return st, nil
		case err == nil:
			why = errNotServing
		case ctx.Err() == nil:
			why = err
		case why == nil:
			why = err
		}
		if wait.For(ctx, pollInterval) != nil {
			return nil, errs.E(errs.Timeout, "wait for the cluster to serve", "", why)
		}
	}
}

var errNotServing = errors.New("there is no leader, or no live worker that knows the under-stores")

func (a *app) printStatus(st *client.Status) error {
	t := a.table()
	t.row("cluster", st.ClusterID)
	serving := "yes"
	if !st.Serving {
		serving = "no: " + errNotServing.Error()
	}
	t.row("serves reads", serving)
	if err := t.flush(); err != nil {
		return err
	}
	t = a.section("MASTER", "ADDRESS", "STATE")
	for _, m := range st.Masters {
		t.row(m.ID, m.Address, m.State)
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = a.section("WORKER", "ADDRESS", "STATE", "MEDIUM", "USED", "CAPACITY", "DISK", "DIRECTORY")
	for _, w := range st.Workers {
		if len(w.Tiers) == 0 {
			t.row(w.ID, w.Address, w.State, "-", "-", "-", "-", "-")
		}
		for _, d := range w.Tiers {
			t.row(w.ID, w.Address, w.State, d.Medium, sizeText(d.UsedBytes), sizeText(d.CapacityBytes), d.State, d.Dir)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = a.section("UNDER-STORE", "URI", "OPTIONS")
	for _, m := range st.UFS {
		t.row(m.Path, m.URI, optionsText(m.Options))
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = a.section("COUNTER", "")
	c := st.Counters
	t.row("bytes served", sizeText(c.BytesServed))
	t.row("under-store bytes", sizeText(c.UFSBytesRead))
	t.row("under-store listings", sizeText(c.UFSListBytes))
	for _, op := range slices.Sorted(maps.Keys(c.UFSRequests)) {
		t.row("under-store "+op, countText(c.UFSRequests[op]))
	}
	t.row("page hits", countText(c.PageHits))
	t.row("page misses", countText(c.PageMisses))
	t.row("opens by passthrough", countText(c.OpensPassthrough))
	t.row("opens copied", countText(c.OpensCopy))
	t.row("evicted", sizeText(c.EvictedBytes))
	t.row("checksum errors", countText(c.ChecksumErrors))
	return t.flush()
}
