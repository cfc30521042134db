package fuse

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/testenv"
)

func TestWalk(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 20)
	m := start(t, c, "")
	var got []string
	err := filepath.WalkDir(m.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, m.dir), "/")
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := c.entries[name]
		if e == nil || e.Dir != info.IsDir() || !e.Dir && (info.Size() != e.Size || !info.ModTime().Equal(born) || info.Mode() != 0o444) {
			t.Errorf("%q: %+v %v", name, e, info)
		}
		if st := info.Sys().(*syscall.Stat_t); name != "/" && st.Ino != inode(name) {
			t.Errorf("%q: inode %d", name, st.Ino)
		}
		got = append(got, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(c.entries) {
		t.Errorf("%d names, want %d", len(got), len(c.entries))
	}
	for _, name := range []string{"top.txt", "empty", "a/b/c/deep"} {
		b, err := os.ReadFile(filepath.Join(m.dir, name))
		if err != nil || !bytes.Equal(b, c.bytesOf("/"+name)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := os.Stat(filepath.Join(m.dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil || st.Bavail == 0 || st.Flags&unix.ST_RDONLY == 0 {
		t.Error(err, st)
	}
}

func TestFind(t *testing.T) {
	find, err := exec.LookPath("find")
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: no find")
	}
	c := newFake(time.Hour)
	sampleTree(c, 5000)
	m := start(t, c, "")
	asked := c.stats.Load()
	out, err := exec.CommandContext(t.Context(), find, m.dir, "-type", "f", "-printf", "%s\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, e := range c.entries {
		if !e.Dir {
			files++
		}
	}
	if got := bytes.Count(out, []byte("\n")); got != files {
		t.Errorf("find sees %d files, there are %d", got, files)
	}
	if n := c.stats.Load() - asked; n != 0 {
		t.Errorf("%d files were looked up one by one", n)
	}
}

func TestBigDirectory(t *testing.T) {
	const many = 50_000
	c := newFake(time.Hour)
	sampleTree(c, many)
	m := start(t, c, "")
	f, err := os.Open(filepath.Join(m.dir, "many"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil || len(names) != many {
		t.Fatal(len(names), err)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) != many {
		t.Fatalf("%d different names", len(names))
	}
	// Again from the start, and again after more files came.
	c.put("/many/zzz", 1, "v1")
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if names, err = f.Readdirnames(-1); err != nil || len(names) != many+1 {
		t.Fatal(len(names), err)
	}
	for range 20 {
		name := fmt.Sprintf("f%06d", rand.IntN(many))
		if info, err := os.Stat(filepath.Join(m.dir, "many", name)); err != nil || info.Size() != c.entries["/many/"+name].Size {
			t.Error(name, info, err)
		}
	}
}

// dirent is what getdents64 yields, for its offsets.
type dirent struct {
	name string
	off  int64
}

func getdents(t *testing.T, fd int, size int) []dirent {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	var list []dirent
	for buf = buf[:n]; len(buf) > 0; {
		reclen := int(buf[16]) | int(buf[17])<<8
		var off int64
		for i := range 8 {
			off |= int64(buf[8+i]) << (8 * i)
		}
		name, _, _ := bytes.Cut(buf[19:reclen], []byte{0})
		list = append(list, dirent{string(name), off})
		buf = buf[reclen:]
	}
	return list
}

func TestSeekdir(t *testing.T) {
	const many = 3 * dirWindow
	c := newFake(time.Hour)
	sampleTree(c, many)
	m := start(t, c, "")
	fd, err := unix.Open(filepath.Join(m.dir, "many"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var all []dirent
	for {
		part := getdents(t, fd, 1<<10) // small: the kernel asks again from within its answers
		if len(part) == 0 {
			break
		}
		all = append(all, part...)
	}
	if len(all) != many+2 {
		t.Fatalf("%d entries", len(all))
	}
	for _, i := range []int{0, 1, 5, many / 2, many - 3, many} {
		if _, err := unix.Seek(fd, all[i].off, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		part := getdents(t, fd, 1<<10)
		if len(part) == 0 || part[0] != all[i+1] {
			t.Errorf("behind entry %d: %+v, want %+v", i, part, all[i+1])
		}
	}
}

func TestRandomReads(t *testing.T) {
	const length = 20<<20 + 12345
	c := newFake(time.Hour)
	c.put("/big", length, "v1")
	m := start(t, c, "")
	want := c.bytesOf("/big")
	f, err := os.Open(filepath.Join(m.dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range 60 {
				off := rnd.Int64N(length)
				p := make([]byte, rnd.IntN(2<<20))
				n, err := f.ReadAt(p, off)
				end := min(off+int64(len(p)), length)
				if !bytes.Equal(p[:n], want[off:end]) {
					t.Errorf("%d bytes at %d: wrong, %v", len(p), off, err)
				}
			}
		})
	}
	wg.Wait()
	out, err := helperCmd(t, "mmap", filepath.Join(m.dir, "big")).Output()
	if sum := fmt.Sprintf("%x", sha256.Sum256(want)); err != nil || string(out) != sum {
		t.Errorf("through a mapping: %s, %v; want %s", out, err, sum)
	}
}

func TestWritesAreRefusedByTheKernel(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 1)
	m := start(t, c, "")
	p := func(name string) string { return filepath.Join(m.dir, name) }
	f, err := os.Open(p("top.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open := func(flags int) error {
		fd, err := unix.Open(p("top.txt"), flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	create := func(flags int) error {
		fd, err := unix.Open(p("new"), flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for name, err := range map[string]error{
		"open for write":        open(unix.O_WRONLY),
		"open for both":         open(unix.O_RDWR),
		"open to truncate":      open(unix.O_RDONLY | unix.O_TRUNC),
		"open to append":        open(unix.O_WRONLY | unix.O_APPEND),
		"create":                create(unix.O_CREAT | unix.O_RDWR),
		"create exclusively":    create(unix.O_CREAT | unix.O_EXCL | unix.O_RDWR),
		"mkdir":                 unix.Mkdir(p("dir"), 0o755),
		"mknod":                 unix.Mknod(p("fifo"), unix.S_IFIFO|0o644, 0),
		"unlink":                unix.Unlink(p("top.txt")),
		"rmdir":                 unix.Rmdir(p("a")),
		"rename":                unix.Rename(p("top.txt"), p("other")),
		"link":                  unix.Link(p("top.txt"), p("other")),
		"symlink":               unix.Symlink("x", p("sym")),
		"chmod":                 unix.Chmod(p("top.txt"), 0o600),
		"chown":                 unix.Chown(p("top.txt"), 1, 1),
		"truncate":              unix.Truncate(p("top.txt"), 0),
		"utimes":                unix.Utimes(p("top.txt"), make([]unix.Timeval, 2)),
		"setxattr":              unix.Setxattr(p("top.txt"), "user.x", []byte("1"), 0),
		"setxattr of ours":      unix.Setxattr(p("top.txt"), XattrPath, []byte("1"), 0),
		"removexattr":           unix.Removexattr(p("top.txt"), XattrPath),
		"access for write":      unix.Access(p("top.txt"), unix.W_OK),
		"chmod of the root":     unix.Chmod(m.dir, 0o777),
		"removexattr of a dir":  unix.Removexattr(p("a"), XattrPath),
		"rename of a directory": unix.Rename(p("a"), p("z")),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// These need a descriptor that can be written, which there is none of.
	for name, err := range map[string]error{
		"fallocate": unix.Fallocate(int(f.Fd()), 0, 0, 1),
		"ftruncate": unix.Ftruncate(int(f.Fd()), 0),
		"write":     func() error { _, err := unix.Write(int(f.Fd()), []byte("x")); return err }(),
		"copy_file_range": func() error {
			_, err := unix.CopyFileRange(int(f.Fd()), nil, int(f.Fd()), nil, 1, 0)
			return err
		}(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestXattrs(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 1)
	m := start(t, c, "")
	name := filepath.Join(m.dir, "a/b/c/deep")
	get := func(name, attr string) string {
		b := make([]byte, 1024)
		n, err := unix.Getxattr(name, attr, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	none := syscall.ENODATA.Error()
	for attr, want := range map[string]string{
		XattrPath: "/a/b/c/deep", XattrFileID: c.entries["/a/b/c/deep"].FileID.String(), XattrVersion: "v1",
		XattrCachedBytes: "150000", XattrWorkers: "w1,w2",
		"user.other": none, "user.millrace.none": none, "security.capability": none, "trusted.x": none,
	} {
		if got := get(name, attr); got != want {
			t.Errorf("%s: %q, want %q", attr, got, want)
		}
	}
	if got := get(filepath.Join(m.dir, "a"), XattrPath); got != "/a" {
		t.Error(got)
	}
	if got := get(filepath.Join(m.dir, "a"), XattrVersion); got != none {
		t.Error(got)
	}
	b := make([]byte, 1024)
	n, err := unix.Listxattr(name, b)
	if want := strings.Join([]string{XattrPath, XattrFileID, XattrVersion, XattrCachedBytes, XattrWorkers, ""}, "\x00"); err != nil || string(b[:n]) != want {
		t.Errorf("%q %v", b[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(name, XattrPath, nil); n != len("/a/b/c/deep") || err != nil {
		t.Error(n, err)
	}
	if _, err := unix.Getxattr(name, XattrPath, make([]byte, 3)); !errors.Is(err, unix.ERANGE) {
		t.Error(err)
	}
	if p, ok := Lookup(filepath.Join(m.dir, "a/b/nothing here")); !ok || p.Path != "/a/b/nothing here" || p.MountPoint != m.dir {
		t.Errorf("%+v %v", p, ok)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(m.dir, link); err != nil {
		t.Fatal(err)
	}
	if p, ok := Lookup(filepath.Join(link, "top.txt")); !ok || p.Path != "/top.txt" {
		t.Errorf("%+v %v", p, ok)
	}
	if all, err := Places(); err != nil || !slices.ContainsFunc(all, func(p Place) bool { return p.MountPoint == m.dir && p.Path == "/" }) {
		t.Errorf("the mounts of this host are %+v, %v, without %s", all, err, m.dir)
	}
	if p, ok := Lookup(t.TempDir()); ok {
		t.Errorf("%+v", p)
	}
}

// TestNewVersionIsSeenByTheNextOpen replaces a file while the kernel still
// trusts what it knows of the name: the OPEN is refused with ESTALE, the
// kernel looks again, and the program sees nothing but new bytes.
func TestNewVersionIsSeenByTheNextOpen(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 100_000, "v1")
	m := start(t, c, "")
	name := filepath.Join(m.dir, "x")
	before := c.bytesOf("/x")
	old, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	info, err := old.Stat()
	if err != nil {
		t.Fatal(err)
	}
	oldID := c.entries["/x"].FileID
	c.put("/x", 120_000, "v2")

	// Within its freshness the old version is given; a question to the master
	// shows that there is another.
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, before) {
		t.Fatal(len(b), err)
	}
	if _, err := unix.Getxattr(name, XattrCachedBytes, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
		t.Fatal(len(b), err)
	}
	p := make([]byte, len(before))
	if _, err := old.ReadAt(p, 0); err != nil || !bytes.Equal(p, before) {
		t.Error("the old descriptor must go on with the old bytes: ", err)
	}
	now, err := os.Stat(name)
	if err != nil || now.Size() != 120_000 || now.Sys().(*syscall.Stat_t).Ino != info.Sys().(*syscall.Stat_t).Ino {
		t.Error(now, err)
	}
	// Bytes that are gone are ESTALE, never those of the new version.
	c.lose(oldID)
	if err := unix.Fadvise(int(old.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if n, err := old.ReadAt(p, 0); !errors.Is(err, unix.ESTALE) && !(err == nil && bytes.Equal(p[:n], before)) {
		t.Error(n, err)
	}
}

func TestFreshnessAlways(t *testing.T) {
	c := newFake(0)
	c.put("/x", 1000, "v0")
	m := start(t, c, "")
	name := filepath.Join(m.dir, "x")
	for i := range 50 {
		c.put("/x", 1000+int64(i), fmt.Sprint("v", i))
		if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, c.bytesOf("/x")) {
			t.Fatal(i, len(b), err)
		}
	}
}

func TestSmallFilesAfterListingNeedNoMaster(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 300)
	m := start(t, c, "")
	names, err := os.ReadDir(filepath.Join(m.dir, "many"))
	if err != nil {
		t.Fatal(err)
	}
	asked := c.stats.Load()
	for _, n := range names {
		p := "/many/" + n.Name()
		if b, err := os.ReadFile(m.dir + p); err != nil || !bytes.Equal(b, c.bytesOf(p)) {
			t.Fatal(p, err)
		}
	}
	if n := c.stats.Load() - asked; n != 0 {
		t.Errorf("%d questions to a master", n)
	}
	if c.opens.Load() != int64(len(names)) {
		t.Errorf("%d opens counted, %d made", c.opens.Load(), len(names))
	}
}

func TestErrorsReachThePrograms(t *testing.T) {
	c := newFake(0)
	c.put("/x", 10, "v1")
	m := start(t, c, "")
	for kind, want := range map[errs.Kind]error{
		errs.Unavailable: unix.EIO, errs.Permission: unix.EACCES, errs.NotFound: unix.ENOENT,
	} {
		c.fail(errs.E(kind, "stat", "", nil))
		if _, err := os.ReadFile(filepath.Join(m.dir, "x")); !errors.Is(err, want) {
			t.Errorf("%v: %v", kind, err)
		}
		if _, err := os.ReadDir(m.dir); !errors.Is(err, want) {
			t.Errorf("list, %v: %v", kind, err)
		}
	}
	c.fail(nil)
	if _, err := os.ReadFile(filepath.Join(m.dir, "x")); err != nil {
		t.Error(err)
	}
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	all, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	_, ok := topmost(all, dir)
	return ok
}

func TestUnmountAtTheEnd(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 5)
	m := start(t, c, "")
	if !isMounted(t, m.dir) {
		t.Fatal("not mounted")
	}
	m.stop()
	if err := m.wait(t); err != nil || isMounted(t, m.dir) {
		t.Error(err)
	}
	names, err := os.ReadDir(m.dir)
	if err != nil || len(names) != 0 {
		t.Error(names, err)
	}
}

func TestUnmountCutsOffWhoeverHoldsOn(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 5<<20, "v1")
	c.put("/slow", 5<<20, "v1")
	m := start(t, c, "", func(c *Config) { c.UnmountTimeout = 0 })
	f, err := os.Open(filepath.Join(m.dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.mu.Lock()
	c.stall = make(chan struct{}) // never ends
	c.mu.Unlock()
	hung := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(m.dir, "slow"))
		hung <- err
	}()
	for c.opens.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	m.stop()
	if err := m.wait(t); err != nil || isMounted(t, m.dir) {
		t.Error(err)
	}
	if err := <-hung; err == nil {
		t.Error("a read that hung succeeded")
	}
	if _, err := f.ReadAt(make([]byte, 10), 4<<20); err == nil {
		t.Error("a descriptor of a mount that is gone reads on")
	}
}

// TestUnmountInOtherNamespaces: a program in another mount namespace, which has
// a copy of every mount, does not keep a mount from its end.
func TestUnmountInOtherNamespaces(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 10, "v1")
	m := start(t, c, "", func(c *Config) { c.UnmountTimeout = 0 })
	other := exec.CommandContext(t.Context(), "cat")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Skip("SKIPPED, NOT TESTED: no mount namespace can be had here: ", err)
	}
	copied := filepath.Join("/proc", strconv.Itoa(other.Process.Pid), "root", m.dir, "x")
	if _, err := os.Stat(copied); err != nil {
		t.Error("the other namespace has no copy of the mount: ", err)
	}
	m.stop()
	if err := m.wait(t); err != nil || isMounted(t, m.dir) {
		t.Error("the mount does not end: ", err)
	}
	if _, err := os.ReadFile(copied); !errors.Is(err, unix.ENOTCONN) {
		t.Error("the copy reads on: ", err)
	}
	if err := errors.Join(in.Close(), other.Wait()); err != nil {
		t.Error(err)
	}
}

func TestUnmountCommand(t *testing.T) {
	c := newFake(time.Hour)
	sampleTree(c, 5)
	m := start(t, c, "")
	hold := helperCmd(t, "hold", filepath.Join(m.dir, "top.txt"))
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatal(line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = Unmount(ctx, m.dir, false)
	if !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), "--lazy") || !isMounted(t, m.dir) {
		t.Errorf("busy: %v", err)
	}
	// It waits for the last file to be closed.
	result := make(chan error, 1)
	go func() { result <- Unmount(t.Context(), m.dir, false) }()
	in.Close()
	if err := hold.Wait(); err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := m.wait(t); err != nil {
		t.Error("Run:", err)
	}
	if err := Unmount(t.Context(), m.dir, false); !errors.Is(err, errs.NotFound) {
		t.Error("twice:", err)
	}
	if err := Unmount(t.Context(), "/proc", false); !errors.Is(err, errs.Invalid) {
		t.Error("another file system:", err)
	}
}

func TestUnmountLazily(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/x", 5<<20, "v1")
	m := start(t, c, "")
	f, err := os.Open(filepath.Join(m.dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), m.dir, true); err != nil || isMounted(t, m.dir) {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	if _, err := f.ReadAt(p, 4<<20); err != nil || !bytes.Equal(p, c.bytesOf("/x")[4<<20:][:1000]) {
		t.Error("an open file must go on:", err)
	}
	f.Close()
	if err := m.wait(t); err != nil {
		t.Error(err)
	}
}

func TestDeadMountIsCleared(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	child := helperCmd(t, "mount", dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	c := newFake(time.Hour)
	sampleTree(c, 10)
	second, err := New(DefaultConfig(), dir, "/", c, slogDiscard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, errs.Busy) {
		t.Fatalf("a mount over a live one: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	m := start(t, c, dir)
	if b, err := os.ReadFile(filepath.Join(dir, "top.txt")); err != nil || !bytes.Equal(b, c.bytesOf("/top.txt")) {
		t.Error(err)
	}
	m.stop()
	if err := m.wait(t); err != nil || isMounted(t, dir) {
		t.Error(err)
	}
}

func TestMountPointsThatCannotBe(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	full := t.TempDir()
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newFake(time.Hour)
	c.put("/x", 1, "v1")
	run := func(dir, root string) error {
		m, err := New(DefaultConfig(), dir, root, c, slogDiscard(), nil)
		if err != nil {
			return err
		}
		return m.Run(t.Context())
	}
	empty := t.TempDir()
	for _, tc := range []struct {
		dir, root string
		want      errs.Kind
	}{
		{filepath.Join(full, "none"), "/", errs.NotFound},
		{file, "/", errs.NotDir},
		{full, "/", errs.NotEmpty},
		{empty, "/none", errs.NotFound},
		{empty, "/x", errs.NotDir},
		{empty, "x", errs.Invalid},
		{empty, "/x/../y", errs.Invalid},
	} {
		if err := run(tc.dir, tc.root); !errors.Is(err, tc.want) {
			t.Errorf("%s on %s: %v, want %v", tc.root, tc.dir, err, tc.want)
		}
	}
	m := start(t, c, full, func(c *Config) { c.NonEmpty = true })
	if _, err := os.Stat(filepath.Join(m.dir, "x")); err != nil {
		t.Error(err)
	}
}

func TestOwnersAndModes(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/d/x", 1, "v1")
	m := start(t, c, "", func(c *Config) { c.UID, c.GID, c.Umask, c.AllowOther = 12, 34, "0027", true })
	for name, mode := range map[string]fs.FileMode{"d": fs.ModeDir | 0o550, "d/x": 0o440, "": fs.ModeDir | 0o550} {
		info, err := os.Stat(filepath.Join(m.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != mode || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("%q: %v %d:%d", name, info.Mode(), st.Uid, st.Gid)
		}
	}
}
