package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"millrace/internal/testenv"
	"millrace/test/disk"
)

// cuttable puts the disk of a process that has not been started on a file
// system whose power can be cut.
func cuttable(t *testing.T, p *Process) *disk.Image {
	t.Helper()
	testenv.Require(t, testenv.Mounts)
	m, err := disk.NewImage(t.Context(), filepath.Join(t.TempDir(), "image"), p.DiskDir(), 128<<20)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

// TestMastersLosePower cuts the power of all masters at once while the mount
// table changes: what was acknowledged is there afterwards.
func TestMastersLosePower(t *testing.T) {
	for _, masters := range []int{1, 3} {
		t.Run(fmt.Sprint(masters), func(t *testing.T) {
			var images []*disk.Image
			c := prepare(t, masters, 0, nil)
			for _, m := range c.Masters() {
				images = append(images, cuttable(t, m))
			}
			must(t, c.Start(bounded(t)))
			uri := stores(t)[0]
			bound := map[string]bool{}
			for round := range 2 {
				for _, p := range c.bindUntilCut(t, images, round, uri) {
					bound[p] = true
				}
				for i, m := range c.Masters() {
					m.Kill()
					must(t, images[i].Restore(bounded(t)))
				}
				must(t, c.Start(bounded(t)))
				cl, err := c.Client(t.Context(), nil)
				must(t, err)
				mounts, err := cl.ListUFS(bounded(t))
				must(t, err)
				got := map[string]bool{}
				for _, m := range mounts {
					got[m.Path] = true
				}
				for p := range bound {
					if !got[p] {
						t.Errorf("%s was acknowledged, and is lost", p)
					}
				}
				must(t, cl.Close())
			}
			t.Logf("%d changes were acknowledged", len(bound))
		})
	}
}

// bindUntilCut binds an under-store to one path after the other, cuts the power
// of all disks in the middle of it, and returns what was acknowledged.
func (c *Cluster) bindUntilCut(t *testing.T, images []*disk.Image, round int, uri string) (bound []string) {
	t.Helper()
	const before = 20 // changes
	cl, err := c.Client(t.Context(), nil)
	must(t, err)
	defer cl.Close()
	ctx, quit := context.WithCancel(t.Context())
	defer quit()
	enough := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			path := fmt.Sprintf("/r%d-%d", round, n)
			if _, err := cl.AddUFS(ctx, path, uri, nil); err != nil {
				return // no master keeps anything any more
			}
			if bound = append(bound, path); n == before {
				close(enough)
			}
		}
	})
	select {
	case <-enough:
	case <-bounded(t).Done():
		t.Error("nothing can be bound")
	}
	for _, m := range images {
		must(t, m.Cut())
	}
	for _, m := range c.Masters() {
		m.Kill()
	}
	quit()
	wg.Wait()
	return bound
}

// TestWorkerLosesPower cuts the power of a worker while it fills its cache: it
// serves right bytes afterwards, of what it kept and of what it has to fetch
// again.
func TestWorkerLosesPower(t *testing.T) {
	c, n := prepareOnHosts(t, 1, 2, func(cfg *Config) { cfg.Cache = "64MiB" })
	w := c.Workers()[0]
	image := cuttable(t, w)
	must(t, c.Start(bounded(t)))
	files := c.source(t, 60, 300<<10)
	for range 3 {
		cl, err := c.Client(t.Context(), throughWorkers)
		must(t, err)
		r := c.readers(t, cl, 4, files)
		r.progress(t, 40)
		must(t, image.Cut())
		w.Kill()
		must(t, n.Reboot(w.Name))
		t.Logf("worst read without it: %v", r.progress(t, 40))
		must(t, image.Restore(bounded(t)))
		must(t, w.Start())
		must(t, w.Ready(bounded(t)))
		t.Logf("worst read when it came back: %v", r.progress(t, 40))
		r.stop(t)
		c.readAll(t, files)
		must(t, cl.Close())
		_, err = c.Run(t.Context(), "free", "/")
		must(t, err)
	}
	if bad, err := w.Metric(t.Context(), "millrace_tier_checksum_errors_total"); err != nil || bad > 0 {
		t.Errorf("%v pages are not what their checksums say, %v", bad, err)
	}
}

// TestWorkersDiskFails lets the disk of a worker fail under readers, which see
// no error: it has what it cannot keep or read from the under-store. It uses the
// disk again when that is well.
func TestWorkersDiskFails(t *testing.T) {
	testenv.Require(t, testenv.Strace)
	c := start(t, 1, 2, func(cfg *Config) { cfg.TierTOML = `probe_interval = "100ms"` })
	files := c.source(t, 40, 300<<10)
	cl, err := c.Client(t.Context(), throughWorkers)
	must(t, err)
	defer cl.Close()
	r := c.readers(t, cl, 4, files)
	r.progress(t, 20)
	w := c.Workers()[0]
	for _, f := range disk.Failures() {
		heal, err := disk.Fail(t.Context(), w.PID(), f)
		must(t, err)
		_, _ = c.Run(t.Context(), "free", "/") // so that it has to write; what it cannot delete stays
		t.Logf("worst read with %s: %v", f.What, r.progress(t, 100))
		must(t, heal())
		must(t, c.DisksServe(bounded(t), w))
		r.progress(t, 100)
	}
	r.stop(t)
	c.readAll(t, files)
	must(t, w.Terminate(patience))
}

// TestLeadersDiskFails lets the disk of the leader fail under load: another
// master leads soon, and no client sees an error.
func TestLeadersDiskFails(t *testing.T) {
	testenv.Require(t, testenv.Strace)
	c := start(t, 3, 1, nil)
	l := newLoad(t, c, c.source(t, 8, 300<<10), stores(t))
	for _, f := range disk.Failures() {
		l.more(10, 5)
		leader := c.leader(t)
		heal, err := disk.Fail(t.Context(), leader.PID(), f)
		must(t, err)
		l.more(10, 10)
		leader.Kill() // if it has not ended by itself
		must(t, heal())
		must(t, leader.Start())
		must(t, leader.Ready(bounded(t)))
	}
	l.check(c)
}
