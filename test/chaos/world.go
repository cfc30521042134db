package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/rig"
	"millrace/client"
	"millrace/internal/testenv"
	"millrace/test/cluster"
)

const (
	masters, workers = 3, 4
	bucket           = "chaos"
	objects          = 60
	// cacheSize is that of each worker: all of them together hold about half of
	// the objects.
	cacheSize = 20 << 20
	// checked is the under-store mount whose cached bytes are compared with their
	// checksums at each read; the other one is at /.
	checked = "/checked"
)

// world is everything: the server, the network, the cluster, and what is known
// of them.
type world struct {
	dir     string
	begun   time.Time
	frozen  time.Duration // how long a process is paused
	s3      *testenv.S3Process
	proxy   *testenv.CountingProxy
	link    *link    // from the workers to the proxy
	net     *network // nil: the cluster is on loopback
	disk    string   // the file system below one worker's cache; empty: none
	cluster *cluster.Cluster
	client  *client.Client // of the readers
	admin   *client.Client // of all others
	objects []*object
	stores  [2]string // two empty under-stores
	history *cluster.History
	callers [callers]*cluster.Caller
	tally   tally

	// calm is held, for reading, while something is wrong, and for writing by
	// who needs all to be well.
	calm sync.RWMutex
	// storeTrouble is odd while the under-store is in trouble and rises with
	// each change.
	storeTrouble atomic.Int64
}

