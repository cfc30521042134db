package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/client"
	"millrace/internal/testenv"
)

// inodes returns the inode numbers of everything below a mount.
func inodes(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[strings.TrimPrefix(p, dir)] = info.Sys().(*syscall.Stat_t).Ino //nolint:forcetypeassert // Linux
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestInodeNumbersStayOverRemounts(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 50)
	first := start(t, c, "")
	before := inodes(t, first.dir)
	first.stop()
	if err := first.wait(t); err != nil {
		t.Fatal(err)
	}
	// Another process, in another order, with other versions.
	other := newFake(time.Hour)
	for i := 49; i >= 0; i-- {
		other.put(fmt.Sprintf("/many/f%06d", i), 5, "v2")
	}
	sampleTree(other, 50)
	second := start(t, other, "")
	after := inodes(t, second.dir)
	if len(before) != len(after) {
		t.Fatalf("%d names, then %d", len(before), len(after))
	}
	for name, ino := range before {
		if after[name] != ino {
			t.Errorf("%q had inode %d, has %d", name, ino, after[name])
		}
	}
}

// dropKernelCaches makes the kernel forget the names that nobody uses.
func dropKernelCaches(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0o600); err != nil {
		t.Skip("SKIPPED, NOT TESTED: the kernel's caches cannot be dropped: ", err)
	}
}

// TestForgottenNames has the kernel forget thousands of names: the nodes go
// back to what is in use, and the names are found again without a master.
func TestForgottenNames(t *testing.T) {
	const many = 3000
	c := newFake(time.Hour)
	sampleTree(c, many)
	m := start(t, c, "")
	read := func() {
		for i := range many {
			p := fmt.Sprintf("/many/f%06d", i)
			if b, err := os.ReadFile(m.dir + p); err != nil || len(b) != i%1000 {
				t.Fatal(p, len(b), err)
			}
		}
	}
	read()
	if n := m.gauge(t, "millrace_fuse_nodes"); n < 2 { // how many is the kernel's business
		t.Fatalf("%v nodes after %d files were read", n, many)
	}
	dropKernelCaches(t)
	const floor = 10 // the root, and what the kernel may keep of the way there
	m.await(t, fmt.Sprintf("the kernel's FORGETs of %d names", many), func() bool {
		return m.gauge(t, "millrace_fuse_nodes") <= floor
	})
	asked := c.stats.Load()
	read()
	if _, err := os.Stat(filepath.Join(m.dir, "many", "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if n := c.stats.Load() - asked; n > 1 { // the one that does not exist, if it was not listed
		t.Errorf("%d questions to a master about names that it described a moment ago", n)
	}
}

// TestNamesThatDoNotExist asks a master once within the freshness of its
// answer, and not at all when a listing was enough.
func TestNamesThatDoNotExist(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 10)
	m := start(t, c, "")
	look := func(name string) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(m.dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(name, err)
		}
	}
	look("a/none")
	asked := c.stats.Load()
	look("a/none")
	dropKernelCaches(t)
	look("a/none")
	if n := c.stats.Load() - asked; n != 0 {
		t.Errorf("a master was asked %d times again", n)
	}
	if _, err := os.ReadDir(filepath.Join(m.dir, "many")); err != nil {
		t.Fatal(err)
	}
	asked = c.stats.Load()
	look("many/none")
	look("many/__init__.py")
	if n := c.stats.Load() - asked; n != 0 {
		t.Errorf("a master was asked %d times about names that the listing lacks", n)
	}
}

