package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	fsxTTL = time.Second
	// fsxStale is how long after an object was replaced an open may still find
	// the old version: the freshness, and some for a machine that is busy.
	fsxStale = fsxTTL + 15*time.Second
	// fsxForget is longer than an open file waits for its first byte.
	fsxForget  = 5 * time.Minute
	fsxReaders = 3 // of each mount
)

// fsx is readers that do whatever a program may do with files, on a mount with
// passthrough and on one without, while objects are replaced, the cache is too
// small for them, and the worker is killed and restarted.
type fsx struct {
	c       *cluster
	s       *store
	objects []*fsxObject
	points  []string
	copying *role // the mount without passthrough
	evicted int64 // bytes, by all runs of the worker

	quit                      atomic.Bool
	reads, maps, wholes, gone atomic.Int64
}

// TestFsx compares what random readers see with the source: every read is of
// one version, all reads of one open file are of the same one, and the only
// error is that a replaced version is gone. MILLRACE_FSX_DURATION (20s) makes
// it longer, MILLRACE_FSX_SEED makes the decisions of an earlier run again.
func TestFsx(t *testing.T) {
	duration, seed := 20*time.Second, rand.Uint64()
	if text := os.Getenv("MILLRACE_FSX_DURATION"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("MILLRACE_FSX_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MILLRACE_FSX_SEED=%d", seed)
	f := newFsx(t, rand.New(rand.NewPCG(seed, 0)))
	var readers errgroup.Group
	for i, point := range f.points {
		for j := range fsxReaders {
			rng := rand.New(rand.NewPCG(seed, uint64(1+i*fsxReaders+j)))
			readers.Go(func() error {
				defer f.quit.Store(true)
				return f.read(t.Context(), point, rng)
			})
		}
	}
	t.Cleanup(func() { f.quit.Store(true) })
	f.trouble(duration, rand.New(rand.NewPCG(seed, 100)))
	f.quit.Store(true)
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
	f.settle()
	f.evicted += f.c.status().Counters.EvictedBytes
	t.Logf("%d reads, %d mapped, %d of whole files, %d of a version that was gone; %d MiB evicted",
		f.reads.Load(), f.maps.Load(), f.wholes.Load(), f.gone.Load(), f.evicted>>20)
	passed, refused := f.c.mount.opens("passthrough", "complete"), f.c.mount.opens("copy", "not_offered")
	copied := f.copying.opens("copy", "switched_off")
	t.Logf("%d opens by passthrough, %d refused by the kernel, %d on the mount without it", passed, refused, copied)
	if passed+refused == 0 || copied == 0 || f.maps.Load() == 0 || f.wholes.Load() == 0 || f.evicted == 0 {
		t.Error("something of all this did not happen")
	}
}

// newFsx starts the cluster, with a cache of a third of the objects and two
// mounts.
func newFsx(t *testing.T, rng *rand.Rand) *fsx {
	t.Helper()
	f := &fsx{s: newStore(t)}
	f.s.options = []string{"--ufs-opt", "ttl=" + fsxTTL.String()}
	var total int64
	sizes := []int64{0, 1, 4095, 4097, 256 << 10, 256<<10 + 1, 6 << 20, 9<<20 + 77}
	for range 24 {
		sizes = append(sizes, 1+rng.Int64N([]int64{8 << 10, 300 << 10, 2 << 20, 8 << 20}[rng.IntN(4)]))
	}
	for i, size := range sizes {
		o := &fsxObject{key: fmt.Sprintf("d%d/%02d.bin", i%3, i), size: size}
		f.objects = append(f.objects, o)
		f.put(t, o)
		total += size
	}
	f.c = newCluster(t, f.s, strconv.FormatInt(total/3, 10), "MILLRACE_CLIENT_READ_RETRY_FOR=1m")
	f.copying = f.c.addMount("copying", "-o", "passthrough=off")
	f.points = []string{f.c.point(), f.copying.args[0]}
	return f
}

// addMount starts another mount of the cluster.
func (c *cluster) addMount(name string, args ...string) *role {
	c.t.Helper()
	point, dataDir := filepath.Join(c.dir, name), filepath.Join(c.dir, name+"-data")
	if err := os.Mkdir(point, 0o700); err != nil {
		c.t.Fatal(err)
	}
	r := &role{
		c: c, name: "mount", dataDir: filepath.Join(dataDir, url.PathEscape(strings.TrimPrefix(point, "/"))),
		args:    append([]string{point, "--data-dir", dataDir}, args...),
		listens: map[string]string{"--http-listen": "http"},
	}
	c.t.Cleanup(func() {
		r.kill()
		_ = unix.Unmount(point, unix.MNT_DETACH) // what a killed mount left
	})
	r.start()
	r.ready()
	return r
}

// opens returns how many files a mount opened in a mode for a reason.
func (r *role) opens(mode, reason string) int64 {
	return r.metric(fmt.Sprintf("millrace_fuse_opens_total{mode=%q,reason=%q}", mode, reason))
}

// metric returns the value of a series of the process; 0 if it has none.
func (r *role) metric(series string) int64 {
	t := r.c.t
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.chosen["--http-listen"]+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int64(v)
		}
	}
	return 0
}

