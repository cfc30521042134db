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
	"time"

	"millrace/bench/rig"
	"millrace/client"
	"millrace/internal/testenv"
	"millrace/test/cluster"
	"millrace/test/disk"
	"millrace/test/hosts"
	"millrace/test/trial"
)

const (
	masters, workers = 3, 4
	bucket           = "chaos"
	objects          = 60
	// cacheSize is that of each worker: all of them together hold about half of
	// the objects.
	cacheSize = 20 << 20
	// imageSize is that of a disk whose power can be cut.
	imageSize = 128 << 20
	// checked is the under-store mount whose cached bytes are compared with their
	// checksums at each read; another one is at /.
	checked = "/checked"
)

// world is everything: the server, the network, the cluster, and what is known
// of them.
type world struct {
	dir                string
	log                *trial.Log
	frozen             time.Duration // how long a process is paused
	s3                 *testenv.S3Process
	proxy              *testenv.CountingProxy
	link               *link          // from the workers to the proxy
	hdfs               *testenv.HDFS  // nil: there is none
	net                *hosts.Network // nil: the cluster is on loopback
	small              *disk.Small    // the file system below one worker's cache; nil: none
	images             map[string]*disk.Image
	lossy              bool // links can be made so
	traceable          bool // disks can be made to fail
	cluster            *cluster.Cluster
	client             *client.Client // of the readers
	admin              *client.Client // of all others
	objects            []*object
	s3Store, hdfsStore store
	empty              [2]string // two empty under-stores
	history            *cluster.History
	callers            [callers]*cluster.Caller
	tally              tally

	// calm is held, for reading, while something is wrong, and for writing by
	// who needs all to be well.
	calm sync.RWMutex
}

// object is a file of a source.
type object struct {
	path    string // in the namespace
	content *rig.Content
	size    int64
	store   *store
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
	w = &world{dir: dir, log: trial.NewLog(os.Stdout), frozen: min(10*time.Second, o.duration/5), history: cluster.NewHistory()}
	defer func() {
		if err != nil {
			w.showLogs()
			err = errors.Join(err, w.demolish(false))
		}
	}()
	if err := w.findOut(ctx); err != nil {
		return w, err
	}
	if err := w.startStore(ctx); err != nil {
		return w, err
	}
	if err := w.fill(ctx, o); err != nil {
		return w, err
	}
	return w, w.startCluster(ctx, binary)
}

// findOut says what cannot be done here, and makes the network.
func (w *world) findOut(ctx context.Context) (err error) {
	if w.traceable = testenv.Strace.Missing() == nil; !w.traceable {
		w.log.Say("NO DISKS THAT FAIL: %v", testenv.Strace.Missing())
	}
	if !hosts.Inside() {
		w.log.Say("NO FAULTS OF THE NETWORK between processes, NO FULL DISK, NO POWER CUT: %v", testenv.Namespaces.Missing())
		return nil
	}
	if w.net, err = hosts.New(ctx, w.dir); err != nil {
		return err
	}
	for i := range masters {
		if err := w.net.Add(ctx, fmt.Sprint("master-", i)); err != nil {
			return err
		}
	}
	for i := range workers {
		if err := w.net.Add(ctx, fmt.Sprint("worker-", i)); err != nil {
			return err
		}
	}
	heal, err := w.net.Drop(ctx, "worker-0", 20)
	if err != nil {
		w.log.Say("NO LOSSY LINKS: %v", err)
		return nil
	}
	w.lossy = true
	return heal(ctx)
}

// startStore starts the S3 server, and before it what makes it fail.
func (w *world) startStore(ctx context.Context) (err error) {
	host := "127.0.0.1"
	if w.net != nil {
		host = hosts.StoreAddress
	}
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

// fill makes the objects, half of those in S3 below checked, and some in HDFS.
func (w *world) fill(ctx context.Context, o options) error {
	rng := rand.New(rand.NewPCG(o.seed, 0))
	var sum int64
	for i := range objects {
		size := 1 + rng.Int64N(600<<10)
		if i%5 == 0 {
			size = 1 + rng.Int64N(12<<20)
		}
		key := fmt.Sprintf("plain/d%d/o%02d.bin", i%3, i)
		o := &object{path: strings.TrimPrefix(key, "plain"), size: size, store: &w.s3Store}
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
	w.log.Say("%d objects of %d MiB, %d workers with %d MiB each", objects, sum>>20, workers, cacheSize>>20)
	for i := range w.empty {
		dir := filepath.Join(w.dir, fmt.Sprint("store", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		w.empty[i] = "file://" + dir
	}
	if o.hdfs {
		return w.startHDFS(ctx, rng)
	}
	return nil
}

func (w *world) startCluster(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	cfg := cluster.Config{
		Binary: binary, Dir: w.dir, Masters: masters, Workers: workers, Cache: strconv.Itoa(cacheSize),
		TierTOML: `probe_interval = "1s"`,
		Env:      append(w.s3.Env(), "AWS_ENDPOINT_URL=http://"+w.link.address()),
	}
	if w.net != nil {
		cfg.Host = w.net.Place
	}
	var err error
	if w.cluster, err = cluster.New(cfg); err != nil {
		return err
	}
	if err := w.makeDisks(ctx); err != nil {
		return err
	}
	if err := w.cluster.Start(ctx); err != nil {
		return err
	}
	steps := [][]string{
		{"ufs", "add", "/", "s3://" + bucket + "/plain"},
		{"ufs", "add", checked, "s3://" + bucket + "/checked", "--ufs-opt", "verify=always"},
		{"status", "--wait", settle.String()},
	}
	if w.hdfs != nil {
		steps = append(steps, []string{"ufs", "add", inHDFS, w.hdfs.URL + hdfsDir, "--ufs-opt", "user=" + hdfsUser})
	}
	for _, args := range steps {
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
	w.log.Say("%d masters, %d workers are ready", masters, workers)
	return nil
}

// makeDisks makes a disk for one worker that is little larger than its cache,
// and such whose power can be cut for another worker and for a master.
func (w *world) makeDisks(ctx context.Context) (err error) {
	if w.net == nil {
		return nil
	}
	if err := testenv.Mounts.Missing(); err != nil {
		w.log.Say("NO FULL DISK, NO POWER CUT: %v", err)
		return nil
	}
	all := w.cluster.Workers()
	if w.small, err = disk.NewSmall(all[0].CacheDir(), cacheSize+cacheSize/4); err != nil {
		return err
	}
	return errors.Join(w.makeImage(ctx, all[1]), w.makeImage(ctx, w.cluster.Masters()[masters-1]))
}
