package main

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// timeout is how long the kernel may use names and attributes.
const timeout = time.Hour

// tree is the directory as it was at the start.
type tree struct {
	gofuse.RawFileSystem

	passthrough bool
	server      *gofuse.Server
	nodes       []*node // by ID - 1
}

// node is a file or a directory; only opening changes.
type node struct {
	path     string
	attr     gofuse.Attr
	children []child // of a directory
	byName   map[string]uint64

	mu      sync.Mutex
	fd      int // of a file that is open
	backing int32
	opens   int
}

type child struct {
	name string
	id   uint64
}

func newTree(root string, passthrough bool) (*tree, error) {
	t := &tree{RawFileSystem: gofuse.NewDefaultRawFileSystem(), passthrough: passthrough}
	_, err := t.add(root)
	return t, err
}

// add enters path and what is below it into the table.
func (t *tree) add(path string) (uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	n := &node{path: path}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		n.attr.FromStat(st)
	}
	t.nodes = append(t.nodes, n)
	id := uint64(len(t.nodes))
	n.attr.Ino = id
	if !info.IsDir() {
		return id, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	n.byName = map[string]uint64{}
	for _, e := range entries {
		at, err := t.add(filepath.Join(path, e.Name()))
		if err != nil {
			return 0, err
		}
		n.children = append(n.children, child{e.Name(), at})
		n.byName[e.Name()] = at
	}
	return id, nil
}

// Init implements gofuse.RawFileSystem.
func (t *tree) Init(s *gofuse.Server) { t.server = s }

// Lookup implements gofuse.RawFileSystem.
func (t *tree) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	id, ok := t.nodes[header.NodeId-1].byName[name]
	if !ok {
		return gofuse.ENOENT
	}
	t.entry(id, out)
	return gofuse.OK
}

func (t *tree) entry(id uint64, out *gofuse.EntryOut) {
	out.NodeId, out.Generation, out.Attr = id, 1, t.nodes[id-1].attr
	out.SetEntryTimeout(timeout)
	out.SetAttrTimeout(timeout)
}

// GetAttr implements gofuse.RawFileSystem.
func (t *tree) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	out.Attr = t.nodes[in.NodeId-1].attr
	out.SetTimeout(timeout)
	return gofuse.OK
}

// OpenDir implements gofuse.RawFileSystem.
func (t *tree) OpenDir(_ <-chan struct{}, _ *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	out.OpenFlags = gofuse.FOPEN_CACHE_DIR | gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

// ReadDir implements gofuse.RawFileSystem.
func (t *tree) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return t.list(in, func(e gofuse.DirEntry, _ uint64) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements gofuse.RawFileSystem.
func (t *tree) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return t.list(in, func(e gofuse.DirEntry, id uint64) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		t.entry(id, entry)
		return true
	})
}

func (t *tree) list(in *gofuse.ReadIn, add func(gofuse.DirEntry, uint64) bool) gofuse.Status {
	children := t.nodes[in.NodeId-1].children
	for i := in.Offset; i < uint64(len(children)); i++ {
		c := children[i]
		if !add(gofuse.DirEntry{Name: c.name, Ino: c.id, Mode: t.nodes[c.id-1].attr.Mode, Off: i + 1}, c.id) {
			break
		}
	}
	return gofuse.OK
}

// Open implements gofuse.RawFileSystem. All opens of a file share one
// descriptor and, with passthrough, one backing ID, as the kernel wants it.
func (t *tree) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := t.nodes[in.NodeId-1]
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.opens == 0 {
		fd, err := unix.Open(n.path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if err != nil {
			return gofuse.ToStatus(err)
		}
		n.fd = fd
		if t.passthrough {
			id, errno := t.server.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(fd)})
			if errno != 0 {
				_ = unix.Close(fd)
				return gofuse.Status(errno)
			}
			n.backing = id
		}
	}
	n.opens++
	if out.OpenFlags = gofuse.FOPEN_NOFLUSH; t.passthrough {
		out.OpenFlags |= gofuse.FOPEN_PASSTHROUGH
		out.BackingID = n.backing
	}
	return gofuse.OK
}

// Read implements gofuse.RawFileSystem.
func (t *tree) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	k, err := unix.Pread(t.nodes[in.NodeId-1].fd, buf, int64(in.Offset))
	if err != nil {
		return nil, gofuse.ToStatus(err)
	}
	return gofuse.ReadResultData(buf[:k]), gofuse.OK
}

// Release implements gofuse.RawFileSystem.
func (t *tree) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	n := t.nodes[in.NodeId-1]
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.opens--; n.opens > 0 {
		return
	}
	if t.passthrough {
		_ = t.server.UnregisterBackingFd(n.backing)
	}
	_ = unix.Close(n.fd)
}