// put stores the next version of an object.
func (f *fsx) put(t *testing.T, o *fsxObject) {
	t.Helper()
	v := o.begin()
	data := make([]byte, o.size)
	v.content.ReadAt(data, 0)
	f.s.Put(t, o.key, data)
	o.done(v)
}

// trouble replaces objects, restarts the worker, and loads and frees, until
// the time is over or a reader has failed.
func (f *fsx) trouble(duration time.Duration, rng *rand.Rand) {
	t := f.c.t
	end := time.Now().Add(duration)
	for time.Now().Before(end) && !f.quit.Load() {
		switch n := rng.IntN(20); {
		case n < 12:
			f.put(t, f.objects[rng.IntN(len(f.objects))])
		case n < 14:
			f.c.run("free", fmt.Sprintf("/d%d", rng.IntN(3)))
		case n < 17:
			// Objects that are replaced meanwhile make it fail.
			if _, err := f.c.try("load", fmt.Sprintf("/d%d", rng.IntN(3))); err != nil {
				t.Logf("a load among changes: %v", err)
			}
		default:
			f.evicted += f.c.status().Counters.EvictedBytes // since the worker's start
			if n == 19 {
				f.c.worker.stop()
			} else {
				f.c.worker.kill()
			}
			f.c.worker.start()
			f.c.worker.ready()
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Duration(rng.Int64N(int64(200 * time.Millisecond)))):
		}
	}
}

// settle waits until both mounts show the last version of every object.
func (f *fsx) settle() {
	t := f.c.t
	t.Helper()
	for _, o := range f.objects {
		last := o.versions[len(o.versions)-1]
		for _, point := range f.points {
			eventually(t, "the last version is seen", func() error {
				got, err := os.ReadFile(filepath.Join(point, o.key))
				if err != nil {
					return err
				}
				if int64(len(got)) != o.size || last.content.Check(got, 0, make([]byte, len(got))) != nil {
					return fmt.Errorf("%s below %s is not version %d", o.key, point, last.number)
				}
				return nil
			})
		}
	}
}

// read opens random objects until it is told to quit.
func (f *fsx) read(ctx context.Context, point string, rng *rand.Rand) error {
	for !f.quit.Load() && ctx.Err() == nil {
		o := f.objects[rng.IntN(len(f.objects))]
		opened := time.Now()
		err := f.readOne(point, o, opened, rng)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.ESTALE) && len(o.possible(opened)) > 1 {
			f.gone.Add(1)
			continue
		}
		return fmt.Errorf("%s below %s: %w", o.key, point, err)
	}
	return nil
}

