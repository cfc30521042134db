package cluster

import (
	"fmt"
	"testing"

	"millrace/client"
)

// ofOwnHosts makes each worker one of a host of its own.
func ofOwnHosts(cfg *Config) {
	patientWorkers(cfg)
	cfg.Hosts = true
}

// settled waits until no file is so young that its version might change unseen,
// since such ones are not kept.
func (c *Cluster) settled(t *testing.T, files map[string]int64) {
	t.Helper()
	cl, err := c.Client(t.Context(), nil)
	must(t, err)
	defer cl.Close()
	for name := range files {
		must(t, Until(bounded(t), func() error {
			e, err := cl.Stat(t.Context(), name, client.StatOptions{WithTicket: true})
			if err == nil && e.Ticket.Unsettled {
				err = fmt.Errorf("%s may still change", name)
			}
			return err
		}))
	}
}

// onHost makes a client one of a worker's host.
func onHost(p *Process) func(*client.Config) {
	return func(cfg *client.Config) {
		cfg.HostID = p.Name
		throughWorkers(cfg)
	}
}

// TestReplicas reads the same files on every one of three hosts: the
// under-store gives each once; what a host has read it reads again without
// anybody else, also when all the other workers are dead.
func TestReplicas(t *testing.T) {
	const count, size = 30, 300 << 10
	c := start(t, 1, 3, ofOwnHosts)
	files := c.source(t, count, size, "ttl=100ms")
	c.settled(t, files)
	readOn := func(p *Process) {
		t.Helper()
		cl, err := c.Client(t.Context(), onHost(p))
		must(t, err)
		defer cl.Close()
		for name, size := range files {
			must(t, readWhole(t.Context(), cl, name, size))
		}
	}
	const gets, sent, served = "millrace_worker_ufs_read_bytes_total", "millrace_worker_peer_sent_bytes_total", "millrace_worker_bytes_served_total"
	first := c.Workers()[0]
	readOn(first)
	if n := c.sum(t, gets); n != count*size {
		t.Errorf("%v bytes came from the under-store for one host, want %d", n, count*size)
	}
	through := c.sum(t, sent)
	if through == 0 || through > count*size {
		t.Errorf("%v bytes came from other workers, of %d", through, count*size)
	}
	for _, other := range c.Workers()[1:] {
		readOn(other)
	}
	if n := c.sum(t, gets); n != count*size {
		t.Errorf("%v bytes came from the under-store for three hosts, want %d", n, count*size)
	}
	through = c.sum(t, sent)
	before, err := first.Metric(t.Context(), served)
	must(t, err)
	readOn(first)
	after, err := first.Metric(t.Context(), served)
	must(t, err)
	if after-before != count*size || c.sum(t, sent) != through {
		t.Errorf("of %d bytes that were read again, its worker served %v, and the others sent it %v", count*size, after-before, c.sum(t, sent)-through)
	}

	for _, other := range c.Workers()[1:] {
		other.Kill()
	}
	own, err := first.Metric(t.Context(), gets)
	must(t, err)
	readOn(first)
	if n, err := first.Metric(t.Context(), gets); err != nil || n != own {
		t.Errorf("with its owners dead, the under-store was asked for %v bytes: %v", n-own, err)
	}
}

// TestSpread: with placement=spread a file is on its owner alone.
func TestSpread(t *testing.T) {
	const count, size = 30, 100 << 10
	c := start(t, 1, 3, ofOwnHosts)
	files := c.source(t, count, size, "placement=spread", "ttl=100ms")
	c.settled(t, files)
	for _, p := range c.Workers() {
		cl, err := c.Client(t.Context(), onHost(p))
		must(t, err)
		for name, size := range files {
			must(t, readWhole(t.Context(), cl, name, size))
		}
		must(t, cl.Close())
	}
	if n := c.sum(t, "millrace_tier_cached_bytes"); n != count*size {
		t.Errorf("%v bytes are cached, want each of %d once", n, count*size)
	}
}
