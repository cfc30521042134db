package fuse

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// fillingFake has a file of which no descriptor is given and whose bytes are
// left in a local file, that is opened with flags.
func fillingFake(t *testing.T, size int64, flags int) *fakeClient {
	t.Helper()
	c := newFake(time.Hour)
	c.put("/x", size, "v1")
	c.localFlags = flags
	d, err := c.localFile(t.TempDir(), c.entries["/x"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	c.filling, c.noLocal = usedDescriptor{d, &c.inUse}, errs.NotCached
	t.Cleanup(func() {
		if n := c.inUse.Load(); n != 0 {
			t.Errorf("%d uses of the local file have not ended", n)
		}
	})
	return c
}

// usedDescriptor counts the ends of uses.
type usedDescriptor struct {
	Descriptor
	uses *atomic.Int64
}

func (d usedDescriptor) Close() error {
	d.uses.Add(-1)
	return nil
}

// TestReadsFromFillingFiles reads through the kernel what the client leaves in
// a local file, in all ways and by requests of all lengths.
func TestReadsFromFillingFiles(t *testing.T) {
	const length = 5<<20 + 4321
	for name, spliced := range map[string]span{"default": spliceWorth, "splice": {0, maxRequest}, "pread": {1, 0}} {
		for mode, option := range map[string]func(*Config){"open": copyPath, "no-open": noOpen} {
			t.Run(name+", "+mode, func(t *testing.T) {
				c := fillingFake(t, length, os.O_RDONLY)
				m := startMount(t, c, "", func(m *Mount) { m.spliced = spliced }, option)
				if b, err := os.ReadFile(filepath.Join(m.dir, "x")); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
				if c.placed.Load() == 0 || c.reads.Load() != 0 || c.counted.Load() != 0 {
					t.Errorf("%d reads were left in place, %d were not; %d bytes are counted", c.placed.Load(), c.reads.Load(), c.counted.Load())
				}
			})
		}
	}
}

// TestFillingFileThatFails is read through the client, each time that it does.
func TestFillingFileThatFails(t *testing.T) {
	for name, spliced := range map[string]span{"splice": {0, maxRequest}, "pread": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			c := fillingFake(t, 3<<20, os.O_WRONLY)
			m := startMount(t, c, "", func(m *Mount) { m.spliced = spliced }, copyPath)
			if b, err := os.ReadFile(filepath.Join(m.dir, "x")); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if c.placed.Load() != c.reads.Load() {
				t.Errorf("%d reads were left in place, and %d were not", c.placed.Load(), c.reads.Load())
			}
		})
	}
}

// TestFillingFileThatCannotBeSpliced is copied when go-fuse finds that out.
func TestFillingFileThatCannotBeSpliced(t *testing.T) {
	c := fillingFake(t, 1<<20, os.O_RDONLY)
	f := newTestFsys(t, c)
	f.spliced = span{0, maxRequest}
	x, _ := f.lookup(t, rootID, "x")
	o, _ := f.open(x.NodeId, os.O_RDONLY)
	buf := make([]byte, 128<<10)
	res, st := f.Read(nil, &gofuse.ReadIn{Fh: o.Fh, Size: 128 << 10, Offset: 4096}, buf)
	if st != gofuse.OK {
		t.Fatal(st)
	}
	p, ok := res.(*fileReply)
	if !ok {
		t.Fatalf("%T", res)
	}
	if n, err := unix.Read(p.r, buf); err != nil || n != len(buf) { // go-fuse throws away what it cannot splice
		t.Fatal(n, err)
	}
	if c.inUse.Load() == 0 {
		t.Error("the local file is not in use any more")
	}
	if b, st := p.Bytes(buf); st != gofuse.OK || !bytes.Equal(b, c.bytesOf("/x")[4096:][:len(buf)]) {
		t.Error("other bytes ", st)
	}
	res.Done()
	f.replies.close()
}

// TestReadsInPlaceAllocateNothing in the mount itself.
func TestReadsInPlaceAllocateNothing(t *testing.T) {
	c := fillingFake(t, 1<<20, os.O_RDONLY)
	f := newTestFsys(t, c)
	f.spliced = span{0, maxRequest}
	x, _ := f.lookup(t, rootID, "x")
	o, _ := f.open(x.NodeId, os.O_RDONLY)
	wantNoAllocations(t, f, o.Fh)
}
