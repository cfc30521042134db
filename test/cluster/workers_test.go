package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"millrace/client"
)

// sum adds a metric of all workers that run.
func (c *Cluster) sum(t *testing.T, metric string) (sum float64) {
	t.Helper()
	for _, w := range c.Workers() {
		if !w.Running() {
			continue
		}
		n, err := w.Metric(t.Context(), metric)
		must(t, err)
		sum += n
	}
	return sum
}

// worker returns what `workers ls` shows of a process.
func (c *Cluster) worker(t *testing.T, p *Process) WorkerState {
	t.Helper()
	w, err := c.Worker(t.Context(), p)
	must(t, err)
	return w
}

// inState waits until the masters say that a worker is in a state; "" for not
// registered.
func (c *Cluster) inState(t *testing.T, p *Process, state string) {
	t.Helper()
	must(t, Until(bounded(t), func() error {
		if w := c.worker(t, p); w.State != state {
			return fmt.Errorf("%s is %q, not yet %q", p.Name, w.State, state)
		}
		return nil
	}))
}

// loaded makes files, loads them, and waits until every master knows where
// each of them is.
func (c *Cluster) loaded(t *testing.T, files int, size int64) map[string]int64 {
	t.Helper()
	all := c.source(t, files, size)
	c.run(t, "load", "/")
	for _, m := range c.Masters() {
		must(t, Until(bounded(t), func() error {
			n, err := m.Metric(t.Context(), "millrace_master_block_locations")
			if err == nil && int(n) < files {
				err = fmt.Errorf("%s knows of %v blocks of %d", m.Name, n, files)
			}
			return err
		}))
	}
	return all
}

// throughWorkers makes a client read through the workers, not by descriptors
// of their files, which need no worker.
func throughWorkers(cfg *client.Config) { cfg.ShortCircuit = false }

// readAll reads every file with a client that knows the cluster as it is now.
func (c *Cluster) readAll(t *testing.T, files map[string]int64) {
	t.Helper()
	cl, err := c.Client(t.Context(), throughWorkers)
	must(t, err)
	defer cl.Close()
	for name, size := range files {
		must(t, readWhole(t.Context(), cl, name, size))
	}
}

// patientWorkers wait for each other, however busy the machine is.
func patientWorkers(cfg *Config) { cfg.WorkerTOML = `peer_timeout = "30s"` }

// TestJoin adds a worker to three: about a quarter of the blocks become its
// own, and it has them from the others, not from the under-store.
func TestJoin(t *testing.T) {
	const count, size = 120, 300 << 10
	c := start(t, 1, 3, patientWorkers)
	files := c.loaded(t, count, size)
	gets := c.sum(t, "millrace_worker_ufs_requests_total")
	fresh, err := c.AddWorker()
	must(t, err)
	must(t, fresh.Start())
	must(t, fresh.Ready(bounded(t)))
	c.inState(t, fresh, "live")
	c.readAll(t, files)
	if n := c.sum(t, "millrace_worker_ufs_requests_total"); n != gets {
		t.Errorf("%v requests to the under-store after the join", n-gets)
	}
	moved, err := fresh.Metric(t.Context(), "millrace_worker_peer_read_bytes_total")
	must(t, err)
	if all := c.sum(t, "millrace_worker_peer_read_bytes_total"); all != moved {
		t.Errorf("%v bytes moved to other workers than the new one", all-moved)
	}
	share := moved / (count * size)
	t.Logf("%.1f %% of the bytes moved", 100*share)
	if share < 0.10 || share > 0.40 { // 120 files: 25 % within four deviations
		t.Errorf("%.0f %% of the bytes moved, want about a quarter", 100*share)
	}
}

// TestDrain drains one worker of three, stops it and forgets it. What it had
// comes from it while it is there.
func TestDrain(t *testing.T) {
	c := start(t, 1, 3, patientWorkers)
	files := c.loaded(t, 60, 300<<10)
	gets := c.sum(t, "millrace_worker_ufs_requests_total")
	leaver := c.Workers()[0]
	id := c.worker(t, leaver).ID
	c.run(t, "workers", "drain", id)
	c.inState(t, leaver, "draining")
	if _, err := c.Run(t.Context(), "workers", "forget", id); err == nil {
		t.Error("a worker that is alive was forgotten")
	}
	c.readAll(t, files)
	if n := c.sum(t, "millrace_worker_ufs_requests_total"); n != gets {
		t.Errorf("%v requests to the under-store after the drain", n-gets)
	}
	if n := c.sum(t, "millrace_worker_peer_read_bytes_total"); n == 0 {
		t.Error("no byte came from the worker that is drained")
	}
	must(t, leaver.Terminate(patience))
	c.readAll(t, files)
	if n := c.sum(t, "millrace_worker_ufs_requests_total"); n > gets {
		t.Errorf("%v requests to the under-store after the worker left", n-gets)
	}
	must(t, Until(bounded(t), func() error {
		_, err := c.Run(t.Context(), "workers", "forget", id)
		return err
	}))
	c.inState(t, leaver, "")

	// It may come back, and owns its share again.
	must(t, leaver.Start())
	must(t, leaver.Ready(bounded(t)))
	c.inState(t, leaver, "live")
	c.readAll(t, files)
}

