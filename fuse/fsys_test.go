package fuse

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/client"
	"millrace/internal/errs"
)

// newTestFsys returns a file system that is not mounted.
func newTestFsys(t *testing.T, c Client) *fsys {
	t.Helper()
	cfg := DefaultConfig()
	l, err := cfg.look(born)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req := newRequests(ctx)
	req.workers.Go(req.run)
	t.Cleanup(func() { cancel(); req.workers.Wait() })
	return newFsys(&cfg, l, &client.Entry{Path: "/", Dir: true}, c, req, newMetrics(), slog.New(slog.DiscardHandler))
}

func (f *fsys) lookup(t *testing.T, parent uint64, name string) (gofuse.EntryOut, gofuse.Status) {
	t.Helper()
	var out gofuse.EntryOut
	st := f.Lookup(nil, &gofuse.InHeader{NodeId: parent}, name, &out)
	return out, st
}

func (f *fsys) open(node uint64, flags int) (gofuse.OpenOut, gofuse.Status) {
	var out gofuse.OpenOut
	st := f.Open(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: node}, Flags: uint32(flags)}, &out)
	return out, st
}

func TestLookupWithinFreshnessAsksNoMaster(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 3)
	f := newTestFsys(t, c)
	out, st := f.lookup(t, rootID, "top.txt")
	if st != gofuse.OK || out.Size != 11 || out.Mode != typeFile|0o444 || out.EntryTimeout() < 59*time.Minute {
		t.Fatalf("%v %+v", st, out)
	}
	asked := c.stats.Load()
	if again, st := f.lookup(t, rootID, "top.txt"); st != gofuse.OK || again.NodeId != out.NodeId {
		t.Error(st, again.NodeId)
	}
	if _, st := f.open(out.NodeId, os.O_RDONLY); st != gofuse.OK {
		t.Error(st)
	}
	if c.stats.Load() != asked {
		t.Error("a master was asked")
	}
}

func TestListingPrimesOpens(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 100)
	f := newTestFsys(t, c)
	dir, _ := f.lookup(t, rootID, "many")
	var od gofuse.OpenOut
	if st := f.OpenDir(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: dir.NodeId}}, &od); st != gofuse.OK {
		t.Fatal(st)
	}
	asked := c.stats.Load()
	names := 0
	for off := uint64(0); ; {
		list := gofuse.NewDirEntryList(make([]byte, 4096), off)
		st := f.ReadDirPlus(nil, &gofuse.ReadIn{Fh: od.Fh, Offset: off}, list)
		if st != gofuse.OK {
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
			if e.Name == "." || e.Name == ".." {
				if outs[i].NodeId != 0 {
					t.Error("a dot entry refers to a node")
				}
				continue
			}
			names++
			if outs[i].Ino != inode("/many/"+e.Name) || e.Ino != outs[i].Ino {
				t.Error("inode numbers", e.Ino, outs[i].Ino)
			}
			if _, st := f.open(outs[i].NodeId, os.O_RDONLY); st != gofuse.OK {
				t.Error(e.Name, st)
			}
			f.Forget(outs[i].NodeId, 1)
		}
	}
	f.ReleaseDir(&gofuse.ReleaseIn{Fh: od.Fh})
	if names != 100 || c.stats.Load() != asked || f.table.len() != 2 {
		t.Error(names, c.stats.Load()-asked, f.table.len())
	}
}

func TestOpenOfSupersededNode(t *testing.T) {
	c := newFake(0) // nothing may be kept
	c.put("/x", 5, "v1")
	f := newTestFsys(t, c)
	old, _ := f.lookup(t, rootID, "x")
	if _, st := f.open(old.NodeId, os.O_RDONLY); st != gofuse.OK {
		t.Fatal(st)
	}
	c.put("/x", 6, "v2")
	now, _ := f.lookup(t, rootID, "x")
	if now.NodeId == old.NodeId || now.Ino != old.Ino || now.Size != 6 {
		t.Fatalf("%+v %+v", old, now)
	}
	if _, st := f.open(old.NodeId, os.O_RDONLY); st != gofuse.Status(syscall.ESTALE) {
		t.Error(st)
	}
	if _, st := f.open(now.NodeId, os.O_RDONLY); st != gofuse.OK {
		t.Error(st)
	}
	var attr gofuse.AttrOut
	if f.GetAttr(nil, &gofuse.GetAttrIn{InHeader: gofuse.InHeader{NodeId: old.NodeId}}, &attr); attr.Size != 5 {
		t.Error("the size of a node changed")
	}
}

func TestOpenLooksAgainWhenNothingIsFresh(t *testing.T) {
	c := newFake(0)
	c.put("/x", 5, "v1")
	f := newTestFsys(t, c)
	out, _ := f.lookup(t, rootID, "x")
	n := f.table.get(out.NodeId)
	f.entries.drop(n.path)
	c.put("/x", 5, "v2")
	if _, st := f.open(out.NodeId, os.O_RDONLY); st != gofuse.Status(syscall.ESTALE) {
		t.Error("changed:", st)
	}
	c.remove("/x")
	if _, st := f.lookup(t, rootID, "x"); st != gofuse.ENOENT {
		t.Error("removed:", st)
	}
}

