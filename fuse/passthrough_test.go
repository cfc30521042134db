package fuse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// localFake is a client whose files are all in local files.
func localFake(t testing.TB) *fakeClient {
	t.Helper()
	c := newFake(time.Hour)
	c.local = t.TempDir()
	return c
}

// setLocal says whether there are local files to be had now.
func (f *fakeClient) setLocal(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noLocal = nil; !yes {
		f.noLocal = errors.New("not complete")
	}
}

// opened returns how many opens went that way for that reason.
func (m *mounted) opened(t *testing.T, mode string, why reason) int {
	t.Helper()
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "millrace_fuse_opens_total" {
			continue
		}
		for _, x := range f.GetMetric() {
			if l := x.GetLabel(); l[0].GetValue() == mode && l[1].GetValue() == string(why) {
				return int(x.GetCounter().GetValue())
			}
		}
	}
	return 0
}

// passes skips the test where the kernel takes no backing file.
func (m *mounted) passes(t *testing.T) {
	t.Helper()
	if n := m.opened(t, "copy", notOffered); n > 0 {
		t.Skip("SKIPPED, NOT TESTED: no FUSE passthrough here")
	}
}

func readAll(t *testing.T, f *os.File, length int) []byte {
	t.Helper()
	p := make([]byte, length)
	if n, err := f.ReadAt(p, 0); n != length {
		t.Fatalf("%d of %d bytes: %v", n, length, err)
	}
	return p
}

// open opens a file until the end of the test.
func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestPassthrough reads in all ways what the kernel has a backing file of.
func TestPassthrough(t *testing.T) {
	const length = 5<<20 + 4321
	c := localFake(t)
	c.put("/d/x", length, "v1")
	c.put("/small", 11, "v1")
	c.put("/empty", 0, "v1")
	m := start(t, c, "")
	for _, p := range []string{"/small", "/empty", "/d/x"} {
		if b, err := os.ReadFile(m.dir + p); err != nil || !bytes.Equal(b, c.bytesOf(p)) {
			t.Fatalf("%s: %d bytes, %v", p, len(b), err)
		}
	}
	m.passes(t)
	want := c.bytesOf("/d/x")
	f := open(t, m.dir+"/d/x")
	again := open(t, m.dir+"/d/x")
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		off, p := rnd.Int64N(length), make([]byte, rnd.IntN(1<<20))
		end := min(off+int64(len(p)), length)
		if n, err := f.ReadAt(p, off); !bytes.Equal(p[:n], want[off:end]) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
	if got := readAll(t, again, length); !bytes.Equal(got, want) {
		t.Error("other bytes by the second descriptor")
	}
	out, err := helperCmd(t, "mmap", m.dir+"/d/x").Output()
	if sum := fmt.Sprintf("%x", sha256.Sum256(want)); err != nil || string(out) != sum {
		t.Errorf("through a mapping: %s, %v; want %s", out, err, sum)
	}
	if n := c.reads.Load(); n != 0 {
		t.Errorf("%d reads reached the mount", n)
	}
	if passed, without := m.opened(t, "passthrough", passedOn), m.opened(t, "copy", empty); passed != 5 || without != 1 || c.passed.Load() != 5 || c.opens.Load() != 6 {
		t.Errorf("%d opens by passthrough, want 5; %d of an empty file, want 1; told the client: %d of %d", passed, without, c.passed.Load(), c.opens.Load())
	}
	f.Close()
	again.Close()
	m.await(t, "the end of all descriptors", func() bool { return c.descriptors.Load() == 0 })
}

// TestCopyInstead has the reasons for the copy path.
func TestCopyInstead(t *testing.T) {
	for _, tc := range []struct {
		why    reason
		change func(c *fakeClient, cfg *Config)
	}{
		{switchedOff, func(_ *fakeClient, cfg *Config) { cfg.Passthrough = PassthroughOff }},
		{notAlone, func(c *fakeClient, _ *Config) { c.base = 512 }},
		{notAlone, func(c *fakeClient, _ *Config) { c.tail = 1 }},
		{notCached, func(c *fakeClient, _ *Config) { c.setLocal(false) }},
		{noDescriptor, func(c *fakeClient, _ *Config) { c.closed = true }},
	} {
		c := localFake(t)
		c.put("/x", 100_000, "v1")
		m := start(t, c, "", func(cfg *Config) { tc.change(c, cfg) })
		b, err := os.ReadFile(m.dir + "/x")
		if err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
			t.Errorf("%s: %d bytes, %v", tc.why, len(b), err)
		}
		m.passes(t)
		if n := m.opened(t, "copy", tc.why); n != 1 || c.passed.Load() != 0 {
			t.Errorf("%s: %d opens for this reason, %d by passthrough", tc.why, n, c.passed.Load())
		}
	}
}