// readers read random files and check every byte, until stopped.
type readers struct {
	cancel context.CancelFunc
	g      sync.WaitGroup

	mu    sync.Mutex
	reads int
	worst time.Duration
	err   error
}

func (c *Cluster) readers(t *testing.T, cl *client.Client, n int, files map[string]int64) *readers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &readers{cancel: cancel}
	names := slices.Sorted(maps.Keys(files))
	for i := range n {
		r.g.Go(func() {
			for at := i; ctx.Err() == nil; at++ {
				name := names[at%len(names)]
				began := time.Now()
				err := readWhole(ctx, cl, name, files[name])
				r.mu.Lock()
				r.reads++
				r.worst = max(r.worst, time.Since(began))
				if err != nil && r.err == nil && ctx.Err() == nil {
					r.err = fmt.Errorf("after %d reads: %w", r.reads, err)
				}
				r.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { cancel(); r.g.Wait() })
	return r
}

// progress waits for n further reads and returns the longest one since the
// last call.
func (r *readers) progress(t *testing.T, n int) time.Duration {
	t.Helper()
	r.mu.Lock()
	goal := r.reads + n
	r.mu.Unlock()
	must(t, Until(bounded(t), func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil && r.reads < goal {
			return fmt.Errorf("%d reads of %d", r.reads, goal)
		}
		return nil
	}))
	r.mu.Lock()
	defer r.mu.Unlock()
	worst := r.worst
	r.worst = 0
	return worst
}

func (r *readers) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	r.g.Wait()
	if r.err != nil {
		t.Error(r.err)
	}
}

// TestWorkersDie kills each worker in turn, and freezes one, under readers
// that check every byte and see no error.
func TestWorkersDie(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 3, nil)
	files := c.loaded(t, 40, 300<<10)
	cl, err := c.Client(t.Context(), throughWorkers)
	must(t, err)
	defer cl.Close()
	r := c.readers(t, cl, 4, files)
	t.Logf("worst read with all workers: %v", r.progress(t, 200))
	for _, w := range c.Workers() {
		w.Kill()
		t.Logf("worst read after %s was killed: %v", w.Name, r.progress(t, 400))
		must(t, w.Start())
		must(t, w.Ready(bounded(t)))
		t.Logf("worst read when it came back: %v", r.progress(t, 200))
	}
	for _, w := range c.Workers()[:2] {
		must(t, w.Pause())
		began := time.Now()
		worst := r.progress(t, 400)
		if w == c.Workers()[0] {
			time.Sleep(10*time.Second - time.Since(began)) // beyond being suspect
			worst = max(worst, r.progress(t, 1))
		}
		must(t, w.Resume())
		t.Logf("worst read while %s was paused: %v", w.Name, worst)
		t.Logf("worst read when it went on: %v", r.progress(t, 200))
	}
	r.stop(t)
}

// TestWorkersComeAndGo changes who is there under readers that see no error:
// a worker joins and another one dies while it takes its share over, one is
// drained and stopped, and one comes back with empty disks, as another worker.
func TestWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 3, nil)
	files := c.loaded(t, 60, 300<<10)
	cl, err := c.Client(t.Context(), throughWorkers)
	must(t, err)
	defer cl.Close()
	r := c.readers(t, cl, 4, files)
	fresh, err := c.AddWorker()
	must(t, err)
	must(t, fresh.Start())
	must(t, fresh.Ready(bounded(t)))
	dies, drains := c.Workers()[0], c.Workers()[1]
	dies.Kill()
	r.progress(t, 300)

	must(t, c.Replace(bounded(t), dies))
	r.progress(t, 200)

	c.run(t, "workers", "drain", c.worker(t, drains).ID)
	r.progress(t, 200)
	must(t, drains.Terminate(patience))
	t.Logf("worst read: %v", r.progress(t, 200))
	r.stop(t)
}

// TestAddedMasterKnowsTheWorkers adds a master that no worker was configured
// with, and lets it lead.
func TestAddedMasterKnowsTheWorkers(t *testing.T) {
	c := start(t, 1, 2, nil)
	files := c.loaded(t, 10, 300<<10)
	added := c.newMaster()
	c.masters = append(c.masters, added)
	must(t, c.configureMaster(added, c.masters[:1]))
	must(t, added.Start())
	must(t, Until(bounded(t), func() error {
		_, err := c.Run(t.Context(), "masters", "add", added.Name)
		return err
	}))
	must(t, Until(bounded(t), func() error {
		_, err := c.Run(t.Context(), "masters", "transfer", added.Name)
		return err
	}))
	must(t, Until(bounded(t), func() error {
		if !added.Leads(t.Context()) {
			return fmt.Errorf("%s does not lead yet", added.Name)
		}
		var all []WorkerState
		out, err := c.Run(t.Context(), "--masters", added.Address("grpc"), "workers", "ls", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &all)
		}
		for _, w := range all {
			if w.State != "live" {
				err = fmt.Errorf("%s is %s to the new leader", w.ID, w.State)
			}
		}
		if err == nil && len(all) != 2 {
			err = fmt.Errorf("%d workers", len(all))
		}
		return err
	}))
	c.readAll(t, files)
}