func TestKnownFilesOutliveTheMasters(t *testing.T) {
	c := newFake(time.Nanosecond)
	c.put("/x", 5, "v1")
	f := newTestFsys(t, c)
	out, _ := f.lookup(t, rootID, "x")
	c.fail(errs.E(errs.Unavailable, "stat", "", nil))
	again, st := f.lookup(t, rootID, "x")
	if st != gofuse.OK || again.NodeId != out.NodeId || again.EntryTimeout() != outageTimeout {
		t.Fatal(st, again.EntryTimeout())
	}
	if _, st := f.open(out.NodeId, os.O_RDONLY); st != gofuse.OK {
		t.Error(st)
	}
	if _, st := f.lookup(t, rootID, "unknown"); st != gofuse.EIO {
		t.Error(st)
	}
	if f.silentUntil.Load() == 0 {
		t.Error("each name waits for the silent masters by itself")
	}
	f.silentUntil.Store(0)
	// Freshness "always" promises that every open sees the newest version.
	c.fail(nil)
	c.validFor(0)
	strict, _ := f.lookup(t, rootID, "x")
	c.fail(errs.E(errs.Unavailable, "stat", "", nil))
	if _, st := f.lookup(t, rootID, "x"); st != gofuse.EIO {
		t.Error(st, strict.NodeId)
	}
}

func TestStaleReadMakesTheNextOpenLook(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 5, "v1")
	f := newTestFsys(t, c)
	out, _ := f.lookup(t, rootID, "x")
	o, _ := f.open(out.NodeId, os.O_RDONLY)
	c.lose(c.entries["/x"].FileID)
	c.put("/x", 5, "v2")
	in := &gofuse.ReadIn{Fh: o.Fh, Size: 4096}
	if _, st := f.Read(nil, in, make([]byte, 4096)); st != gofuse.Status(syscall.ESTALE) {
		t.Fatal(st)
	}
	if _, st := f.open(out.NodeId, os.O_RDONLY); st != gofuse.Status(syscall.ESTALE) {
		t.Fatal(st)
	}
	fresh, st := f.lookup(t, rootID, "x")
	if st != gofuse.OK || fresh.NodeId == out.NodeId {
		t.Fatal(st, fresh.NodeId)
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	c := newFake(0)
	c.put("/d/x", 5, "v1")
	f := newTestFsys(t, c)
	for name, want := range map[string]gofuse.Status{
		"": gofuse.ENOENT, ".": gofuse.ENOENT, "..": gofuse.ENOENT, "none": gofuse.ENOENT,
		string(make([]byte, maxName+1)): gofuse.Status(syscall.ENAMETOOLONG),
	} {
		if _, st := f.lookup(t, rootID, name); st != want {
			t.Errorf("%.10q: %v", name, st)
		}
	}
	d, _ := f.lookup(t, rootID, "d")
	x, _ := f.lookup(t, d.NodeId, "x")
	if _, st := f.lookup(t, x.NodeId, "y"); st != gofuse.ENOTDIR {
		t.Error(st)
	}
	if _, st := f.lookup(t, 4711, "y"); st != gofuse.Status(syscall.ESTALE) {
		t.Error(st)
	}
	if _, st := f.open(d.NodeId, os.O_RDONLY); st != gofuse.EISDIR {
		t.Error(st)
	}
	if st := f.OpenDir(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: x.NodeId}}, &gofuse.OpenOut{}); st != gofuse.ENOTDIR {
		t.Error(st)
	}
}

func TestEveryWriteIsRefused(t *testing.T) {
	c := newFake(0)
	c.put("/x", 5, "v1")
	f := newTestFsys(t, c)
	x, _ := f.lookup(t, rootID, "x")
	for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC} {
		if _, st := f.open(x.NodeId, flags); st != gofuse.EROFS {
			t.Errorf("open %#x: %v", flags, st)
		}
	}
	_, write := f.Write(nil, nil, nil)
	_, writev := f.Writev(nil, nil, nil)
	_, copied := f.CopyFileRange(nil, nil)
	for name, st := range map[string]gofuse.Status{
		"setattr": f.SetAttr(nil, nil, nil), "mknod": f.Mknod(nil, nil, "", nil), "mkdir": f.Mkdir(nil, nil, "", nil),
		"unlink": f.Unlink(nil, nil, ""), "rmdir": f.Rmdir(nil, nil, ""), "rename": f.Rename(nil, nil, "", ""),
		"link": f.Link(nil, nil, "", nil), "symlink": f.Symlink(nil, nil, "", "", nil),
		"setxattr": f.SetXAttr(nil, nil, "", nil), "removexattr": f.RemoveXAttr(nil, nil, ""),
		"create": f.Create(nil, nil, "", nil), "tmpfile": f.Tmpfile(nil, nil, nil), "fallocate": f.Fallocate(nil, nil),
		"write": write, "writev": writev, "copy_file_range": copied,
		"access": f.Access(nil, &gofuse.AccessIn{Mask: gofuse.W_OK}),
	} {
		if st != gofuse.EROFS {
			t.Errorf("%s: %v", name, st)
		}
	}
}

// TestInterrupt checks that a read goes on when its process got a signal, and
// ends when the process is killed.
func TestInterrupt(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 5, "v1")
	c.stall = make(chan struct{})
	f := newTestFsys(t, c)
	x, _ := f.lookup(t, rootID, "x")
	o, _ := f.open(x.NodeId, os.O_RDONLY)
	read := func(pid uint32, cancel chan struct{}) <-chan gofuse.Status {
		done := make(chan gofuse.Status, 1)
		go func() {
			in := &gofuse.ReadIn{Fh: o.Fh, Size: 4096}
			in.Pid = pid
			_, st := f.Read(cancel, in, make([]byte, 4096))
			done <- st
		}()
		return done
	}
	interrupted := make(chan struct{})
	close(interrupted)
	// A process that does not exist counts as killed.
	if st := <-read(1<<31-1, interrupted); st != gofuse.Status(syscall.EINTR) {
		t.Error(st)
	}
	live := read(uint32(os.Getpid()), interrupted)
	select {
	case st := <-live:
		t.Error("a signal ended the read:", st)
	case <-time.After(3 * doomedEvery):
	}
	close(c.stall)
	if st := <-live; st != gofuse.OK {
		t.Error(st)
	}
}
