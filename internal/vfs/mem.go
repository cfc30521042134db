package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MemFS is a file system in memory for tests of crashes. It knows what was
// synced: Crash keeps that and a random part of the rest. It has a bound on
// bytes and inodes, leases and locks, and files that are read after their
// name went. One MemFS is what one process sees; View gives another process
// the same files.
type MemFS struct {
	d     *memDisk
	files map[*memFile]struct{} // open; guarded by d.mu
}

// memDisk is what all views of a file system share.
type memDisk struct {
	mu      sync.Mutex
	now     memState // as the kernel sees it
	durable memState // as it is on the disk
	pending []memChange
	next    uint64 // inode number
	open    map[uint64]*memOpen

	blocks, used int64
	inodes       int64
}

// memOpen is who has a node open.
type memOpen struct {
	n           int // open file descriptions
	lock, lease *memFile
}

// NewMem returns an empty file system of that many bytes and inodes.
func NewMem(bytes, inodes int64) *MemFS {
	d := &memDisk{
		now: memState{}, durable: memState{}, next: memRoot, open: map[uint64]*memOpen{},
		blocks: bytes / memBlock, used: 1, inodes: inodes,
	}
	d.now.node(memRoot, true)
	d.durable.node(memRoot, true)
	return &MemFS{d: d, files: map[*memFile]struct{}{}}
}

// View returns the same file system for another process.
func (m *MemFS) View() *MemFS { return &MemFS{d: m.d, files: map[*memFile]struct{}{}} }

// Kill closes all files that were opened through this view, as the kernel
// does when a process ends.
func (m *MemFS) Kill() {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	for f := range m.files {
		f.close()
	}
}

// Crash returns the file system as it would be if the machine's power went
// now: with what was synced and, chosen by seed, some of what was not. Each
// written block, each new size and each change of a name survives or not by
// itself; a block may be new in its first sectors only. The file system
// itself stays as it is.
func (m *MemFS) Crash(seed uint64) *MemFS {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return &MemFS{d: m.d.crash(seed), files: map[*memFile]struct{}{}}
}

// do makes a change now; a sync or luck makes it durable.
func (d *memDisk) do(c memChange) {
	d.now.apply(&c, memBlock/memSector)
	d.pending = append(d.pending, c)
}

// find returns the node of a path, and the directory it is in.
func (d *memDisk) find(name string) (dir, ino uint64, base string) {
	dir, ino = 0, memRoot
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		dir, base = ino, part
		n := d.now[dir]
		if n == nil || !n.dir {
			return 0, 0, base
		}
		ino = n.names[part]
	}
	return dir, ino, base
}

// make links a new node.
func (d *memDisk) make(dir uint64, name string, isDir bool) (uint64, error) {
	if int64(len(d.now)) >= d.inodes || isDir && d.used >= d.blocks {
		return 0, syscall.ENOSPC
	}
	d.next++
	d.do(memChange{op: memLink, ino: d.next, isDir: isDir, dir: dir, name: name})
	d.used += d.now[d.next].room()
	return d.next, nil
}

// release forgets a node that has neither a name nor a user.
func (d *memDisk) release(ino uint64) {
	n := d.now[ino]
	if n == nil || n.parent != 0 || d.open[ino] != nil {
		return
	}
	d.used -= n.room()
	delete(d.now, ino)
}

func memError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// OpenFile opens or creates a file. One that somebody has a lease on is
// syscall.EAGAIN.
func (m *MemFS) OpenFile(name string, flag int, _ fs.FileMode) (File, error) {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, ino, base := d.find(name)
	switch {
	case dir == 0:
		return nil, memError("open", name, syscall.ENOENT)
	case ino == 0 && flag&os.O_CREATE == 0:
		return nil, memError("open", name, syscall.ENOENT)
	case ino != 0 && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, memError("open", name, syscall.EEXIST)
	case ino != 0 && d.now[ino].dir:
		return nil, memError("open", name, syscall.EISDIR)
	case ino == 0:
		var err error
		if ino, err = d.make(dir, base, false); err != nil {
			return nil, memError("open", name, err)
		}
	}
	if d.open[ino] == nil {
		d.open[ino] = &memOpen{}
	}
	if d.open[ino].lease != nil {
		return nil, memError("open", name, syscall.EAGAIN)
	}
	d.open[ino].n++
	f := &memFile{fs: m, ino: ino, name: name, flag: flag}
	m.files[f] = struct{}{}
	if flag&os.O_TRUNC != 0 {
		f.cut(0)
	}
	return f, nil
}

