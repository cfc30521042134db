package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

// localWorker is a fakeWorker of this host that hands out descriptors.
type localWorker struct {
	*fakeWorker

	dir    string
	asked  atomic.Int64 // for descriptors
	filled atomic.Int64 // of asked: and to fetch the file first

	mu      sync.Mutex
	refuse  error
	touches map[block.FileID]int
}

// newLocalCluster is a cluster whose one worker is on this host.
func newLocalCluster(t *testing.T) (*cluster, *localWorker) {
	t.Helper()
	return newLocalClusterWith(t, func(w *localWorker) blockio.Handler { return w })
}

// newLocalClusterWith is newLocalCluster with a handler around the worker.
func newLocalClusterWith(t *testing.T, around func(*localWorker) blockio.Handler) (*cluster, *localWorker) {
	t.Helper()
	boot := (&Config{}).hostID()
	if boot == "" {
		t.Skip("SKIPPED: this host has no boot ID")
	}
	c := &cluster{master: newFakeMaster()}
	c.master.serve(t, "127.0.0.1:0")
	w := &localWorker{fakeWorker: &fakeWorker{id: "w0", bootID: boot}, dir: t.TempDir(), touches: map[block.FileID]int{}}
	w.handler = around(w)
	c.stops = append(c.stops, w.serve(t, "", socketPath(t)))
	c.workers = append(c.workers, w.fakeWorker)
	c.announce()
	return c, w
}

func (w *localWorker) Open(ctx context.Context, t *block.Ticket) (blockio.File, error) {
	f, err := w.fakeWorker.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	return &localFile{f, w, t}, nil
}

func (w *localWorker) refuseWith(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = err
}

func (w *localWorker) Touch(_ context.Context, touches []blockio.Touch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range touches {
		w.touches[t.FileID] += int(t.Count)
	}
	return nil
}

func (w *localWorker) touchesOf(id block.FileID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.touches[id]
}

type localFile struct {
	blockio.File

	w *localWorker
	t *block.Ticket
}

