package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

const fillingBase = 4096

// fillingWorker is a localWorker whose files are never whole: of each it has
// the bytes before there in a local file.
type fillingWorker struct {
	*localWorker

	making         sync.Mutex // of local files
	there          atomic.Int64
	given, placed  atomic.Int64 // descriptors, and reads that were told of
	mark           atomic.Uint64
	refusedPartial atomic.Pointer[errs.Error]
}

func newFillingCluster(t *testing.T) (*cluster, *fillingWorker) {
	t.Helper()
	var w *fillingWorker
	c, _ := newLocalClusterWith(t, func(local *localWorker) blockio.Handler {
		w = &fillingWorker{localWorker: local}
		w.refuseWith(errs.E(errs.NotCached, "", "", nil))
		w.mark.Store(7)
		w.there.Store(1 << 40)
		return w
	})
	return c, w
}

func (w *fillingWorker) Open(ctx context.Context, t *block.Ticket) (blockio.File, error) {
	f, err := w.fakeWorker.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	return &fillingFile{localFile{f, w.localWorker, t}, w}, nil
}

func (w *fillingWorker) name(t *block.Ticket) string {
	return filepath.Join(w.dir, t.FileID.String())
}

type fillingFile struct {
	localFile

	w *fillingWorker
}

func (f *fillingFile) PartialDescriptor(context.Context) (*os.File, int64, int64, uint64, error) {
	if err := f.w.refusedPartial.Load(); err != nil {
		f.w.given.Add(1)
		return nil, 0, 0, 0, err
	}
	if err := f.make(); err != nil {
		return nil, 0, 0, 0, err
	}
	fd, err := os.Open(f.w.name(f.t))
	f.w.given.Add(1)
	return fd, fillingBase, f.t.Length, f.w.mark.Load(), err
}

// make makes the local file once: the client does not wait long for it.
func (f *fillingFile) make() error {
	f.w.making.Lock()
	defer f.w.making.Unlock()
	if _, err := os.Stat(f.w.name(f.t)); err == nil {
		return nil
	}
	b := append(make([]byte, fillingBase), bytesOf(f.t)...)
	if there := f.w.there.Load(); there < f.t.Length {
		clear(b[fillingBase+there:])
	}
	return os.WriteFile(f.w.name(f.t), b, 0o600)
}

func (f *fillingFile) PlaceNow(context.Context, blockio.ReadRequest, uint64) bool { return false }

func (f *fillingFile) Place(_ context.Context, req blockio.ReadRequest, mark uint64) (bool, error) {
	if mark != f.w.mark.Load() || req.Extent.End() > f.w.there.Load() {
		return false, nil
	}
	f.w.placed.Add(1)
	return true, nil
}

// openFilling opens a file and reads until it has the worker's local file.
func openFilling(t *testing.T, c *Client, path string, want []byte) *File {
	t.Helper()
	f, err := c.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	eventually(t, "the local file", func() bool {
		check(t, f, want, 0, placeWorth) // the first may come before the members are known
		return f.filling.Load() != nil
	})
	return f
}

