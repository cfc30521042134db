package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

const (
	bucket  = "soak"
	objects = 60
	// ttl is the under-store mount's; outage is how long an answer may be used
	// beyond it, since no master could be asked.
	ttl    = time.Second
	outage = 20 * time.Second
)

// world is everything: the server, the cluster, and what is known of them.
type world struct {
	dir     string
	disk    string // the cache's file system, small; empty: not ours to fill
	s3      *testenv.S3Process
	proxy   *testenv.CountingProxy
	cluster *cluster
	objects []*object
	begun   time.Time
	tally   tally
}

// tally is what was done and checked.
type tally struct {
	reads, bytes, stale, gone, cut atomic.Int64 // by readers
	toolReads                      atomic.Int64
	mu                             sync.Mutex
	events                         map[string]int
	order                          []string
}

func (t *tally) event(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.events == nil {
		t.events = map[string]int{}
	}
	if t.events[what]++; t.events[what] == 1 {
		t.order = append(t.order, what)
	}
}

func (t *tally) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Println("done:")
	for _, what := range t.order {
		fmt.Printf("  %5d x %s\n", t.events[what], what)
	}
	fmt.Printf("checked: %d reads through the mount and %d by the tool, %d MiB compared;\n", t.reads.Load(), t.toolReads.Load(), t.bytes.Load()>>20)
	fmt.Printf("  %d readers met a version that was gone, %d an object that was deleted, %d a mount that was ended\n",
		t.stale.Load(), t.gone.Load(), t.cut.Load())
}

func (w *world) say(format string, args ...any) {
	fmt.Printf("%7.1fs  %s\n", time.Since(w.begun).Seconds(), fmt.Sprintf(format, args...))
}

// happen says and counts an event.
func (w *world) happen(what string) {
	w.tally.event(what)
	w.say("%s", what)
}

// build makes the server, fills it, and starts the cluster.
func build(ctx context.Context, binary string, seed uint64) (w *world, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("mounting needs root")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-soak-")
	if err != nil {
		return nil, err
	}
	w = &world{dir: dir, begun: time.Now()}
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
	w.makeDisk(quarter)
	w.say("%d objects of %d MiB, a cache of %d MiB", objects, sum>>20, quarter>>20)
	w.cluster = newCluster(binary, w.dir, w.cacheDir(), quarter, append(w.s3.Env(), "AWS_ENDPOINT_URL="+w.proxy.Endpoint))
	return w, w.cluster.start(ctx)
}

// makeDisk mounts a file system for the cache that is little larger than it.
func (w *world) makeDisk(quarter int64) {
	disk := filepath.Join(w.dir, "disk")
	err := os.Mkdir(disk, 0o700)
	if err == nil {
		err = unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", quarter+quarter/4))
	}
	if err != nil {
		w.say("the disk is not filled up: no small file system can be had: %v", err)
		return
	}
	w.disk = disk
}

func (w *world) cacheDir() string {
	if w.disk == "" {
		return filepath.Join(w.dir, "cache")
	}
	return filepath.Join(w.disk, "cache")
}

// demolish ends and removes everything.
func (w *world) demolish(keep bool) error {
	var list []error
	if w.cluster != nil {
		w.cluster.kill()
	}
	if w.disk != "" {
		list = append(list, unix.Unmount(w.disk, unix.MNT_DETACH))
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
	if err := w.cluster.awaitAll(ctx); err != nil {
		return err
	}
	for _, o := range w.objects {
		for {
			err := o.isCurrent(w.cluster.point)
			if err == nil {
				break
			}
			if !sleep(ctx, 100*time.Millisecond) {
				return err
			}
		}
		w.tally.bytes.Add(o.size)
	}
	w.say("all objects are read in their last version")
	if err := w.cluster.stop(); err != nil {
		return err
	}
	names, err := os.ReadDir(w.cluster.point)
	if err != nil || len(names) > 0 {
		return fmt.Errorf("the mount point at the end: %v, %w", names, errors.Join(err))
	}
	w.say("all roles ended cleanly, no mount is left")
	return nil
}