// Descriptor hands out a file with the bytes behind a base of one page.
func (f *localFile) Descriptor(_ context.Context, o blockio.DescriptorOptions) (*os.File, int64, int64, error) {
	f.w.asked.Add(1)
	if o.Fill {
		f.w.filled.Add(1)
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.refuse != nil {
		return nil, 0, 0, f.w.refuse
	}
	const base = 4096
	name := filepath.Join(f.w.dir, f.t.FileID.String())
	if err := os.WriteFile(name, append(make([]byte, base), bytesOf(f.t)...), 0o600); err != nil {
		return nil, 0, 0, err
	}
	fd, err := os.Open(name)
	return fd, base, f.t.Length, err
}

// A descriptor has the file's bytes, is shared by all opens of a version, and
// outlives the worker.
func TestDescriptor(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	f, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := f.Descriptor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.Descriptor(t.Context())
	if err != nil || again.File != d.File || w.asked.Load() != 1 {
		t.Fatalf("%v; the worker was asked %d times", err, w.asked.Load())
	}
	if err := errors.Join(again.Close(), again.Close()); err != nil {
		t.Fatal(err)
	}
	cl.stops[0]()
	got := make([]byte, d.Length)
	if _, err := d.File.ReadAt(got, d.Base); err != nil || !bytes.Equal(got, bytesOf(tk)) {
		t.Fatalf("wrong bytes, %v", err)
	}
	// Opens of a version whose descriptor is there read it without the worker.
	other, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	check(t, other, bytesOf(tk), 10, 99_000)
	check(t, other, bytesOf(tk), 99_000, 5000)
	if n := c.descriptors.bytes.Load(); n != 100_000 {
		t.Errorf("%d bytes are counted as served, want 100000", n)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// A file that was read through the worker goes on without it when somebody has
// a descriptor of it.
func TestReadOutlivesWorker(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	f, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check(t, f, bytesOf(tk), 0, 100_000)
	if w.reads.Load() == 0 {
		t.Fatal("it was not read through the worker")
	}
	d, err := f.Descriptor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	cl.stops[0]()
	check(t, f, bytesOf(tk), 0, 100_000)
}

// A refusal is remembered for a moment; the worker goes on to serve reads.
func TestDescriptorRefused(t *testing.T) {
	for _, kind := range []errs.Kind{errs.NotCached, errs.Unsupported} {
		t.Run(kind.String(), func(t *testing.T) {
			cl, w := newLocalCluster(t)
			tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
			w.refuseWith(kind)
			c := cl.dial(t)
			f, err := c.Open(t.Context(), "/a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 3 {
				if _, err := f.Descriptor(t.Context()); !errors.Is(err, kind) {
					t.Fatalf("error %v, want %v", err, kind)
				}
			}
			if n := w.asked.Load(); n != 1 {
				t.Errorf("the worker was asked %d times", n)
			}
			check(t, f, bytesOf(tk), 0, 100_000)
		})
	}
}

// A worker hears how often its files were used through descriptors, and of
// those that are in use for long once a minute.
func TestDescriptorTouches(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	f, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var open []*Descriptor
	for range 3 {
		d, err := f.Descriptor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, d)
	}
	s := c.descriptors
	told := func(held bool) map[block.WorkerID][]blockio.Touch {
		t.Helper()
		all := s.gather(held)
		s.tell(t.Context(), c.workers, all)
		return all
	}
	// The client's own goroutine may have told some of them already.
	told(false)
	for w.touchesOf(tk.FileID) != 3 {
		if t.Context().Err() != nil || w.touchesOf(tk.FileID) > 3 {
			t.Fatalf("%d uses were told, want 3", w.touchesOf(tk.FileID))
		}
		runtime.Gosched()
	}
	told(true)
	if n := w.touchesOf(tk.FileID); n != 4 {
		t.Errorf("%d uses are known after a minute, want 4", n)
	}
	for _, d := range open {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil { // its reads have one, too
		t.Fatal(err)
	}
	if all := told(true); all != nil {
		t.Errorf("uses of an idle descriptor were told: %v", all)
	}
}

// The descriptors that are kept are bounded, and those that nobody uses are
// closed after a while.
func TestDescriptorsAreBounded(t *testing.T) {
	cl, _ := newLocalCluster(t)
	c := cl.dial(t, func(cfg *Config) { cfg.Descriptors = 2 })
	take := func(path string) (*Descriptor, error) {
		t.Helper()
		cl.master.addFile(path, "1", 1000, block.DefaultBlockSize, time.Time{})
		f, err := c.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return f.Descriptor(t.Context())
	}
	a, errA := take("/a")
	b, errB := take("/b")
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if _, err := take("/c"); !errors.Is(err, errs.Unsupported) {
		t.Fatalf("a third one: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := take("/d") // in the place of a
	if err != nil {
		t.Fatal(err)
	}
	if err := a.File.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what nobody uses was left open: %v", err)
	}
	if err := errors.Join(b.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	c.descriptors.closeIdle(time.Now().Add(descriptorIdle / 2))
	if n := len(c.descriptors.files); n != 2 {
		t.Errorf("%d are kept, want 2", n)
	}
	c.descriptors.closeIdle(time.Now().Add(2 * descriptorIdle))
	if n := len(c.descriptors.files); n != 0 {
		t.Errorf("%d idle ones are kept", n)
	}
	if err := d.File.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("an idle one was left open: %v", err)
	}
}

// A descriptor that came long ago is not given to who opens the file anew, so
// that what the worker does not hand out any more is not read by it for ever.
func TestDescriptorIsAskedForAnew(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	use := func() error {
		t.Helper()
		f, err := c.Open(t.Context(), "/a")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := f.Descriptor(t.Context())
		if err != nil {
			return err
		}
		return d.Close()
	}
	if err := errors.Join(use(), use()); err != nil || w.asked.Load() != 1 {
		t.Fatalf("%v; the worker was asked %d times", err, w.asked.Load())
	}
	c.descriptors.mu.Lock()
	c.descriptors.files[tk.FileID].came = time.Now().Add(-descriptorKept)
	c.descriptors.mu.Unlock()
	w.refuseWith(errs.Unsupported)
	if err := use(); !errors.Is(err, errs.Unsupported) || w.asked.Load() != 2 {
		t.Errorf("%v; the worker was asked %d times", err, w.asked.Load())
	}
}

// ask opens a new file and asks for its descriptor.
func (c *cluster) ask(t *testing.T, sdk *Client, p string, ask func(*File, context.Context) (*Descriptor, error)) *block.Ticket {
	t.Helper()
	tk := c.master.addFile(p, "1", 1000, block.DefaultBlockSize, time.Time{})
	f, err := sdk.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := ask(f, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return tk
}

// A worker is asked to fetch a file for its descriptor by who says so.
func TestFillDescriptor(t *testing.T) {
	cl, w := newLocalCluster(t)
	c := cl.dial(t)
	cl.ask(t, c, "/f0", (*File).Descriptor)
	if n := w.filled.Load(); n != 0 {
		t.Errorf("%d files were to be fetched", n)
	}
	cl.ask(t, c, "/f1", (*File).FillDescriptor)
	if n := w.filled.Load(); n != 1 {
		t.Errorf("%d files were to be fetched, want 1", n)
	}
}

// Reads go on through the worker where descriptors are switched off, and where
// one fails.
func TestReadWithoutDescriptor(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	off := cl.dial(t, func(cfg *Config) { cfg.ShortCircuit = false })
	f, err := off.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Descriptor(t.Context()); !errors.Is(err, errs.Unsupported) {
		t.Fatal(err)
	}
	for range 3 {
		check(t, f, bytesOf(tk), 0, 50_000)
	}
	if n := w.asked.Load(); n != 0 {
		t.Errorf("the worker was asked %d times", n)
	}

	c := cl.dial(t)
	g, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	d, err := g.Descriptor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := os.Truncate(filepath.Join(w.dir, tk.FileID.String()), 5000); err != nil {
		t.Fatal(err)
	}
	check(t, h, bytesOf(tk), 90_000, 10_000)
	if h.local.Load() != nil || c.descriptors.known(tk.FileID) != nil {
		t.Error("a descriptor that does not give its bytes is still used")
	}
}

// A file that is read piece by piece gets its descriptor beside the reads, as
// soon as the worker has all of it.
func TestReadFindsDescriptor(t *testing.T) {
	cl, w := newLocalCluster(t)
	tk := cl.master.addFile("/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	f, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for f.local.Load() == nil {
		check(t, f, bytesOf(tk), 20_000, 30_000)
	}
	reads := w.reads.Load()
	check(t, f, bytesOf(tk), 0, 100_000)
	if w.reads.Load() != reads || w.asked.Load() != 1 {
		t.Errorf("%d reads of %d came to the worker, it was asked %d times", w.reads.Load()-reads, reads, w.asked.Load())
	}
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := f.ReadAtContext(t.Context(), p, 8192); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a read of a descriptor costs %v allocations", n)
	}
}

// A process that may have few files open keeps none of them for descriptors.
func TestDescriptorsByLimit(t *testing.T) {
	for limit, want := range map[uint64]int{100: 0, 512: 0, 1024: 128, 4096: 896, 1 << 20: maxDescriptors, 1<<64 - 1: maxDescriptors} {
		if n := shareOfFiles(limit); n != want {
			t.Errorf("of %d open files %d are for descriptors, want %d", limit, n, want)
		}
	}
}

// Descriptors that were prepared are there for who opens the files; nothing
// counts as used before, and their bounds are the same.
func TestPrepareDescriptors(t *testing.T) {
	cl, w := newLocalCluster(t)
	c := cl.dial(t, func(cfg *Config) { cfg.Descriptors = 20 })
	var entries []*Entry
	var ids []block.FileID
	for i := range 30 {
		p := fmt.Sprintf("/f%02d", i)
		ids = append(ids, cl.master.addFile(p, "1", 1000, block.DefaultBlockSize, time.Time{}).FileID)
		e, err := c.Stat(t.Context(), p, StatOptions{WithTicket: true})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	// idle returns how many are kept, when nothing is asked any more.
	idle := func(asked int64) int {
		t.Helper()
		for {
			c.descriptors.mu.Lock()
			n, under := len(c.descriptors.files), c.descriptors.asked
			c.descriptors.mu.Unlock()
			if w.asked.Load() >= asked && under == 0 {
				return n
			}
			if t.Context().Err() != nil {
				t.Fatal("the worker is not asked")
			}
			runtime.Gosched()
		}
	}
	c.PrepareDescriptors(entries[:10])
	if n := idle(10); n != 10 {
		t.Errorf("%d descriptors are there, want 10", n)
	}
	for i, e := range entries[:10] {
		f, err := c.OpenEntry(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		d, err := f.Descriptor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !d.IsFresh() || w.touchesOf(ids[i]) > 1 {
			t.Errorf("fresh: %v", d.IsFresh())
		}
		again, err := f.Descriptor(t.Context())
		if err != nil || again.IsFresh() {
			t.Error("what is used is fresh, ", err)
		}
		if err := errors.Join(d.Close(), again.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if n, filled := w.asked.Load(), w.filled.Load(); n != 10 || filled != 10 {
		t.Errorf("the worker was asked %d times for 10 files, to fetch %d", n, filled)
	}
	c.PrepareDescriptors(entries) // those that are there are not asked for
	if n := idle(30); n != 20 {
		t.Errorf("%d descriptors are there, want the bound", n)
	}
	if n := w.asked.Load(); n != 30 {
		t.Errorf("the worker was asked %d times for 30 files", n)
	}
	c.descriptors.gather(false)
	for _, id := range ids[10:] {
		if w.touchesOf(id) != 0 {
			t.Error("a file that nobody used counts as used")
		}
	}
	w.refuseWith(errs.NotCached)
	c.PrepareDescriptors([]*Entry{{Path: "/d", Dir: true}, {Path: "/e"}})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.PrepareDescriptors(entries)
	if n := len(c.descriptors.files); n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
}

// Only the first owner of a file fetches it for its descriptor: another one of
// this host hands out what it has.
func TestFillDescriptorOfOwner(t *testing.T) {
	cl, w := newLocalCluster(t)
	far := &fakeWorker{id: "far"}
	cl.stops = append(cl.stops, far.serve(t, "127.0.0.1:0", ""))
	cl.workers = append(cl.workers, far)
	cl.announce()
	c := cl.dial(t)
	const files = 20
	var owned int64
	for i := range files {
		tk := cl.ask(t, c, fmt.Sprintf("/f%d", i), (*File).FillDescriptor)
		if cl.owner(tk, 0, 0) == 0 {
			owned++
		}
	}
	if w.asked.Load() != files || w.filled.Load() != owned || owned == 0 || owned == files {
		t.Errorf("%d questions, %d of them to fetch it, for %d files of which it owns %d", w.asked.Load(), w.filled.Load(), files, owned)
	}
}

// That a prepared file did not come in time is no reason not to ask for it when
// it is opened.
func TestPreparedInVain(t *testing.T) {
	cl, w := newLocalCluster(t)
	c := cl.dial(t)
	cl.master.addFile("/a", "1", 1000, block.DefaultBlockSize, time.Time{})
	f, err := c.Open(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w.refuseWith(errs.NotCached)
	c.PrepareDescriptors([]*Entry{f.Entry()})
	eventually(t, "the question is over", func() bool {
		c.descriptors.mu.Lock()
		defer c.descriptors.mu.Unlock()
		return w.asked.Load() == 1 && c.descriptors.asked == 0
	})
	w.refuseWith(nil)
	d, err := f.Descriptor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