// Reads of a file that the worker still fetches find its bytes in the local
// file where the worker says so, and come from the worker where it does not.
func TestReadInPlace(t *testing.T) {
	cl, w := newFillingCluster(t)
	const length = 9<<20 + 77
	tk := cl.master.addFile("/a", "1", length, block.DefaultBlockSize, time.Time{})
	want := bytesOf(tk)
	w.there.Store(8 << 20)
	c := cl.dial(t)
	f := openFilling(t, c, "/a", want)
	sent := w.reads.Load()
	check(t, f, want, 5, 300_000)
	check(t, f, want, 100, 8<<20-100) // several pieces
	if w.reads.Load() != sent || w.placed.Load() < 3 {
		t.Errorf("%d reads were told of, %d were sent", w.placed.Load(), w.reads.Load()-sent)
	}
	check(t, f, want, 8<<20-5, placeWorth)
	check(t, f, want, length-5, 10)
	check(t, f, want, 0, placeWorth-1) // not worth it
	if w.reads.Load() != sent+3 {
		t.Errorf("%d reads were sent of what is not there", w.reads.Load()-sent)
	}
	if n := c.descriptors.bytes.Load(); n != 0 {
		t.Errorf("%d bytes are counted that the worker counts", n)
	}
	// Left where they are.
	p := make([]byte, placeWorth)
	n, d, err := f.ReadInPlace(t.Context(), p, 12_345)
	if err != nil || n != placeWorth || d == nil || !bytes.Equal(p, make([]byte, placeWorth)) {
		t.Fatalf("%d bytes in %v, %v", n, d, err)
	}
	base, _ := d.Extent()
	if err := f.Close(); err != nil { // a use goes on
		t.Fatal(err)
	}
	if _, err := unix.Pread(d.FD(), p, base+12_345); err != nil || !bytes.Equal(p, want[12_345:][:placeWorth]) {
		t.Errorf("other bytes are there, %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	f = openFilling(t, c, "/a", want)
	n, d, err = f.ReadInPlace(t.Context(), p, length-10)
	if !errors.Is(err, io.EOF) || n != 10 || d != nil || !bytes.Equal(p[:10], want[length-10:]) {
		t.Errorf("at the end: %d bytes in %v, %v", n, d, err)
	}
	if n, d, err := f.ReadInPlace(t.Context(), make([]byte, 5<<20), 0); err != nil || n != 5<<20 || d != nil {
		t.Errorf("several pieces: %d bytes in %v, %v", n, d, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if c.descriptors.mu.Lock(); c.descriptors.asked != 0 {
		t.Errorf("the places of %d descriptors are taken", c.descriptors.asked)
	}
	c.descriptors.mu.Unlock()
	if n := filesOpen(t, w.name(tk)); n != 0 {
		t.Errorf("%d descriptors are open", n)
	}
}

// The worker's local file is another one by now, or does not give its bytes.
func TestReadInPlaceFails(t *testing.T) {
	cl, w := newFillingCluster(t)
	tk := cl.master.addFile("/a", "1", 2<<20, block.DefaultBlockSize, time.Time{})
	want := bytesOf(tk)
	f := openFilling(t, cl.dial(t), "/a", want)
	if err := os.Truncate(w.name(tk), fillingBase+100_000); err != nil {
		t.Fatal(err)
	}
	sent := w.reads.Load()
	check(t, f, want, 0, 1<<20)
	if w.placed.Load() == 0 || w.reads.Load() != sent+1 {
		t.Errorf("%d reads were told of, %d sent", w.placed.Load(), w.reads.Load()-sent)
	}
	w.mark.Add(1)
	sent, told := w.reads.Load(), w.placed.Load()
	check(t, f, want, 0, placeWorth)
	if w.placed.Load() != told || w.reads.Load() != sent+1 {
		t.Errorf("%d reads were told of in another file", w.placed.Load()-told)
	}
}

// Who gets no local file reads on, and does not ask all the time.
func TestNoLocalFile(t *testing.T) {
	for name, tt := range map[string]struct {
		length  int64
		change  func(*Config)
		refusal *errs.Error
		asks    int64
	}{
		"small":            {smallFile, nil, nil, 0},
		"switched off":     {2 << 20, func(c *Config) { c.ShortCircuit = false }, nil, 0},
		"not handed out":   {2 << 20, nil, errs.E(errs.Unsupported, "", "", nil), 1},
		"nothing is there": {2 << 20, nil, errs.E(errs.NotCached, "", "", nil), 1},
	} {
		t.Run(name, func(t *testing.T) {
			cl, w := newFillingCluster(t)
			w.refusedPartial.Store(tt.refusal)
			tk := cl.master.addFile("/a", "1", tt.length, block.DefaultBlockSize, time.Time{})
			var change []func(*Config)
			if tt.change != nil {
				change = append(change, tt.change)
			}
			f, err := cl.dial(t, change...).Open(t.Context(), "/a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			began := time.Now()
			for range 5 {
				check(t, f, bytesOf(tk), 0, placeWorth)
			}
			if tt.asks > 0 {
				eventually(t, "the question", func() bool {
					check(t, f, bytesOf(tk), 0, placeWorth)
					return w.given.Load() > 0
				})
			}
			most := tt.asks * int64(1+time.Since(began)/askAgain)
			if n := w.given.Load(); n > most || w.placed.Load() != 0 {
				t.Errorf("the worker was asked %d times, and told of %d reads", n, w.placed.Load())
			}
		})
	}
}

// The descriptors of files that fill count with all others.
func TestLocalFilesAreBounded(t *testing.T) {
	cl, _ := newFillingCluster(t)
	a := cl.master.addFile("/a", "1", 2<<20, block.DefaultBlockSize, time.Time{})
	b := cl.master.addFile("/b", "1", 2<<20, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t, func(c *Config) { c.Descriptors = 1 })
	first := openFilling(t, c, "/a", bytesOf(a))
	d := first.useFilling() // else it is given back on a slow machine
	if d == nil {
		t.Fatal("it is given back already")
	}
	f, err := c.Open(t.Context(), "/b")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eventually(t, "the place that is not there", func() bool {
		check(t, f, bytesOf(b), 0, placeWorth)
		return f.askFilling.Load() > c.clock.now()+int64(askAgain)
	})
	if f.filling.Load() != nil {
		t.Error("there is one more than may be")
	}
	if err := errors.Join(first.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	f.askFilling.Store(0)
	eventually(t, "the local file", func() bool {
		check(t, f, bytesOf(b), 0, placeWorth)
		return f.filling.Load() != nil
	})
}

// Files are closed while they are read, with and without their local files:
// the bytes of a read that ends well are right, and nothing stays open.
func TestCloseUnderReadsInPlace(t *testing.T) {
	cl, w := newFillingCluster(t)
	tk := cl.master.addFile("/a", "1", 2<<20, block.DefaultBlockSize, time.Time{})
	want := bytesOf(tk)
	c := cl.dial(t)
	for round := range 8 {
		var f *File
		if round%2 == 0 {
			f = openFilling(t, c, "/a", want)
		} else if opened, err := c.Open(t.Context(), "/a"); err == nil {
			f = opened
		} else {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var reads atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				p := make([]byte, placeWorth)
				for off := int64(i) * 100; ; off += 1000 {
					n, err := f.ReadAt(p, off%(1<<20))
					if err != nil && errs.KindOf(err) == errs.Invalid {
						return // it is closed
					}
					if err != nil || !bytes.Equal(p[:n], want[off%(1<<20):][:n]) {
						t.Errorf("%d bytes at %d, %v", n, off, err)
						return
					}
					reads.Add(1)
				}
			})
		}
		eventually(t, "reads", func() bool { return reads.Load() > 20 })
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	if w.placed.Load() == 0 {
		t.Error("no read was told of")
	}
	eventually(t, "all descriptors to be closed", func() bool { return filesOpen(t, w.name(tk)) == 0 })
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// A File that has not read by its local file for a while gives it back, and has
// it again when it reads on.
func TestIdleLocalFileIsGivenBack(t *testing.T) {
	cl, w := newFillingCluster(t)
	tk := cl.master.addFile("/a", "1", 2<<20, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t)
	f := openFilling(t, c, "/a", bytesOf(tk))
	d := f.useFilling()
	if d == nil {
		t.Fatal("it was given back at once")
	}
	used := d.used.Load()
	if idle := c.descriptors.idleLoans(used + int64(descriptorIdle) - 1); len(idle) != 0 {
		t.Error("it is given back too early")
	}
	c.descriptors.endLoans(used + int64(descriptorIdle))
	if f.filling.Load() != nil || filesOpen(t, w.name(tk)) == 0 {
		t.Error("it is not given back, or a read that uses it has lost it")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the local file to be closed", func() bool { return filesOpen(t, w.name(tk)) == 0 })
	f.askFilling.Store(0)
	eventually(t, "the local file", func() bool {
		check(t, f, bytesOf(tk), 0, placeWorth)
		return f.filling.Load() != nil
	})
}

// filesOpen returns how many descriptors of this process are of name.
func filesOpen(t testing.TB, name string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && target == name {
			n++
		}
	}
	return n
}