// object is a file of the source.
type object struct {
	path    string // in the namespace
	content *rig.Content
	size    int64
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
func build(ctx context.Context, o options) (w *world, err error) {
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-chaos-")
	if err != nil {
		return nil, err
	}
	w = &world{dir: dir, begun: time.Now(), frozen: min(10*time.Second, o.duration/5), history: cluster.NewHistory()}
	defer func() {
		if err != nil {
			w.showLogs()
			err = errors.Join(err, w.demolish(false))
		}
	}()
	storeHost := "127.0.0.1"
	if os.Getenv(insideVariable) == "1" {
		if w.net, err = newNetwork(ctx, dir); err != nil {
			return w, err
		}
		storeHost = storeAddress
	} else {
		w.say("NO FAULTS OF THE NETWORK between processes, and no full disk: they need root and namespaces")
	}
	if err := w.startStore(ctx, storeHost); err != nil {
		return w, err
	}
	if err := w.fill(ctx, o.seed); err != nil {
		return w, err
	}
	return w, w.startCluster(ctx, binary)
}

// startStore starts the S3 server, and before it what makes it fail.
func (w *world) startStore(ctx context.Context, host string) (err error) {
	outlives := context.WithoutCancel(ctx) // a signal ends it in order
	if w.s3, err = testenv.LaunchS3(outlives, filepath.Join(w.dir, "s3")); err != nil {
		return err
	}
	if w.proxy, err = testenv.LaunchProxy(ctx, w.s3.Endpoint); err != nil {
		return err
	}
	if w.link, err = newLink(ctx, host+":0", strings.TrimPrefix(w.proxy.Endpoint, "http://")); err != nil {
		return err
	}
	return w.s3.CreateBucket(ctx, bucket)
}

// fill makes the objects, half of them below checked.
func (w *world) fill(ctx context.Context, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	var sum int64
	for i := range objects {
		size := 1 + rng.Int64N(600<<10)
		if i%5 == 0 {
			size = 1 + rng.Int64N(12<<20)
		}
		key := fmt.Sprintf("plain/d%d/o%02d.bin", i%3, i)
		o := &object{path: strings.TrimPrefix(key, "plain"), size: size}
		if i%2 == 0 {
			key = fmt.Sprintf("checked/d%d/o%02d.bin", i%3, i)
			o.path = "/" + key
		}
		o.content = rig.NewContent(key, size)
		data := make([]byte, size)
		o.content.ReadAt(data, 0)
		if _, err := w.s3.PutObject(ctx, bucket, key, bytes.NewReader(data)); err != nil {
			return err
		}
		w.objects, sum = append(w.objects, o), sum+size
	}
	w.say("%d objects of %d MiB, %d workers with %d MiB each", objects, sum>>20, workers, cacheSize>>20)
	for i := range w.stores {
		dir := filepath.Join(w.dir, fmt.Sprint("store", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		w.stores[i] = "file://" + dir
	}
	return nil
}

func (w *world) startCluster(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	cfg := cluster.Config{
		Binary: binary, Dir: w.dir, Masters: masters, Workers: workers, Cache: strconv.Itoa(cacheSize),
		Env: append(w.s3.Env(), "AWS_ENDPOINT_URL=http://"+w.link.address()),
	}
	if w.net != nil {
		for i := range masters {
			if err := w.net.add(ctx, fmt.Sprint("master-", i)); err != nil {
				return err
			}
		}
		for i := range workers {
			if err := w.net.add(ctx, fmt.Sprint("worker-", i)); err != nil {
				return err
			}
		}
		w.net.tryLoss(ctx, "worker-0")
		if w.net.lossy != nil {
			w.say("NO LOSSY LINKS: %v", w.net.lossy)
		}
		cfg.Host = w.net.host
	}
	var err error
	if w.cluster, err = cluster.New(cfg); err != nil {
		return err
	}
	if err := w.makeDisk(); err != nil {
		return err
	}
	if err := w.cluster.Start(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ufs", "add", "/", "s3://" + bucket + "/plain"},
		{"ufs", "add", checked, "s3://" + bucket + "/checked", "--ufs-opt", "verify=always"},
		{"status", "--wait", settle.String()},
	} {
		if _, err := w.cluster.Run(ctx, args...); err != nil {
			return err
		}
	}
	through := func(cfg *client.Config) { cfg.ShortCircuit = false } // descriptors need no worker
	if w.client, err = w.cluster.Client(ctx, through); err != nil {
		return err
	}
	if w.admin, err = w.cluster.Client(ctx, nil); err != nil {
		return err
	}
	w.say("%d masters, %d workers are ready", masters, workers)
	return nil
}

// makeDisk mounts a file system for one worker's cache that is little larger
// than it.
func (w *world) makeDisk() error {
	if w.net == nil {
		return nil
	}
	p := w.cluster.Workers()[0]
	if err := os.Mkdir(p.CacheDir(), 0o700); err != nil {
		return err
	}
	size := fmt.Sprintf("size=%d,mode=700", cacheSize+cacheSize/4)
	if err := unix.Mount("tmpfs", p.CacheDir(), "tmpfs", 0, size); err != nil {
		return fmt.Errorf("mount a small file system: %w", err)
	}
	w.disk = p.CacheDir()
	return nil
}

// demolish ends and removes everything.
func (w *world) demolish(keep bool) error {
	var list []error
	for _, c := range []*client.Client{w.client, w.admin} {
		if c != nil {
			list = append(list, c.Close())
		}
	}
	if w.cluster != nil {
		list = append(list, w.cluster.Close())
	}
	if w.net != nil {
		w.net.close()
	}
	if w.disk != "" {
		list = append(list, unix.Unmount(w.disk, unix.MNT_DETACH))
	}
	if w.link != nil {
		list = append(list, w.link.close())
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

// showLogs prints the end of each process's log.
func (w *world) showLogs() {
	if w.cluster == nil {
		return
	}
	for _, p := range append(w.cluster.Masters(), w.cluster.Workers()...) {
		fmt.Fprintf(os.Stderr, "the log of %s ends with:\n%s\n", p.Name, p.LogTail())
	}
}

// rest waits until all is well again and checks what can be checked then; then
// all processes must end cleanly.
func (w *world) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, p := range append(w.cluster.Masters(), w.cluster.Workers()...) {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	for _, o := range w.objects {
		if err := w.readWhole(ctx, o); err != nil {
			return err
		}
	}
	w.say("all objects are read")
	for round := range w.round() + 1 {
		if err := w.callers[0].Look(ctx, round); err != nil {
			return err
		}
	}
	for _, c := range w.callers {
		if err := c.Look(ctx, w.round()); err != nil {
			return err
		}
	}
	if err := w.history.Check(settle); err != nil {
		return err
	}
	w.say("%d calls are linearizable, nothing that was acknowledged is lost", w.history.Len())
	if err := w.tally.checkFailOvers(); err != nil {
		return err
	}
	for _, p := range append(w.cluster.Workers(), w.cluster.Masters()...) {
		if err := p.Terminate(settle); err != nil {
			return err
		}
	}
	w.say("all processes ended cleanly")
	return nil
}