// TestOpensInBothModes has programs open, read and close while local files
// come and go: no open fails, no byte is wrong.
func TestOpensInBothModes(t *testing.T) {
	const length, many = 70_000, 8
	c := localFake(t)
	var wants [many][]byte
	name := func(i int) string { return fmt.Sprint("/x", i) }
	for i := range many {
		c.put(name(i), length, "v1")
		wants[i] = c.bytesOf(name(i))
	}
	m := start(t, c, "")
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			var held []*os.File
			for range 300 {
				c.setLocal(rnd.IntN(2) == 0)
				i := rnd.IntN(many)
				f, err := os.Open(m.dir + name(i))
				if err != nil {
					t.Errorf("open: %v", err)
					break
				}
				held = append(held, f)
				p, off := make([]byte, 1+rnd.IntN(9000)), rnd.Int64N(length-9000)
				if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, wants[i][off:][:len(p)]) {
					t.Errorf("read: %v", err)
				}
				if len(held) > rnd.IntN(4) { // mostly nobody has a file open then
					for _, f := range held {
						f.Close()
					}
					held = held[:0]
				}
			}
			for _, f := range held {
				f.Close()
			}
		})
	}
	wg.Wait()
	m.passes(t)
	passed, before, copied := m.opened(t, "passthrough", passedOn), m.opened(t, "copy", openBefore), m.opened(t, "copy", notCached)
	t.Log(passed, "by passthrough,", before, "while open for copying,", copied, "not cached")
	if passed == 0 || before+copied == 0 {
		t.Error("one of the modes was not tried")
	}
	m.await(t, "the end of all descriptors", func() bool { return c.descriptors.Load() == 0 })
}

// TestBecomesCompleteWhileOpen has a program that read a file when it was not
// cached, and keeps it open: it goes on, and those that open the file later
// get passthrough.
func TestBecomesCompleteWhileOpen(t *testing.T) {
	const length = 3 << 20
	c := localFake(t)
	c.setLocal(false)
	paths := []string{"/x", "/d/e/x"}
	olds := make(map[string]*os.File)
	for _, p := range paths {
		c.put(p, length, "v1")
	}
	m := start(t, c, "")
	for _, p := range paths {
		olds[p] = open(t, m.dir+p)
		if got := readAll(t, olds[p], 1<<20); !bytes.Equal(got, c.bytesOf(p)[:1<<20]) {
			t.Fatal("other bytes")
		}
	}
	c.setLocal(true)
	for i, p := range paths {
		want := c.bytesOf(p)
		m.await(t, "an open by passthrough", func() bool {
			f := open(t, m.dir+p)
			defer f.Close()
			if got := readAll(t, f, length); !bytes.Equal(got, want) {
				t.Fatal("other bytes")
			}
			m.passes(t)
			return m.opened(t, "passthrough", passedOn) > i
		})
		old := olds[p]
		if got := readAll(t, old, length); !bytes.Equal(got, want) {
			t.Error("other bytes by the old descriptor")
		}
		value := make([]byte, 100)
		if n, err := unix.Fgetxattr(int(old.Fd()), XattrCachedBytes, value); err != nil {
			t.Errorf("an attribute of the old descriptor: %q, %v", value[:max(n, 0)], err)
		}
		info, err := old.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if now, err := os.Stat(m.dir + p); err != nil || !os.SameFile(info, now) {
			t.Errorf("the inode number is another: %v", err)
		}
	}
}