// readOne does some reads of one open file.
func (f *fsx) readOne(point string, o *fsxObject, opened time.Time, rng *rand.Rand) error {
	file, err := os.Open(filepath.Join(point, o.key))
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != o.size {
		return fmt.Errorf("it has %d bytes, want %d", st.Size(), o.size)
	}
	var left []*fsxVersion // that all reads so far may be of; nil before the first
	for range 1 + rng.IntN(6) {
		if rng.IntN(2) == 0 { // the kernel gives up its pages, or it would answer alone
			if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
		}
		got, off, how, err := f.readSome(file, o.size, rng)
		if err != nil {
			return err
		}
		list := o.possible(opened)
		if left != nil {
			list = left
		}
		left = narrow(list, got, off, make([]byte, len(got)))
		if len(left) == 0 {
			return fmt.Errorf("%s of %d bytes at %d is of none of the versions %v", how, len(got), off, numbers(list))
		}
	}
	return nil
}

// readSome reads a random piece in a random way.
func (f *fsx) readSome(file *os.File, size int64, rng *rand.Rand) (got []byte, off int64, how string, err error) {
	off, end := fsxRange(size, rng)
	switch n := rng.IntN(10); {
	case n < 2:
		f.wholes.Add(1)
		got, err = io.ReadAll(io.NewSectionReader(file, 0, 1<<40))
		if err == nil && int64(len(got)) != size {
			err = fmt.Errorf("a read of the whole file gave %d bytes, want %d", len(got), size)
		}
		return got, 0, "a read of the whole file", err
	case n < 5 && size > 0:
		f.maps.Add(1)
		got, err = readMapped(file, size, off, end)
		return got, off, "a read of a mapping", err
	default:
		f.reads.Add(1)
		past := rng.Int64N(5000) // behind the end there is nothing
		got = make([]byte, end-off)
		if end == size {
			got = slices.Grow(got, int(past))[:end-off+past]
		}
		k, err := file.ReadAt(got, off)
		if int64(k) != end-off || err != nil && (!errors.Is(err, io.EOF) || end != size) {
			if err == nil || errors.Is(err, io.EOF) {
				err = fmt.Errorf("a read of [%d,%d) gave %d bytes, %w", off, off+int64(len(got)), k, errors.Join(errShort, err))
			}
			return nil, off, "", err
		}
		return got[:k], off, "a read", nil
	}
}

var errShort = errors.New("which is too few or too many")

// fsxRange returns a random piece of a file, often with an end at or beside
// that of a page of the kernel's or of the cache's, or of the file.
func fsxRange(size int64, rng *rand.Rand) (off, end int64) {
	pick := func() int64 {
		n := rng.Int64N(size + 1)
		if grain := []int64{1, 1, 4 << 10, 256 << 10}[rng.IntN(4)]; grain > 1 {
			n = n/grain*grain + rng.Int64N(3) - 1
		}
		if rng.IntN(10) == 0 {
			n = size
		}
		return min(max(n, 0), size)
	}
	off, end = pick(), pick()
	return min(off, end), max(off, end)
}

// readMapped reads [off, end) through a mapping of the file. The kernel copies
// from it, into a file in memory: a page that it cannot get is an error then,
// and a thread that waits for one is in a system call, which stops no other.
func readMapped(file *os.File, size, off, end int64) (got []byte, err error) {
	m, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	fd, err := unix.MemfdCreate("fsx", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(fd), "fsx")
	defer func() { err = errors.Join(err, memory.Close()) }()
	if _, err := memory.WriteAt(m[off:end], 0); err != nil {
		if errors.Is(err, unix.EFAULT) {
			err = errors.Join(err, unix.ESTALE)
		}
		return nil, fmt.Errorf("a mapping, at [%d,%d): %w", off, end, err)
	}
	got = make([]byte, end-off)
	_, err = memory.ReadAt(got, 0)
	return got, err
}