// TestVersionChangesWhileOpen replaces an object while a program has it open,
// within and behind the freshness of what the mount knows.
func TestVersionChangesWhileOpen(t *testing.T) {
	c := newFake(20 * time.Millisecond)
	c.put("/x", 3<<20, "v1")
	m := start(t, c, "")
	name := filepath.Join(m.dir, "x")
	before := c.bytesOf("/x")
	old, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	p := make([]byte, 100)
	if _, err := old.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	oldID := c.entries["/x"].FileID
	c.put("/x", 2<<20, "v2")
	m.await(t, "the new version", func() bool {
		info, err := os.Stat(name)
		return err == nil && info.Size() == 2<<20
	})
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
		t.Errorf("a new open reads %d bytes of the new version, %v", len(b), err)
	}
	if _, err := old.ReadAt(p, 2<<20+5000); err != nil || !bytes.Equal(p, before[2<<20+5000:][:100]) {
		t.Errorf("the old descriptor must go on with the old bytes: %v", err)
	}
	if info, err := old.Stat(); err != nil || info.Size() != 3<<20 {
		t.Errorf("the old descriptor's size: %v %v", info, err)
	}

	// The old version is gone from the cache too: ESTALE, never other bytes.
	c.lose(oldID)
	if err := unix.Fadvise(int(old.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if n, err := old.ReadAt(make([]byte, 4096), 1<<20); !errors.Is(err, unix.ESTALE) {
		t.Errorf("a page that is gone: %d bytes, %v", n, err)
	}

	// The object is removed: the name goes, the descriptor of v2 goes on.
	last, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	want := c.bytesOf("/x")
	c.remove("/x")
	m.await(t, "the removal", func() bool {
		_, err := os.Stat(name)
		return errors.Is(err, fs.ErrNotExist)
	})
	if _, err := last.ReadAt(p, 1<<20); err != nil || !bytes.Equal(p, want[1<<20:][:100]) {
		t.Errorf("the descriptor of a removed object: %v", err)
	}
}

// TestStaleReadIsRetried has a mount that trusts what it knows for an hour:
// the first read tells that the version is gone, and the next open sees the
// new one, by the kernel's own second look.
func TestStaleReadIsRetried(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 100_000, "v1")
	m := start(t, c, "")
	name := filepath.Join(m.dir, "x")
	if _, err := os.Stat(name); err != nil {
		t.Fatal(err)
	}
	c.lose(c.entries["/x"].FileID)
	c.put("/x", 120_000, "v2")
	if _, err := os.ReadFile(name); !errors.Is(err, unix.ESTALE) {
		t.Fatalf("the version that the mount knows is gone, and the read says %v", err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
		t.Errorf("the next open reads %d bytes, %v", len(b), err)
	}
}

// TestKilledReaderIsInterrupted kills a program that waits for bytes.
func TestKilledReaderIsInterrupted(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 5, "v1")
	c.stall = make(chan struct{})
	m := start(t, c, "")
	cat := exec.CommandContext(t.Context(), "cat", filepath.Join(m.dir, "x"))
	if err := cat.Start(); err != nil {
		t.Skip("SKIPPED, NOT TESTED: no cat: ", err)
	}
	m.await(t, "its open", func() bool { return c.opens.Load() > 0 })
	if err := cat.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cat.Wait() }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it read what does not come")
		}
	case <-time.After(patience):
		t.Error("a program that waits for bytes cannot be killed")
	}
	// The kernel does not interrupt what it reads ahead; that ends by itself.
	close(c.stall)
	m.await(t, "the end of its descriptor", func() bool { return m.gauge(t, "millrace_fuse_open_files") == 0 })
}

func TestManyMountsOfOneCluster(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 20)
	var all []*mounted
	for range 6 {
		all = append(all, start(t, c, ""))
	}
	check := func(m *mounted) {
		t.Helper()
		for _, p := range []string{"/top.txt", "/many/f000007", "/a/b/c/deep"} {
			if b, err := os.ReadFile(m.dir + p); err != nil || !bytes.Equal(b, c.bytesOf(p)) {
				t.Errorf("%s%s: %d bytes, %v", m.dir, p, len(b), err)
			}
		}
		if p, ok := Lookup(filepath.Join(m.dir, "many")); !ok || p.MountPoint != m.dir {
			t.Errorf("%s is told to be below %s", m.dir, p.MountPoint)
		}
	}
	for _, m := range all {
		check(m)
	}
	for _, m := range all[:3] {
		m.stop()
		if err := m.wait(t); err != nil {
			t.Error(err)
		}
	}
	for _, m := range all[3:] {
		check(m)
	}
}