// TestReplacedWhilePassedThrough replaces an object that programs have open:
// each reads the version that it opened.
func TestReplacedWhilePassedThrough(t *testing.T) {
	c := localFake(t)
	c.valid = 20 * time.Millisecond
	c.put("/x", 2<<20, "v1")
	m := start(t, c, "")
	var files []*os.File
	var wants [][]byte
	for i := range 4 {
		length := int64(2<<20 + i*1000)
		c.put("/x", length, fmt.Sprint("v", i))
		m.await(t, "the new version", func() bool {
			info, err := os.Stat(m.dir + "/x")
			return err == nil && info.Size() == length
		})
		files, wants = append(files, open(t, m.dir+"/x")), append(wants, c.bytesOf("/x"))
	}
	m.passes(t)
	for i, f := range files {
		if got := readAll(t, f, len(wants[i])); !bytes.Equal(got, wants[i]) {
			t.Errorf("other bytes of version %d", i)
		}
	}
	if n := c.reads.Load(); n != 0 {
		t.Errorf("%d reads reached the mount", n)
	}
}

// TestBackingFileIsEvicted takes away the name of a backing file while it is
// open and mapped.
func TestBackingFileIsEvicted(t *testing.T) {
	const length = 3 << 20
	c := localFake(t)
	c.put("/x", length, "v1")
	want := c.bytesOf("/x")
	m := start(t, c, "")
	f := open(t, m.dir+"/x")
	hold := helperCmd(t, "mapped", m.dir+"/x")
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ready, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil { // it has mapped the file, and closed it
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(c.local, c.entries["/x"].FileID.String())); err != nil {
		t.Fatal(err)
	}
	c.setLocal(false)
	if got := readAll(t, f, length); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	m.passes(t)
	// Who opens it beside joins the backing file that is there.
	if got := readAll(t, open(t, m.dir+"/x"), length); !bytes.Equal(got, want) || c.reads.Load() != 0 {
		t.Errorf("other bytes, or %d reads that reached the mount", c.reads.Load())
	}
	f.Close()
	in.Close()
	if _, err := out.ReadFrom(ready); err != nil {
		t.Fatal(err)
	}
	if err := hold.Wait(); err != nil || out.String() != fmt.Sprintf("%x", sha256.Sum256(want)) {
		t.Errorf("through the mapping: %s, %v", &out, err)
	}
}

// TestCutOffWhilePassedThrough ends a mount that programs hold.
func TestCutOffWhilePassedThrough(t *testing.T) {
	c := localFake(t)
	c.put("/x", 1<<20, "v1")
	m := start(t, c, "", func(c *Config) { c.UnmountTimeout = 0 })
	f := open(t, m.dir+"/x")
	readAll(t, f, 4096)
	m.stop()
	if err := m.wait(t); err != nil || isMounted(t, m.dir) {
		t.Error(err)
	}
	if n := c.descriptors.Load(); n != 0 {
		t.Errorf("%d descriptors are left open", n)
	}
}

// fakeBacker is a kernel that takes backing files, or does not.
type fakeBacker struct {
	errno      syscall.Errno
	registered map[int32]bool
	last       int32
	tried      int
	notified   []string
}

func (k *fakeBacker) RegisterBackingFd(*gofuse.BackingMap) (int32, syscall.Errno) {
	if k.tried++; k.errno != 0 {
		return 0, k.errno
	}
	k.last++
	k.registered[k.last] = true
	return k.last, 0
}

func (k *fakeBacker) UnregisterBackingFd(id int32) syscall.Errno {
	if !k.registered[id] {
		return unix.ENOENT
	}
	delete(k.registered, id)
	return 0
}

func (k *fakeBacker) InodeNotify(uint64, int64, int64) gofuse.Status { return gofuse.OK }

func (k *fakeBacker) EntryNotify(parent uint64, name string) gofuse.Status {
	k.notified = append(k.notified, fmt.Sprint(parent, name))
	return gofuse.OK
}

func (f *fsys) withBacker(k *fakeBacker) {
	k.registered = map[int32]bool{}
	f.pass.kernel = k
	f.pass.off.Store(nil)
}

func (f *fsys) close(o gofuse.OpenOut) {
	f.Release(nil, &gofuse.ReleaseIn{Fh: o.Fh})
}