// MkdirAll makes a directory and those above it.
func (m *MemFS) MkdirAll(name string, _ fs.FileMode) error {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	path := "/"
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		path = filepath.Join(path, part)
		dir, ino, base := d.find(path)
		if ino == 0 {
			var err error
			if ino, err = d.make(dir, base, true); err != nil {
				return memError("mkdir", path, err)
			}
		}
		if !d.now[ino].dir {
			return memError("mkdir", path, syscall.ENOTDIR)
		}
	}
	return nil
}

// Rename moves a name, over another file if there is one.
func (m *MemFS) Rename(oldName, newName string) error {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	from, ino, _ := d.find(oldName)
	dir, replaced, base := d.find(newName)
	switch {
	case ino == 0 || dir == 0:
		return memError("rename", oldName, syscall.ENOENT)
	case ino == replaced:
		return nil
	case replaced != 0 && d.now[replaced].dir:
		return memError("rename", newName, syscall.EISDIR)
	}
	d.do(memChange{op: memLink, ino: ino, isDir: d.now[ino].dir, dir: dir, name: base, from: from})
	d.release(replaced)
	return nil
}

// Remove removes a file or an empty directory.
func (m *MemFS) Remove(name string) error {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, ino, base := d.find(name)
	if ino == 0 || dir == 0 {
		return memError("remove", name, syscall.ENOENT)
	}
	if len(d.now[ino].names) > 0 {
		return memError("remove", name, syscall.ENOTEMPTY)
	}
	d.do(memChange{op: memUnlink, ino: ino, isDir: d.now[ino].dir, dir: dir, name: base})
	d.release(ino)
	return nil
}

// ReadDir lists a directory by name, so that a test runs the same way twice.
func (m *MemFS) ReadDir(name string) ([]fs.DirEntry, error) {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ino, _ := d.find(name)
	n := d.now[ino]
	if n == nil {
		return nil, memError("readdir", name, syscall.ENOENT)
	}
	if !n.dir {
		return nil, memError("readdir", name, syscall.ENOTDIR)
	}
	all := make([]fs.DirEntry, 0, len(n.names))
	for base, child := range n.names {
		all = append(all, fs.FileInfoToDirEntry(d.info(base, child)))
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all, nil
}

// Stat describes a file or directory.
func (m *MemFS) Stat(name string) (fs.FileInfo, error) {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ino, base := d.find(name)
	if ino == 0 {
		return nil, memError("stat", name, syscall.ENOENT)
	}
	return d.info(base, ino), nil
}

// SyncDir makes the names in a directory durable, and the moves out of it.
func (m *MemFS) SyncDir(name string) error {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ino, _ := d.find(name)
	if ino == 0 {
		return memError("syncdir", name, syscall.ENOENT)
	}
	d.settle(func(c *memChange) bool { return c.names() && (c.dir == ino || c.from == ino) })
	return nil
}

// Spread changes nothing: memory is near everywhere.
func (m *MemFS) Spread(name string) error {
	if _, err := m.Stat(name); err != nil {
		return err
	}
	return errors.ErrUnsupported
}

// Statfs returns the room that is left.
func (m *MemFS) Statfs(name string) (Room, error) {
	d := m.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ino, _ := d.find(name); ino == 0 {
		return Room{}, memError("statfs", name, syscall.ENOENT)
	}
	return Room{
		BlockSize: memBlock, Total: d.blocks * memBlock, Free: (d.blocks - d.used) * memBlock,
		TotalInodes: d.inodes, FreeInodes: d.inodes - int64(len(d.now)),
	}, nil
}

func (d *memDisk) info(base string, ino uint64) memInfo {
	n := d.now[ino]
	mode := fs.FileMode(0o600)
	if n.dir {
		mode = fs.ModeDir | 0o700
	}
	return memInfo{name: base, mode: mode, stat: syscall.Stat_t{
		Ino: ino, Size: n.size, Blksize: memBlock, Blocks: n.room() * (memBlock / 512),
	}}
}

type memInfo struct {
	name string
	mode fs.FileMode
	stat syscall.Stat_t
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.stat.Size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return &i.stat }
