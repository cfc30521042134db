package main

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) masterCommand() *cobra.Command {
	bind := bindings{"data-dir": "master.data_dir", "listen": "master.listen", "raft-listen": "master.raft_listen", "http-listen": "master.http_listen"}
	c := &cobra.Command{
		Use:   "master",
		Short: "Run a master in the foreground",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := a.settings(cmd, bind)
			if err != nil {
				return err
			}
			n, err := newNode(s, a.logger(s))
			if err != nil {
				return err
			}
			return runMaster(cmd.Context(), n)
		},
	}
	f := c.Flags()
	f.String("data-dir", "", "`DIR` of the master's state")
	f.String("listen", "", "`HOST:PORT` of gRPC")
	f.String("raft-listen", "", "`HOST:PORT` of Raft")
	f.String("http-listen", "", "`HOST:PORT` of /metrics, /healthz, /readyz and /debug/pprof")
	return c
}

func runMaster(ctx context.Context, n *node) error {
	dir := n.settings.Master.DataDir
	if err := n.lock(dir, "--data-dir or master.data_dir"); err != nil {
		return n.fail(ctx, err)
	}
	l, err := n.listenMaster(ctx)
	if err != nil {
		return n.fail(ctx, err)
	}
	if _, err := n.startMaster(ctx, l); err != nil {
		return n.fail(ctx, err)
	}
	if err := n.addresses.Write(dir); err != nil {
		return n.fail(ctx, err)
	}
	return n.finish(ctx)
}