// TestOneBackingForANode registers it at the first open and takes it back
// after the last release, and never keeps the kernel's pages beside it.
func TestOneBackingForANode(t *testing.T) {
	c := localFake(t)
	c.put("/x", 1<<20, "v1")
	f := newTestFsys(t, c)
	k := &fakeBacker{}
	f.withBacker(k)
	x, _ := f.lookup(t, rootID, "x")
	var list []gofuse.OpenOut
	for i := range 5 {
		if i == 3 {
			c.setLocal(false) // it is evicted meanwhile
		}
		o, st := f.open(x.NodeId, os.O_RDONLY)
		if st != gofuse.OK || o.OpenFlags != gofuse.FOPEN_PASSTHROUGH|gofuse.FOPEN_NOFLUSH || o.BackingID != 1 {
			t.Fatalf("open %d: %v, flags %#x, backing file %d", i, st, o.OpenFlags, o.BackingID)
		}
		list = append(list, o)
	}
	for i, o := range list {
		if len(k.registered) != 1 || c.descriptors.Load() != 1 {
			t.Fatalf("before release %d: %d backing files, %d descriptors", i, len(k.registered), c.descriptors.Load())
		}
		f.close(o)
	}
	if len(k.registered) != 0 || c.descriptors.Load() != 0 || k.tried != 1 {
		t.Errorf("%d backing files and %d descriptors are left; %d registered", len(k.registered), c.descriptors.Load(), k.tried)
	}
	// Nobody has it open: it may change its mode.
	o, st := f.open(x.NodeId, os.O_RDONLY)
	if st != gofuse.OK || o.OpenFlags != gofuse.FOPEN_KEEP_CACHE|gofuse.FOPEN_NOFLUSH || o.BackingID != 0 {
		t.Errorf("%v, flags %#x, backing file %d", st, o.OpenFlags, o.BackingID)
	}
	c.setLocal(true)
	beside, _ := f.open(x.NodeId, os.O_RDONLY)
	if beside.BackingID != 0 {
		t.Error("two modes at once")
	}
	f.close(o)
	f.close(beside)
	if o, _ = f.open(x.NodeId, os.O_RDONLY); o.BackingID != 2 {
		t.Error("no backing file")
	}
	f.close(o)
}

// TestFirstOpensTogether has a second open come and decide while the first one
// asks for its descriptor.
func TestFirstOpensTogether(t *testing.T) {
	for _, faster := range []bool{false, true} { // whether it gets passthrough
		c := localFake(t)
		c.put("/x", 1<<20, "v1")
		f := newTestFsys(t, c)
		k := &fakeBacker{}
		f.withBacker(k)
		x, _ := f.lookup(t, rootID, "x")
		var second gofuse.OpenOut
		c.meanwhile = func() {
			c.meanwhile = nil
			c.setLocal(faster)
			second, _ = f.open(x.NodeId, os.O_RDONLY)
			c.setLocal(true)
		}
		first, st := f.open(x.NodeId, os.O_RDONLY)
		if st != gofuse.OK || first.BackingID != second.BackingID || (first.BackingID != 0) != faster || first.OpenFlags != second.OpenFlags {
			t.Errorf("%v: %+v, then %+v", st, second, first)
		}
		f.close(second)
		if want := map[bool]int{true: 1}[faster]; len(k.registered) != want || c.descriptors.Load() != int64(want) {
			t.Errorf("%d backing files, %d descriptors, want %d", len(k.registered), c.descriptors.Load(), want)
		}
		f.close(first)
		if len(k.registered) != 0 || c.descriptors.Load() != 0 {
			t.Errorf("%d backing files, %d descriptors are left", len(k.registered), c.descriptors.Load())
		}
	}
}

// TestKernelThatRefuses says why once, and asks no more.
func TestKernelThatRefuses(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		unix.EPERM: "CAP_SYS_ADMIN", unix.EOPNOTSUPP: "this kernel has no FUSE passthrough", unix.ELOOP: "stacked",
	} {
		c := localFake(t)
		c.put("/x", 1<<20, "v1")
		f := newTestFsys(t, c)
		var log bytes.Buffer
		f.pass.log = slog.New(slog.NewTextHandler(&log, nil))
		k := &fakeBacker{errno: errno}
		f.withBacker(k)
		x, _ := f.lookup(t, rootID, "x")
		for range 3 {
			o, st := f.open(x.NodeId, os.O_RDONLY)
			if st != gofuse.OK || o.BackingID != 0 || o.OpenFlags&gofuse.FOPEN_PASSTHROUGH != 0 {
				t.Fatal(st, o)
			}
			f.close(o)
		}
		if k.tried != 1 || c.descriptors.Load() != 0 {
			t.Errorf("%v: tried %d times, %d descriptors are left", errno, k.tried, c.descriptors.Load())
		}
		if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, want) {
			t.Errorf("%v: the log says %q", errno, s)
		}
	}
}

