package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"millrace/client"
)

// TestHotBlocks reads one file from many other hosts: further workers come to
// serve it, which have it from its owner, and go when it is over. The
// under-store gives the file once.
func TestHotBlocks(t *testing.T) {
	for name, placing := range map[string]string{
		"a file of one owner":  "",
		"a file by its blocks": "whole_file_limit = \"1KiB\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			const workers, size = 3, 1 << 20
			c := start(t, 1, workers, func(cfg *Config) {
				ofOwnHosts(cfg)
				cfg.MasterTOML = placing + "hot_rate = \"256KiB\"\nhot_replicas = 2\nhot_hold = \"2s\""
			})
			files := c.source(t, 1, size, "ttl=100ms")
			c.settled(t, files)
			file := slices.Collect(maps.Keys(files))[0]
			var all []*readers
			for i := range 4 {
				cl, err := c.Client(t.Context(), onOtherHost(i))
				must(t, err)
				t.Cleanup(func() { _ = cl.Close() }) // it is only read from
				all = append(all, c.readers(t, cl, 1, files))
			}
			const hot, given = "millrace_master_hot_blocks", "millrace_worker_ufs_read_bytes_total"
			must(t, Until(bounded(t), func() error {
				if n, err := c.Masters()[0].Metric(t.Context(), hot); err != nil || n != 1 {
					return fmt.Errorf("%v blocks are hot: %w", n, err)
				}
				return c.servedByAll(t, file)
			}))
			for _, r := range all {
				r.stop(t)
			}
			if n := c.sum(t, given); n != size {
				t.Errorf("%v bytes came from the under-store, want %d", n, size)
			}

			must(t, Until(bounded(t), func() error {
				n, err := c.Masters()[0].Metric(t.Context(), hot)
				if err == nil && n != 0 {
					err = fmt.Errorf("%v blocks are hot that nobody reads", n)
				}
				return err
			}))
			before := c.served(t)
			for i := range 8 {
				cl, err := c.Client(t.Context(), onOtherHost(i))
				must(t, err)
				f, err := cl.Open(t.Context(), file)
				must(t, err)
				_, err = f.ReadAt(make([]byte, 1), 0) // so little that it is not hot by that
				must(t, errors.Join(err, f.Close(), cl.Close()))
			}
			asked := 0
			for i, n := range c.served(t) {
				if n != before[i] {
					asked++
				}
			}
			if asked != 1 {
				t.Errorf("%d workers serve a file that is not hot any more", asked)
			}
		})
	}
}

// onOtherHost makes a client one of a host without a worker.
func onOtherHost(i int) func(*client.Config) {
	return func(cfg *client.Config) {
		cfg.HostID = fmt.Sprintf("reader-%d", i)
		cfg.HedgeShare = 0 // whoever is slow, no other one is asked for 2 s
		throughWorkers(cfg)
	}
}

// served returns how many bytes each worker has sent to clients.
func (c *Cluster) served(t *testing.T) (bytes []float64) {
	t.Helper()
	for _, w := range c.Workers() {
		n, err := w.Metric(t.Context(), "millrace_worker_bytes_served_total")
		must(t, err)
		bytes = append(bytes, n)
	}
	return bytes
}

// servedByAll returns nil if every worker has a file and has served it.
func (c *Cluster) servedByAll(t *testing.T, file string) error {
	t.Helper()
	cl, err := c.Client(t.Context(), nil)
	must(t, err)
	defer cl.Close()
	_, blocks, err := cl.Locate(t.Context(), file)
	if err != nil {
		return err
	}
	if len(blocks) != 1 || len(blocks[0].Workers) != len(c.Workers()) {
		return fmt.Errorf("the file is at %v", blocks)
	}
	if bytes := c.served(t); slices.Min(bytes) == 0 {
		return fmt.Errorf("%v bytes were served", bytes)
	}
	return nil
}
