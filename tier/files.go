package tier

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"millrace/block"
	"millrace/internal/vfs"
)

// openFile is the one open file description of a backing file, shared by all
// that the store does with it, so that the kernel's lease can tell others'
// from ours.
type openFile struct {
	vfs.File

	part *part
	refs int32         // handles and fills that use it; guarded by part.mu
	mark atomic.Uint64 // that names the file; 0 until somebody asked
	used atomic.Bool   // since the cache's hand last came by
	slot int           // in the cache; -1 outside; guarded by fileCache.mu
}

// fileCache bounds the descriptors that are kept open without use.
type fileCache struct {
	mu    sync.Mutex
	limit int
	slots []*openFile
	hand  int
}

// add takes in f and returns one to close, if there are too many now. The
// caller holds the lock of f's part; others' are only tried.
func (c *fileCache) add(f *openFile) (idle *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.slots) >= c.limit {
		idle = c.evict()
	}
	f.slot = len(c.slots)
	c.slots = append(c.slots, f)
	return idle
}

// evict takes an unused descriptor out of the cache and its part; nil if all
// are in use. CLOCK: two rounds at most.
func (c *fileCache) evict() *openFile {
	for range 2 * len(c.slots) {
		c.hand++
		if c.hand >= len(c.slots) {
			c.hand = 0
		}
		f := c.slots[c.hand]
		if f.used.Swap(false) || !f.part.mu.TryLock() {
			continue
		}
		if f.refs > 0 {
			f.part.mu.Unlock()
			continue
		}
		f.part.file = nil
		c.drop(f)
		f.part.mu.Unlock()
		return f
	}
	return nil
}

func (c *fileCache) remove(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.slot >= 0 {
		c.drop(f)
	}
}

func (c *fileCache) drop(f *openFile) {
	last := len(c.slots) - 1
	c.slots[f.slot] = c.slots[last]
	c.slots[f.slot].slot = f.slot
	c.slots[last] = nil
	c.slots = c.slots[:last]
	f.slot = -1
}

// over reports whether more are open than may stay without use.
func (c *fileCache) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.slots) > c.limit
}

// Fan-out of backing files: 256 directories of 16 each, by the digits 3 and 4,
// then 5 of the file ID. Digits 1 and 2 have the kind bit in them.
const leafCount = 256 * 16

func leafOf(id block.FileID) int { return int(id[1])<<4 | int(id[2])>>4 }

func leafName(leaf int) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[leaf>>8], digits[leaf>>4&15], filepath.Separator, digits[leaf&15]})
}

// partName returns the name of a part's backing file. It is put together
// without filepath.Join, which costs as much as a system call.
func (d *dir) partName(id block.FileID) string {
	const sep = string(filepath.Separator)
	return d.root + sep + dataDir + sep + leafName(leafOf(id)) + sep + id.String()
}

// openPart returns the part's open file, opening it if need be. The caller
// holds p.mu. The error is fs.ErrNotExist if the backing file is gone.
func (d *dir) openPart(p *part) (*openFile, error) {
	if p.file != nil {
		if !p.file.used.Load() {
			p.file.used.Store(true)
		}
		return p.file, nil
	}
	f, err := d.fs.OpenFile(d.partName(p.id), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return d.keepOpen(p, f), nil
}

func (d *dir) keepOpen(p *part, f vfs.File) *openFile {
	p.file = &openFile{File: f, part: p, slot: -1}
	if idle := d.files.add(p.file); idle != nil {
		d.closeFile(idle)
	}
	return p.file
}

// createPart makes the backing file, sparse and of the file's full length,
// which that of a single page gets by being written.
// The caller holds p.mu and has reserved an inode. A part gets its serial here,
// so that serials follow the order in which versions of a file were first kept.
func (d *dir) createPart(p *part) (*openFile, error) {
	name := d.partName(p.id)
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	f, err := d.fs.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.makeLeaf(filepath.Dir(name)); err == nil {
			f, err = d.fs.OpenFile(name, flags, 0o600)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		// A leftover that no index knows: somebody may still have it open, so
		// it is neither truncated nor overwritten.
		if err = d.discard(name); err == nil {
			f, err = d.fs.OpenFile(name, flags, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	if p.geometry().Pages() > 1 {
		if err := f.Truncate(p.length); err != nil {
			d.unknown.Store(true) // in case the file stays
			return nil, errors.Join(err, f.Close(), d.fs.Remove(name))
		}
	}
	if p.serial == 0 {
		p.serial = d.store.serial.Add(1)
	}
	p.flags |= partCreated
	d.leaves.grow(leafOf(p.id), 1)
	return d.keepOpen(p, f), nil
}

// makeLeaf makes a fan-out directory, but nothing above them: where the cache
// directory is gone there is another file system by now, which is not ours.
func (d *dir) makeLeaf(name string) error {
	if _, err := d.fs.Stat(filepath.Join(d.root, dataDir)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			d.fail(d.unusable(err))
		}
		return err
	}
	return d.fs.MkdirAll(name, 0o700)
}

// letGo closes the part's descriptor if nothing uses it. p.mu is held.
func (d *dir) letGo(p *part) {
	if p.file != nil && p.file.refs == 0 {
		f := p.file
		p.file = nil
		d.files.remove(f)
		d.closeFile(f)
	}
}

func (d *dir) closeFile(f *openFile) {
	if err := f.Close(); err != nil {
		d.ioError("close backing file", err)
	}
}

// leaves counts what the fan-out directories take on the disk.
type leaves struct {
	mu     sync.Mutex
	block  int64
	files  [leafCount]int32
	blocks [leafCount]int32 // charged, in blocks; directories do not shrink
}

// bytesPerName is what a name takes in a directory: 40 bytes on ext4, in
// blocks that may be half full.
const bytesPerName = 96

// need returns the bytes to charge before one more file may be made in leaf.
func (l *leaves) need(leaf int) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var extra int64
	if l.blocks[leaf] == 0 {
		extra = l.block // perhaps for the directory above, too
	}
	return extra + max(0, l.want(leaf)-int64(l.blocks[leaf])*l.block)
}

func (l *leaves) want(leaf int) int64 {
	names := (int64(l.files[leaf]) + 1) * bytesPerName
	if names <= l.block {
		return l.block
	}
	return l.block + roundUp(names, l.block)
}

// charged notes that need's bytes are in the ledger.
func (l *leaves) charged(leaf int, bytes int64) {
	l.mu.Lock()
	l.blocks[leaf] += int32(bytes / l.block)
	l.mu.Unlock()
}

func (l *leaves) grow(leaf int, n int32) {
	l.mu.Lock()
	l.files[leaf] += n
	l.mu.Unlock()
}

// has reports whether a leaf has files.
func (l *leaves) has(leaf int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[leaf] > 0
}

// isNoSpace reports whether the disk refused for want of room.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
