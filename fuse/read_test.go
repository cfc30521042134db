package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/internal/size"
)

// TestReadsAllocateNothing is about what a READ costs in the mount itself.
// The race detector makes pools forget some of what they are given.
func TestReadsAllocateNothing(t *testing.T) {
	for _, tc := range []struct {
		name    string
		local   bool
		spliced span
	}{
		{"client", false, spliceWorth},
		{"pread", true, span{1, 0}},
		{"splice", true, span{0, maxRequest}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newFake(time.Hour)
			c.put("/x", 1<<20, "v1")
			if tc.local {
				c.local = t.TempDir()
			}
			f := newTestFsys(t, c)
			f.spliced = tc.spliced
			x, _ := f.lookup(t, rootID, "x")
			o, _ := f.open(x.NodeId, os.O_RDONLY)
			before := c.reads.Load()
			wantNoAllocations(t, f, o.Fh)
			if through := c.reads.Load() > before; through == tc.local {
				t.Errorf("read through the client: %v", through)
			}
			f.Release(nil, &gofuse.ReleaseIn{Fh: o.Fh})
			if n := c.descriptors.Load(); n != 0 {
				t.Errorf("%d descriptors are left open", n)
			}
		})
	}
}

// TestReadsFromLocalFiles reads through the kernel, by requests of all
// lengths, what lies in a local file, at its start or behind something else.
func TestReadsFromLocalFiles(t *testing.T) {
	const length = 5<<20 + 4321
	for _, base := range []int64{0, 12345} {
		for name, spliced := range map[string]span{"default": spliceWorth, "splice": {0, maxRequest}, "pread": {1, 0}} {
			t.Run(fmt.Sprintf("%s, base %d", name, base), func(t *testing.T) {
				c := newFake(time.Hour)
				c.put("/x", length, "v1")
				c.put("/small", 100<<10, "v1")
				c.local, c.base = t.TempDir(), base
				m := startMount(t, c, "", func(m *Mount) { m.spliced = spliced }, copyPath)
				for _, p := range []string{"/x", "/small"} {
					if b, err := os.ReadFile(m.dir + p); err != nil || !bytes.Equal(b, c.bytesOf(p)) {
						t.Fatalf("%s: %d bytes, %v", p, len(b), err)
					}
				}
				want := c.bytesOf("/x")
				fd, err := unix.Open(filepath.Join(m.dir, "x"), unix.O_RDONLY|unix.O_DIRECT, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				if _, err := unix.Pread(fd, make([]byte, 10), 0); err != nil { // asks for the descriptor
					t.Fatal(err)
				}
				before := c.reads.Load()
				var wg sync.WaitGroup
				for g := range 4 {
					wg.Go(func() {
						rnd := rand.New(rand.NewPCG(uint64(g), 1))
						for range 50 {
							off, p := rnd.Int64N(length), make([]byte, 1+rnd.IntN(1<<20))
							n, err := unix.Pread(fd, p, off)
							if err != nil || n != min(len(p), length-int(off)) || !bytes.Equal(p[:n], want[off:][:n]) {
								t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
							}
						}
					})
				}
				wg.Wait()
				if n := c.reads.Load() - before; n != 0 {
					t.Errorf("%d reads went through the client", n)
				}
			})
		}
	}
}

// TestLocalFileThatFails has a descriptor that cannot be read: programs see
// the client's bytes.
func TestLocalFileThatFails(t *testing.T) {
	for name, spliced := range map[string]span{"splice": {0, maxRequest}, "pread": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			c := newFake(time.Hour)
			c.put("/x", 3<<20, "v1")
			c.local, c.localFlags = t.TempDir(), os.O_WRONLY
			m := startMount(t, c, "", func(m *Mount) { m.spliced = spliced }, copyPath)
			b, err := os.ReadFile(filepath.Join(m.dir, "x"))
			if err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if c.reads.Load() == 0 {
				t.Error("nothing was read through the client")
			}
		})
	}
}

// TestLocalFileThatFailed is not tried again by who has the file open.
func TestLocalFileThatFailed(t *testing.T) {
	for _, spliced := range []span{{0, maxRequest}, {1, 0}} {
		c := newFake(time.Hour)
		c.put("/x", 1<<20, "v1")
		c.local, c.localFlags = t.TempDir(), os.O_WRONLY
		f := newTestFsys(t, c)
		f.spliced = spliced
		x, _ := f.lookup(t, rootID, "x")
		o, _ := f.open(x.NodeId, os.O_RDONLY)
		buf := make([]byte, 4096)
		for i := range 3 {
			res, st := f.Read(nil, &gofuse.ReadIn{Fh: o.Fh, Size: 4096}, buf)
			if st != gofuse.OK {
				t.Fatal(st)
			}
			if b, st := res.Bytes(buf); st != gofuse.OK || !bytes.Equal(b, c.bytesOf("/x")[:4096]) { // as when splicing fails
				t.Error("other bytes ", st)
			}
			res.Done()
			if open, _ := f.files.get(o.Fh); open.local.now() != nil || c.reads.Load() != int64(i+1) {
				t.Errorf("read %d: the local file is still read", i)
			}
		}
	}
}

