package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/block"
)

func noOpen(c *Config) { c.NoOpen = true }

// newUnopenedFsys is newTestFsys of a mount in no-open mode.
func newUnopenedFsys(t *testing.T, c Client) *fsys {
	t.Helper()
	f := newTestFsys(t, c)
	f.unopened = newUnopened()
	return f
}

// readNode reads n bytes at the start of a node that was not opened, and does
// with the answer what the kernel does.
func (f *fsys) readNode(t testing.TB, node uint64, n int) gofuse.Status {
	t.Helper()
	buf := make([]byte, n)
	in := &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: node}, Size: uint32(n)}
	res, st := f.Read(nil, in, buf)
	if st != gofuse.OK {
		return st
	}
	if p, ok := res.(*fileReply); ok {
		if got, err := unix.Read(p.r, buf); got != res.Size() {
			t.Error(got, err)
		}
	}
	res.Done()
	return st
}

// Through the kernel: no open is heard of, all bytes are right, by many
// readers at once, from local files and from the client.
func TestNoOpen(t *testing.T) {
	for _, tc := range []struct {
		name  string
		local bool
	}{{"local", true}, {"client", false}} {
		t.Run(tc.name, func(t *testing.T) {
			c := newFake(time.Hour)
			sizes := []int64{1, 5000, 100 << 10, 3<<20 + 7}
			for i := range 40 {
				c.put(fmt.Sprintf("/d/%d", i), sizes[i%len(sizes)], "v1")
			}
			c.put("/d/empty", 0, "v1")
			if tc.local {
				c.local = t.TempDir()
			}
			m := start(t, c, "", noOpen)
			if b, err := os.ReadFile(m.dir + "/d/empty"); err != nil || len(b) != 0 {
				t.Fatal(len(b), err)
			}
			var all sync.WaitGroup
			for r := range 8 {
				all.Go(func() {
					for i := range 40 {
						name := fmt.Sprintf("/d/%d", (i+r*5)%40)
						b, err := os.ReadFile(m.dir + name)
						if err != nil || !bytes.Equal(b, c.bytesOf(name)) {
							t.Errorf("%s: %d bytes, %v", name, len(b), err)
						}
					}
				})
			}
			all.Wait()
			held, err := os.Open(m.dir + "/d/0")
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			if n := m.gauge(t, "millrace_fuse_open_files"); n != 0 {
				t.Errorf("%v opens were told", n)
			}
			if n := c.passed.Load(); n != 0 {
				t.Errorf("%d opens by passthrough", n)
			}
			if by := c.counted.Load() > 0; by != tc.local {
				t.Errorf("read by descriptors: %v", by)
			}
			// What is kept is closed when the mount ends, if not before.
			held.Close()
			m.stop()
			if err := m.wait(t); err != nil {
				t.Fatal(err)
			}
			if n := c.descriptors.Load(); n != 0 {
				t.Errorf("%d descriptors are left open", n)
			}
		})
	}
}