// TestSilentWorker delays one open in a while, not each.
func TestSilentWorker(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newFake(time.Hour)
		c.local, c.silent = dir, true
		c.put("/x", 1<<20, "v1")
		f := newTestFsys(t, c)
		k := &fakeBacker{}
		f.withBacker(k)
		x, _ := f.lookup(t, rootID, "x")
		began := time.Now()
		for range 5 {
			o, st := f.open(x.NodeId, os.O_RDONLY)
			if st != gofuse.OK || o.BackingID != 0 {
				t.Fatal(st, o)
			}
			f.close(o)
		}
		if n, took := c.asked.Load(), time.Since(began); n != 1 || took != silence {
			t.Errorf("asked %d times, opened after %v", n, took)
		}
		c.silent = false
		time.Sleep(descriptorPause)
		o, st := f.open(x.NodeId, os.O_RDONLY)
		if st != gofuse.OK || o.BackingID == 0 {
			t.Error("no passthrough when the worker answers again: ", st, o)
		}
		f.close(o)
	})
}

// TestReadsBesideSilentWorker delays one read in a while, not the first of
// each file: others may serve them.
func TestReadsBesideSilentWorker(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newFake(time.Hour)
		c.local, c.silent = dir, true
		f := newTestFsys(t, c)
		off := switchedOff
		f.pass.off.Store(&off)
		names := []string{"x0", "x1", "x2", "x3", "x4"}
		for _, name := range names { // a listing ahead is to find all of them
			c.put("/"+name, 1<<20, "v1")
		}
		began := time.Now()
		buf := make([]byte, 4096)
		for _, name := range names {
			x, _ := f.lookup(t, rootID, name)
			o, _ := f.open(x.NodeId, os.O_RDONLY)
			res, st := f.Read(nil, &gofuse.ReadIn{Fh: o.Fh, Size: 4096}, buf)
			if st != gofuse.OK || res.Size() != 4096 {
				t.Fatal(st)
			}
			res.Done()
			f.close(o)
		}
		if n, took := c.asked.Load(), time.Since(began); n != 1 || took != silence {
			t.Errorf("asked %d times, read after %v", n, took)
		}
	})
}

// weakBacker registers without the right to.
type weakBacker struct{ backer }

func (k weakBacker) RegisterBackingFd(m *gofuse.BackingMap) (id int32, errno syscall.Errno) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and the thread ends with its goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&header, &caps[0]); err != nil {
			errno = unix.EBADF
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&header, &caps[0]); err != nil {
			errno = unix.EBADF
			return
		}
		id, errno = k.backer.RegisterBackingFd(m)
	})
	wg.Wait()
	return id, errno
}

