package cluster

import (
	"errors"
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
	const given, gets = "millrace_worker_descriptors_total", "millrace_worker_ufs_read_bytes_total"
	const sent, served = "millrace_worker_peer_sent_bytes_total", "millrace_worker_bytes_served_total"
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

	// Replicas are handed out as what is owned is, and count once.
	before, err = first.Metric(t.Context(), given)
	must(t, err)
	cl, err := c.Client(t.Context(), func(cfg *client.Config) { cfg.HostID = first.Name })
	must(t, err)
	for name := range files {
		f, err := cl.Open(t.Context(), name)
		must(t, err)
		d, err := f.Descriptor(t.Context())
		must(t, err)
		must(t, errors.Join(d.Close(), f.Close()))
	}
	must(t, cl.Close())
	after, err = first.Metric(t.Context(), given)
	must(t, err)
	if after-before != count {
		t.Errorf("its worker handed out %v of %d files", after-before, count)
	}
	if usage := c.usage(t); usage.CachedBytes != count*size {
		t.Errorf("%d bytes count as cached, want %d", usage.CachedBytes, count*size)
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

// usage sums what is in the whole namespace.
func (c *Cluster) usage(t *testing.T) client.Usage {
	t.Helper()
	cl, err := c.Client(t.Context(), nil)
	must(t, err)
	defer cl.Close()
	u, err := cl.Usage(t.Context(), "/")
	must(t, err)
	return u
}

// TestReplicasWithoutOwners kills and freezes the owners while replicas are
// filled from them and read, under readers that check every byte and see no
// error.
func TestReplicasWithoutOwners(t *testing.T) {
	c := start(t, 1, 3, func(cfg *Config) { cfg.Hosts = true })
	files := c.source(t, 120, 300<<10, "ttl=100ms")
	c.settled(t, files)
	reader, owners := c.Workers()[0], c.Workers()[1:]
	cl, err := c.Client(t.Context(), onHost(reader))
	must(t, err)
	defer cl.Close()
	r := c.readers(t, cl, 4, files)
	r.progress(t, 20) // most of them are to be filled yet
	must(t, owners[0].Pause())
	t.Logf("worst read when %s was paused: %v", owners[0].Name, r.progress(t, 40))
	owners[1].Kill()
	t.Logf("worst read when %s was killed: %v", owners[1].Name, r.progress(t, 240))
	must(t, owners[0].Resume())
	must(t, owners[1].Start())
	must(t, owners[1].Ready(bounded(t)))
	t.Logf("worst read when both were back: %v", r.progress(t, 240))

	// And what is new to the host, beside readers of what it has.
	c.run(t, "free", "/")
	owners[1].Kill()
	t.Logf("worst read when the cache was empty and %s dead: %v", owners[1].Name, r.progress(t, 240))
	r.stop(t)
}

// TestReplicasFollowTheirObjects frees files, replaces them and unbinds their
// under-store: what was a replica goes as what is owned does.
func TestReplicasFollowTheirObjects(t *testing.T) {
	const count, size = 20, 300 << 10
	c := start(t, 1, 2, ofOwnHosts)
	files := c.source(t, count, size, "ttl=100ms")
	c.settled(t, files)
	readAll := func() {
		t.Helper()
		for _, p := range c.Workers() {
			cl, err := c.Client(t.Context(), onHost(p))
			must(t, err)
			for name, size := range files {
				must(t, readWhole(t.Context(), cl, name, size))
			}
			must(t, cl.Close())
		}
	}
	readAll()
	const cached, replicas = "millrace_tier_cached_bytes", "millrace_tier_replica_bytes"
	if n := c.sum(t, replicas); n < count*size {
		t.Fatalf("%v bytes of replicas, want those of %d files on one of two workers each", n, count)
	}
	c.run(t, "free", "/")
	if n, r := c.sum(t, cached), c.sum(t, replicas); n != 0 || r != 0 {
		t.Errorf("%v bytes are cached after all was freed, %v of replicas", n, r)
	}
	readAll()
	c.run(t, "ufs", "rm", "/")
	must(t, Until(bounded(t), func() error {
		if n, r := c.sum(t, cached), c.sum(t, replicas); n != 0 || r != 0 {
			return fmt.Errorf("%v bytes are cached of a mount that is gone, %v of replicas", n, r)
		}
		return nil
	}))
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