// An object is replaced while a program has it open: what the kernel has not
// read of the old version is ESTALE, an open sees the new one.
func TestNoOpenOfReplacedObject(t *testing.T) {
	for _, local := range []bool{false, true} {
		t.Run(fmt.Sprintf("local %v", local), func(t *testing.T) {
			c := newFake(20 * time.Millisecond)
			c.put("/x", 3<<20, "v1")
			if local {
				c.local = t.TempDir()
			}
			m := start(t, c, "", noOpen)
			name := filepath.Join(m.dir, "x")
			before := c.bytesOf("/x")
			old, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			p := make([]byte, 100)
			if _, err := old.ReadAt(p, 4096); err != nil || !bytes.Equal(p, before[4096:][:100]) {
				t.Fatal(err)
			}
			c.put("/x", 2<<20, "v2")
			m.await(t, "the new version", func() bool {
				info, err := os.Stat(name)
				return err == nil && info.Size() == 2<<20
			})
			if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
				t.Errorf("a new open reads %d bytes, %v", len(b), err)
			}
			if err := unix.Fadvise(int(old.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			if n, err := old.ReadAt(p, 1<<20); !errors.Is(err, unix.ESTALE) {
				t.Errorf("the old version: %d bytes, %v", n, err)
			}
		})
	}
}

// The kernel keeps no pages of a version that may still change under its tag.
func TestNoOpenOfUnsettledVersion(t *testing.T) {
	c := newFake(0)
	c.put("/x", 100_000, "v1")
	e := *c.entries["/x"]
	tk := *e.Ticket
	tk.Unsettled = true
	e.Ticket = &tk
	c.entries["/x"] = &e
	m := start(t, c, "", noOpen)
	read := func() {
		t.Helper()
		if b, err := os.ReadFile(m.dir + "/x"); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	read()
	before := c.reads.Load()
	m.await(t, "a read of what was read before", func() bool {
		read()
		return c.reads.Load() > before
	})
}

// A READ of a node whose path has another version by now is ESTALE, also when
// its file is there; a READ under way ends by its own file.
func TestUnopenedIsSuperseded(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 100_000, "v1")
	c.local = t.TempDir()
	f := newUnopenedFsys(t, c)
	x, _ := f.lookup(t, rootID, "x")
	if st := f.readNode(t, x.NodeId, 4096); st != gofuse.OK {
		t.Fatal(st)
	}
	o := f.unopened.use(x.NodeId) // a READ under way
	c.put("/x", 50_000, "v2")
	f.entries.drop("/x")
	if y, _ := f.lookup(t, rootID, "x"); y.NodeId == x.NodeId {
		t.Fatal("the new version has the old node")
	}
	if st := f.readNode(t, x.NodeId, 4096); st != gofuse.Status(syscall.ESTALE) {
		t.Error(st)
	}
	if n := c.descriptors.Load(); n != 1 {
		t.Errorf("%d descriptors are open while one is in use", n)
	}
	f.releaseUnopened(o)
	if n := c.descriptors.Load(); n != 0 || f.unopened.len() != 0 {
		t.Errorf("%d descriptors are left open, %d files kept", n, f.unopened.len())
	}
	if st := f.readNode(t, 4711<<tableShardBits, 4096); st != gofuse.Status(syscall.ESTALE) {
		t.Error(st)
	}
	if st := f.readNode(t, rootID, 4096); st != gofuse.EISDIR {
		t.Error(st)
	}
	if out, st := f.open(x.NodeId, os.O_RDONLY); st != gofuse.ENOSYS {
		t.Error(out, st)
	}
	if st := f.Flush(nil, nil); st != gofuse.ENOSYS {
		t.Error(st)
	}
}

// What is kept is bounded, and what nobody reads is closed after a while.
func TestUnopenedIsBounded(t *testing.T) {
	c := newFake(time.Hour)
	c.local = t.TempDir()
	f := newUnopenedFsys(t, c)
	const files = 3 * maxUnopened
	for i := range files { // a listing ahead is to find all of them
		c.put("/"+fmt.Sprint(i), 1, "v1")
	}
	for i := range files {
		x, _ := f.lookup(t, rootID, fmt.Sprint(i))
		if st := f.readNode(t, x.NodeId, 1); st != gofuse.OK {
			t.Fatal(st)
		}
		if n := c.descriptors.Load(); n > maxUnopened {
			t.Fatalf("%d descriptors are open", n)
		}
	}
	if n := f.unopened.len(); n > maxUnopened || n < maxUnopened/2 {
		t.Errorf("%d files are kept", n)
	}
	if all := f.unopened.idle(time.Now().Add(-unopenedIdle)); len(all) != 0 {
		t.Errorf("%d files are closed that were read a moment ago", len(all))
	}
	kept := c.descriptors.Load()
	f.closeUnopened(f.unopened.idle(time.Now())...)
	if n := c.descriptors.Load(); n != 0 || kept == 0 || f.unopened.len() != 0 {
		t.Errorf("of %d descriptors %d are left, %d files kept", kept, n, f.unopened.len())
	}
}

// Two READs that come first at the same time: one's file serves both.
func TestUnopenedTwice(t *testing.T) {
	u := newUnopened()
	n := &node{id: 64, fileID: block.FileID{1}}
	a, b := &nodeFile{openFile: openFile{node: n}}, &nodeFile{openFile: openFile{node: n}}
	if o, out := u.add(a); o != a || len(out) != 0 {
		t.Fatal(o, out)
	}
	if o, out := u.add(b); o != a || len(out) != 1 || out[0] != b {
		t.Fatal(o, out)
	}
	if u.drop(n.id) != nil || u.release(a) != nil {
		t.Error("it is closed while it is read")
	}
	if u.release(a) != a {
		t.Error("nobody closes it")
	}
}

// A READ of a node whose file is kept allocates nothing.
func TestUnopenedReadsAllocateNothing(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 1<<20, "v1")
	c.local = t.TempDir()
	f := newUnopenedFsys(t, c)
	f.spliced = span{1, 0}
	x, _ := f.lookup(t, rootID, "x")
	buf := make([]byte, 4096)
	in := &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: x.NodeId}, Size: 4096}
	n := testing.AllocsPerRun(500, func() {
		res, st := f.Read(nil, in, buf)
		if st != gofuse.OK {
			t.Fatal(st)
		}
		res.Done()
	})
	if limit := 1.0; n >= limit+2*raceDetector {
		t.Errorf("%v allocations for each READ", n)
	}
	f.closeUnopened(f.unopened.idle(time.Now())...)
}