// TestOtherUsers checks who may see what, with a program of another user.
func TestOtherUsers(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	const nobody = 65534
	c := newFake(time.Hour)
	c.put("/d/x", 5, "v1")
	cat := func(m *mounted) error {
		cmd := exec.CommandContext(t.Context(), "cat", filepath.Join(m.dir, "d/x"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	for _, tc := range []struct {
		options string
		allowed bool
	}{
		{"", false},
		{"allow_other", true},
		{"allow_other,ro", true},
		{"allow_other,umask=0007", false},
		{"allow_other,umask=0077,uid=65534", true},
		{"allow_other,umask=0027,gid=65534", true},
		{"allow_other,umask=0077,gid=65534", false},
	} {
		dir, err := os.MkdirTemp("", "millrace-fuse") //nolint:usetesting // the directories of t.TempDir may be closed to others
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m := start(t, c, dir, func(cfg *Config) {
			if *cfg, err = ParseOptions(*cfg, tc.options); err != nil {
				t.Fatal(err)
			}
		})
		if err := cat(m); (err == nil) != tc.allowed {
			t.Errorf("-o %s: another user reads: %v, want it %v", tc.options, err, tc.allowed)
		}
		m.stop()
		if err := m.wait(t); err != nil {
			t.Error(err)
		}
	}
}

// crowd is a directory of many files that are made as they are asked for.
type crowd struct {
	*fakeClient
	many int
}

func (c *crowd) List(_ context.Context, p string, _ client.ListOptions) iter.Seq2[*client.Entry, error] {
	return func(yield func(*client.Entry, error) bool) {
		until := time.Now().Add(time.Hour)
		for i := range c.many {
			e := &client.Entry{Path: join(p, fmt.Sprintf("f%07d", i)), Size: 1, MTime: born, Tag: "1", BlockSize: block.DefaultBlockSize, ValidUntil: until}
			e.FileID[0], e.FileID[1], e.FileID[2] = byte(i), byte(i>>8), byte(i>>16)
			e.Ticket = &block.Ticket{Path: e.Path[1:], Tag: e.Tag, Length: 1, BlockSize: e.BlockSize, FileID: e.FileID}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// TestHugeDirectory lists a directory in bounded memory: 60,000 files, or as
// many as MILLRACE_TEST_DIRECTORY says (1000000 is what is promised).
func TestHugeDirectory(t *testing.T) {
	many := 60_000
	if s := os.Getenv("MILLRACE_TEST_DIRECTORY"); s != "" {
		var err error
		if many, err = strconv.Atoi(s); err != nil {
			t.Fatal("MILLRACE_TEST_DIRECTORY: ", err)
		}
	}
	c := &crowd{newFake(time.Hour), many}
	c.put("/d/x", 1, "v1")
	f := newTestFsys(t, c)
	f.listedNodes = 20_000
	d, st := f.lookup(t, rootID, "d")
	if st != gofuse.OK {
		t.Fatal(st)
	}
	var od gofuse.OpenOut
	if st := f.OpenDir(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: d.NodeId}}, &od); st != gofuse.OK {
		t.Fatal(st)
	}
	stream, _ := f.dirs.get(od.Fh)
	buf := make([]byte, 128<<10)
	seen, nodes := 0, 0
	var top uint64
	var mem runtime.MemStats
	for off := uint64(0); ; {
		list := gofuse.NewDirEntryList(buf, off)
		if st := f.ReadDirPlus(nil, &gofuse.ReadIn{Fh: od.Fh, Offset: off}, list); st != gofuse.OK {
			t.Fatal(st)
		}
		entries, outs, err := gofuse.ParseDirLookupEntries(list.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for i, e := range entries {
			off = e.Off
			if strings.HasPrefix(e.Name, "f") {
				if want := fmt.Sprintf("f%07d", seen); e.Name != want {
					t.Fatalf("entry %d is %s", seen, e.Name)
				}
				seen++
			}
			if outs[i].NodeId != 0 {
				nodes++
			}
		}
		if n := len(stream.window); n > 2*dirWindow+dirChunk {
			t.Fatalf("the open directory keeps %d entries", n)
		}
		if seen%10 == 0 {
			runtime.ReadMemStats(&mem)
			top = max(top, mem.HeapAlloc)
		}
	}
	t.Logf("%d files, at most %d MiB of heap", seen, top>>20)
	if seen != many {
		t.Errorf("%d of %d files", seen, many)
	}
	if want := min(many, f.listedNodes-2); nodes != want { // beside the root and the directory
		t.Errorf("%d nodes were given out, want %d", nodes, want)
	}
	if n, limit := f.entries.bytes(), int(DefaultConfig().EntryCache); n > limit {
		t.Errorf("%d bytes of entries are kept, the bound is %d", n, limit)
	}
	// What the listing gave no node for is looked up when it is used.
	c.put(fmt.Sprintf("/d/f%07d", many-1), 1, "1")
	if out, st := f.lookup(t, d.NodeId, fmt.Sprintf("f%07d", many-1)); st != gofuse.OK || out.NodeId == 0 {
		t.Error(st, out.NodeId)
	}
	f.ReleaseDir(&gofuse.ReleaseIn{Fh: od.Fh})
}

// TestUnsettledVersionIsNotKept opens a version that may still change under
// the same tag: the kernel reads it anew at each open, and once more when it
// is settled; from then on its pages stay.
func TestUnsettledVersionIsNotKept(t *testing.T) {
	c := newFake(0)
	c.put("/x", 1<<20, "v1")
	m := start(t, c, "", copyPath)
	settle := func(yes bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		e := *c.entries["/x"]
		tk := *e.Ticket
		tk.Unsettled = !yes
		e.Ticket = &tk
		c.entries["/x"] = &e
	}
	for i, step := range []struct{ settled, reads bool }{{false, true}, {false, true}, {true, true}, {true, false}} {
		settle(step.settled)
		before := c.reads.Load()
		if b, err := os.ReadFile(m.dir + "/x"); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if got := c.reads.Load() > before; got != step.reads {
			t.Errorf("open %d: read through the mount: %v, want %v", i, got, step.reads)
		}
	}
}
