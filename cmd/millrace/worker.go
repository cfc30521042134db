package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"millrace/tier"
)

func (a *app) workerCommand() *cobra.Command {
	bind := bindings{
		"data-dir": "worker.data_dir", "listen": "worker.listen", "data-listen": "worker.data_listen",
		"http-listen": "worker.http_listen", "unix-socket": "worker.unix_socket", "memory": "worker.memory",
	}
	var caches []string
	c := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker in the foreground",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := a.settings(cmd, bind)
			if err != nil {
				return err
			}
			if s.Worker.Tiers, err = cacheTiers(caches, s.Worker.Tiers); err != nil {
				return err
			}
			dataDir, err := filepath.Abs(s.Worker.DataDir)
			if err != nil {
				return err
			}
			memory, err := s.Worker.memory(true, dataDir)
			if err != nil {
				return err
			}
			n, err := newNode(s, a.logger(s))
			if err != nil {
				return err
			}
			n.memory = memory
			return runWorker(cmd.Context(), n)
		},
	}
	f := c.Flags()
	f.String("data-dir", "", "`DIR` of the worker's identity")
	f.StringArrayVar(&caches, "cache", nil, "cache directory, `DIR:SIZE[:memory|ssd|hdd]`; may be repeated")
	addMemoryFlag(f, "`SIZE` of a memory tier, in /dev/shm (default none)")
	f.String("listen", "", "`HOST:PORT` of gRPC")
	f.String("data-listen", "", "`HOST:PORT` of the data plane")
	f.String("http-listen", "", "`HOST:PORT` of /metrics, /healthz, /readyz and /debug/pprof")
	f.String("unix-socket", "", "`PATH` of the data plane's socket for this host")
	return c
}

// cacheTiers returns the cache directories that the flags name, or those of
// the configuration.
func cacheTiers(flags []string, configured []tier.Config) ([]tier.Config, error) {
	if len(flags) == 0 {
		return configured, nil
	}
	all := make([]tier.Config, len(flags))
	for i, flag := range flags {
		var err error
		if all[i], err = parseCache(flag); err != nil {
			return nil, usageError{err}
		}
	}
	if err := tier.ValidateAll(all); err != nil {
		return nil, usagef("--cache%w", err)
	}
	return all, nil
}

func runWorker(ctx context.Context, n *node) error {
	dir := n.settings.Worker.DataDir
	if err := n.lock(dir, "--data-dir or worker.data_dir"); err != nil {
		return n.fail(ctx, err)
	}
	l, err := n.listenWorker(ctx)
	if err != nil {
		return n.fail(ctx, err)
	}
	if _, err := n.startWorker(ctx, l, n.settings.Cluster.Masters); err != nil {
		return n.fail(ctx, err)
	}
	if err := n.addresses.Write(dir); err != nil {
		return n.fail(ctx, err)
	}
	n.made = nil
	return n.finish(ctx)
}