// TestLocalFileThatIsShort is not read: its end is not the file's.
func TestLocalFileThatIsShort(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 1<<20, "v1")
	c.local = t.TempDir()
	name := filepath.Join(c.local, c.entries["/x"].FileID.String())
	if err := os.WriteFile(name, c.bytesOf("/x")[:1<<20-1], 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, c, "", copyPath)
	if b, err := os.ReadFile(filepath.Join(m.dir, "x")); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if n := c.descriptors.Load(); n != 0 {
		t.Errorf("%d descriptors are open", n)
	}
}

// TestFileThatBecomesLocal is read through the client first, and from its
// local file when there is one, by the same descriptor.
func TestFileThatBecomesLocal(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 1<<20, "v1")
	c.local, c.noLocal = t.TempDir(), errors.New("not complete")
	f := newTestFsys(t, c)
	x, _ := f.lookup(t, rootID, "x")
	o, _ := f.open(x.NodeId, os.O_RDONLY)
	read := func() (through int64) {
		t.Helper()
		before, buf := c.reads.Load(), make([]byte, 4096)
		res, st := f.Read(nil, &gofuse.ReadIn{Fh: o.Fh, Size: 4096, Offset: 8192}, buf)
		if st != gofuse.OK {
			t.Fatal(st)
		}
		if b, st := res.Bytes(buf); st != gofuse.OK || !bytes.Equal(b, c.bytesOf("/x")[8192:][:4096]) {
			t.Fatal("other bytes ", st)
		}
		res.Done()
		return c.reads.Load() - before
	}
	if n := read() + read(); n != 2 || c.asked.Load() != 1 {
		t.Errorf("%d of 2 reads went through the client, %d questions for a descriptor", n, c.asked.Load())
	}
	c.mu.Lock()
	c.noLocal = nil
	c.mu.Unlock()
	open, _ := f.files.get(o.Fh)
	open.local.ask.Store(0) // the time passes
	if n := read(); n != 0 || c.descriptors.Load() != 1 {
		t.Error("the local file is not read")
	}
	f.Release(nil, &gofuse.ReleaseIn{Fh: o.Fh})
	if n := c.descriptors.Load(); n != 0 {
		t.Errorf("%d descriptors are left open", n)
	}
}

// TestReadAhead looks at what the kernel was told, and that it asks for as
// much at once.
func TestReadAhead(t *testing.T) {
	for _, ahead := range []size.Bytes{128 * size.KiB, size.MiB, 4 * size.MiB} {
		t.Run(ahead.String(), func(t *testing.T) {
			c := newFake(time.Hour)
			c.put("/x", 32<<20, "v1")
			m := start(t, c, "", func(c *Config) { c.ReadAhead = ahead })
			var st unix.Stat_t
			if err := unix.Stat(m.dir, &st); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
			b, err := os.ReadFile(name)
			if err != nil {
				t.Skip("SKIPPED, NOT TESTED: ", err)
			}
			if kb, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || size.Bytes(kb)*size.KiB != ahead {
				t.Fatalf("%s is %s, want %v", name, b, ahead)
			}
			f, err := os.Open(filepath.Join(m.dir, "x"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 64<<10)
			for range 32 << 20 / len(buf) {
				if _, err := f.Read(buf); err != nil {
					t.Fatal(err)
				}
			}
			// The window grows to its bound after a few reads.
			want := 32 << 20 / min(int64(ahead), maxRequest)
			// What is read ahead may be dropped before it is used, where memory is
			// short, and is asked for again: the size of the requests tells.
			if n, asked := c.reads.Load(), c.asks.Load(); asked/n < 32<<20/(want+want/4+8) {
				t.Errorf("read_ahead %v: %d requests for %d bytes, want %d for 32 MiB", ahead, n, asked, want)
			}
		})
	}
}

// TestLocalFileThatEndsEarly has a local file that lost its end, as one does
// to a reader when the disk fails behind the first pages of a read: programs
// see the client's bytes, not zeros or the end of the file.
func TestLocalFileThatEndsEarly(t *testing.T) {
	const length = 8 << 20
	for name, spliced := range map[string]span{"default": spliceWorth, "splice": {0, maxRequest}, "pread": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			c := newFake(time.Hour)
			c.put("/x", length, "v1")
			c.local = t.TempDir()
			m := startMount(t, c, "", func(m *Mount) { m.spliced = spliced }, copyPath)
			f := open(t, filepath.Join(m.dir, "x"))
			first := make([]byte, 4096)
			if _, err := f.ReadAt(first, 0); err != nil { // from the local file from now on
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(c.local, c.entries["/x"].FileID.String()), length/2+5000); err != nil {
				t.Fatal(err)
			}
			if b := readAll(t, f, length); !bytes.Equal(b, c.bytesOf("/x")) {
				t.Error("other bytes")
			}
		})
	}
}

// wantNoAllocations reads from an open file, as the kernel does.
func wantNoAllocations(t *testing.T, f *fsys, fh uint64) {
	t.Helper()
	in, buf := &gofuse.ReadIn{Fh: fh, Size: 4096}, make([]byte, 4096)
	n := testing.AllocsPerRun(500, func() {
		res, st := f.Read(nil, in, buf)
		if st != gofuse.OK || res.Size() != 4096 {
			t.Fatal(st)
		}
		if p, ok := res.(*fileReply); ok {
			if n, err := unix.Read(p.r, buf); n != 4096 {
				t.Fatal(n, err)
			}
		}
		res.Done()
	})
	f.replies.close()
	if limit := 1.0; n >= limit+2*raceDetector {
		t.Errorf("%v allocations for each READ", n)
	}
}
