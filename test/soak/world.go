package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"millrace/internal/testenv"
	"millrace/test/cluster"
	"millrace/test/disk"
	"millrace/test/trial"
)

const (
	bucket  = "soak"
	objects = 60
	// ttl is the under-store mount's; outage is how long an answer may be used
	// beyond it, since no master could be asked.
	ttl    = time.Second
	outage = 20 * time.Second
)

// patience bounds the start and the stop of a role.
const patience = 60 * time.Second

// world is everything: the server, the cluster, and what is known of them.
type world struct {
	dir     string
	disks   []*disk.Small // of the cache's tiers
	s3      *testenv.S3Process
	proxy   *testenv.CountingProxy
	cluster *cluster.Cluster
	// The cluster's processes.
	master, worker, mount *cluster.Process
	mountEnds             atomic.Int64
	mountIsUp             atomic.Bool
	objects               []*object
	log                   *trial.Log
	tally                 tally
}

// tally is what was checked.
type tally struct {
	reads, bytes, stale, gone, cut atomic.Int64 // by readers
	toolReads                      atomic.Int64
}

func (t *tally) print() {
	fmt.Printf("checked: %d reads through the mount and %d by the tool, %d MiB compared;\n", t.reads.Load(), t.toolReads.Load(), t.bytes.Load()>>20)
	fmt.Printf("  %d readers met a version that was gone, %d an object that was deleted, %d a mount that was ended\n",
		t.stale.Load(), t.gone.Load(), t.cut.Load())
}

// build makes the server, fills it, and starts the cluster.
func build(ctx context.Context, binary string, seed uint64) (w *world, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("mounting needs root")
	}
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-soak-")
	if err != nil {
		return nil, err
	}
	w = &world{dir: dir, log: trial.NewLog(os.Stdout)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.demolish(false))
		}
	}()
	outlives := context.WithoutCancel(ctx) // a signal ends it in order
	if w.s3, err = testenv.LaunchS3(outlives, filepath.Join(dir, "s3")); err != nil {
		return w, err
	}
	if w.proxy, err = testenv.LaunchProxy(ctx, w.s3.Endpoint); err != nil {
		return w, err
	}
	if err := w.s3.CreateBucket(ctx, bucket); err != nil {
		return w, err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	var sum int64
	for i := range objects {
		size := int64(rng.IntN(200 << 10)) // small ones, an empty one perhaps
		if i%6 == 0 {
			size = rng.Int64N(8 << 20)
		}
		o := &object{key: fmt.Sprintf("d%d/o%02d.bin", i%5, i), size: size}
		w.objects, sum = append(w.objects, o), sum+size
		if err := o.put(ctx, w.s3); err != nil {
			return w, err
		}
	}
	quarter := max(sum/4, 4<<20)
	w.log.Say("%d objects of %d MiB, a cache of %d MiB, and half of that in memory", objects, sum>>20, quarter>>20)
	return w, w.startCluster(ctx, binary, quarter)
}

// startCluster starts all roles and binds the bucket.
func (w *world) startCluster(ctx context.Context, binary string, cache int64) (err error) {
	w.cluster, err = cluster.New(cluster.Config{
		Binary: binary, Dir: w.dir, Masters: 1, Workers: 1, Cache: strconv.FormatInt(cache, 10), Memory: strconv.FormatInt(cache/2, 10),
		MountTOML: `unmount_timeout = "1s"`, Env: append(w.s3.Env(), "AWS_ENDPOINT_URL="+w.proxy.Endpoint),
	})
	if err != nil {
		return err
	}
	w.master, w.worker = w.cluster.Masters()[0], w.cluster.Workers()[0]
	if w.mount, err = w.cluster.AddMount(); err != nil {
		return err
	}
	// Each tier has a file system that is little larger than it.
	for dir, size := range map[string]int64{w.worker.CacheDir(): cache, w.worker.MemoryDir(): cache / 2} {
		d, err := disk.NewSmall(dir, size+size/4)
		if err != nil {
			return err
		}
		w.disks = append(w.disks, d)
	}
	if err := w.cluster.Start(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ufs", "add", "/", "s3://" + bucket, "--ufs-opt", "ttl=" + ttl.String()},
		{"status", "--wait", patience.String()},
	} {
		if _, err := w.run(ctx, args...); err != nil {
			return err
		}
	}
	if err := w.start(ctx, w.mount); err != nil {
		return err
	}
	w.mountIsUp.Store(true)
	return nil
}

// start starts a role and waits until it is ready.
func (w *world) start(ctx context.Context, p *cluster.Process) error {
	if err := p.Start(); err != nil {
		return err
	}
	return w.ready(ctx, p)
}

func (w *world) ready(ctx context.Context, p *cluster.Process) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.Ready(ctx)
}

func (w *world) roles() []*cluster.Process { return []*cluster.Process{w.master, w.worker, w.mount} }

// run runs `millrace args...` and returns what it wrote.
func (w *world) run(ctx context.Context, args ...string) (string, error) {
	return w.cluster.Run(ctx, args...)
}

// showLogs prints the end of each role's log.
func (w *world) showLogs() {
	for _, p := range w.roles() {
		fmt.Fprintf(os.Stderr, "the log of %s ends with:\n%s\n", p.Name, p.LogTail())
	}
}

// demolish ends and removes everything.
func (w *world) demolish(keep bool) error {
	var list []error
	if w.cluster != nil {
		list = append(list, w.cluster.Close())
	}
	for _, d := range w.disks {
		list = append(list, d.Close())
	}
	if w.proxy != nil {
		list = append(list, w.proxy.Close())
	}
	if w.s3 != nil {
		list = append(list, w.s3.Stop())
	}
	if keep {
		fmt.Println("kept:", w.dir)
	} else {
		list = append(list, os.RemoveAll(w.dir))
	}
	return errors.Join(list...)
}

// rest waits until all is well again and holds everything against the last
// versions; then all roles must end cleanly.
func (w *world) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	w.proxy.Inject(nil)
	for _, p := range w.roles() {
		if err := w.ready(ctx, p); err != nil {
			return err
		}
	}
	for _, o := range w.objects {
		for {
			err := o.isCurrent(w.mount.Point())
			if err == nil {
				break
			}
			if !trial.Sleep(ctx, 100*time.Millisecond) {
				return err
			}
		}
		w.tally.bytes.Add(o.size)
	}
	w.log.Say("all objects are read in their last version")
	for _, p := range slices.Backward(w.roles()) {
		if err := p.Terminate(patience); err != nil {
			return err
		}
	}
	names, err := os.ReadDir(w.mount.Point())
	if err != nil || len(names) > 0 {
		return fmt.Errorf("the mount point at the end: %v, %w", names, errors.Join(err))
	}
	w.log.Say("all roles ended cleanly, no mount is left")
	return nil
}