// TestWithoutTheRightToPassThrough has the kernel refuse: reads are copied.
func TestWithoutTheRightToPassThrough(t *testing.T) {
	c := localFake(t)
	c.put("/x", 1<<20, "v1")
	m := startMount(t, c, "", func(m *Mount) {
		m.backer = func(s *gofuse.Server) backer { return weakBacker{s} }
	})
	for range 2 {
		if b, err := os.ReadFile(m.dir + "/x"); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
	if n := m.opened(t, "copy", notOffered); n != 2 || c.passed.Load() != 0 {
		t.Errorf("%d opens for this reason, %d by passthrough", n, c.passed.Load())
	}
}

// TestKernelThatRefusesLater leaves what it took before as it is.
func TestKernelThatRefusesLater(t *testing.T) {
	c := localFake(t)
	c.put("/x", 1<<20, "v1")
	c.put("/y", 1<<20, "v1")
	f := newTestFsys(t, c)
	k := &fakeBacker{}
	f.withBacker(k)
	x, _ := f.lookup(t, rootID, "x")
	y, _ := f.lookup(t, rootID, "y")
	first, _ := f.open(x.NodeId, os.O_RDONLY)
	k.errno = unix.ELOOP
	refused, _ := f.open(y.NodeId, os.O_RDONLY)
	second, _ := f.open(x.NodeId, os.O_RDONLY)
	if first.BackingID == 0 || refused.BackingID != 0 || second.BackingID != first.BackingID || second.OpenFlags != first.OpenFlags {
		t.Error(first, refused, second)
	}
	for _, o := range []gofuse.OpenOut{first, refused, second} {
		f.close(o)
	}
	if o, _ := f.open(x.NodeId, os.O_RDONLY); o.BackingID != 0 || len(k.registered) != 0 || c.descriptors.Load() != 0 {
		t.Error(o, len(k.registered), c.descriptors.Load())
	}
}

// TestLateOpensOfAReplacedNode are served in the node's mode.
func TestLateOpensOfAReplacedNode(t *testing.T) {
	c := localFake(t)
	c.put("/d/x", 1<<20, "v1")
	f := newTestFsys(t, c)
	k := &fakeBacker{}
	f.withBacker(k)
	c.setLocal(false)
	d, _ := f.lookup(t, rootID, "d")
	x, _ := f.lookup(t, d.NodeId, "x")
	first, _ := f.open(x.NodeId, os.O_RDONLY)
	c.setLocal(true)
	n := f.table.get(x.NodeId)
	n.opening.asked = time.Time{} // the time passes
	second, _ := f.open(x.NodeId, os.O_RDONLY)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	select {
	case n := <-f.pass.notices:
		f.pass.replace(n)
	default:
		t.Fatal("no notice")
	}
	f.pass.run(ctx)
	if len(k.notified) != 1 || k.notified[0] != fmt.Sprint(d.NodeId, "x") {
		t.Errorf("the kernel was told of %q", k.notified)
	}
	late, st := f.open(x.NodeId, os.O_RDONLY)
	if st != gofuse.OK || first.BackingID != 0 || second.BackingID != 0 || late.BackingID != 0 {
		t.Fatal("not in the node's mode: ", st, first, second, late)
	}
	fresh, _ := f.lookup(t, d.NodeId, "x")
	if fresh.NodeId == x.NodeId || fresh.Ino != x.Ino {
		t.Fatal("the name stands for the same node, or for another inode number")
	}
	passed, st := f.open(fresh.NodeId, os.O_RDONLY)
	if st != gofuse.OK || passed.BackingID == 0 {
		t.Fatal("no passthrough: ", st)
	}
	// The answer about the name is no longer fresh: the old node is still of
	// the path's version.
	f.entries.drop("/d/x")
	again, st := f.open(x.NodeId, os.O_RDONLY)
	if st != gofuse.OK || again.BackingID != 0 {
		t.Error(st, again)
	}
	// With another version it is not.
	c.put("/d/x", 2<<20, "v2")
	f.entries.drop("/d/x")
	if _, st := f.open(x.NodeId, os.O_RDONLY); st != gofuse.Status(unix.ESTALE) {
		t.Error(st)
	}
	for _, o := range []gofuse.OpenOut{first, second, late, passed, again} {
		f.close(o)
	}
	if len(k.registered) != 0 || c.descriptors.Load() != 0 {
		t.Errorf("%d backing files and %d descriptors are left", len(k.registered), c.descriptors.Load())
	}
}

// TestOpenFillsSmallFiles: an OPEN has a file that is not cached fetched for its
// local file; questions for other causes than an OPEN do not.
func TestOpenFillsSmallFiles(t *testing.T) {
	c := localFake(t)
	c.put("/x", 1000, "v1")
	f := newTestFsys(t, c)
	k := &fakeBacker{}
	f.withBacker(k)
	c.setLocal(false)
	x, _ := f.lookup(t, rootID, "x")
	first, _ := f.open(x.NodeId, os.O_RDONLY)
	if c.asked.Load() != 1 || c.filled.Load() != 1 {
		t.Fatalf("%d questions, %d of them to fetch it", c.asked.Load(), c.filled.Load())
	}
	n := f.table.get(x.NodeId)
	s := f.table.shardOf(n)
	s.mu.Lock()
	n.opening.asked = time.Time{} // long ago
	s.mu.Unlock()
	second, _ := f.open(x.NodeId, os.O_RDONLY)
	if c.asked.Load() != 2 || c.filled.Load() != 1 {
		t.Errorf("%d questions, %d of them to fetch it", c.asked.Load(), c.filled.Load())
	}
	f.close(first)
	f.close(second)
}
