package vfs

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// memFile is an open file description of a MemFS.
type memFile struct {
	fs     *MemFS
	ino    uint64
	name   string
	flag   int
	closed bool // guarded by memDisk.mu
}

// use runs fn with the disk locked, on the file's node.
func (f *memFile) use(op string, fn func(d *memDisk, n *memNode) error) error {
	d := f.fs.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.closed {
		return memError(op, f.name, fs.ErrClosed)
	}
	return memError(op, f.name, fn(d, d.now[f.ino]))
}

// change is use for what needs the right to write.
func (f *memFile) change(op string, fn func(d *memDisk, n *memNode) error) error {
	return f.use(op, func(d *memDisk, n *memNode) error {
		if f.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
			return syscall.EBADF
		}
		return fn(d, n)
	})
}

func (f *memFile) ReadAt(p []byte, off int64) (done int, err error) {
	end := false
	err = f.use("read", func(_ *memDisk, n *memNode) error {
		if f.flag&os.O_WRONLY != 0 {
			return syscall.EBADF
		}
		want := max(0, min(int64(len(p)), n.size-off))
		end = want < int64(len(p))
		for int64(done) < want {
			i, at := (off+int64(done))/memBlock, (off+int64(done))%memBlock
			piece := p[done:min(want, int64(done)+memBlock-at)]
			clear(piece)
			if b := n.blocks[i]; b != nil {
				copy(piece, b[at:])
			}
			done += len(piece)
		}
		return nil
	})
	if err == nil && end {
		err = io.EOF
	}
	return done, err
}

// WriteAt writes what fits; the rest is syscall.ENOSPC.
func (f *memFile) WriteAt(p []byte, off int64) (done int, err error) {
	err = f.change("write", func(d *memDisk, n *memNode) error {
		for done < len(p) {
			i, at := (off+int64(done))/memBlock, (off+int64(done))%memBlock
			piece := p[done:min(len(p), done+int(memBlock-at))]
			if err := d.take(n, i); err != nil {
				return err
			}
			data := make([]byte, memBlock)
			copy(data, n.blocks[i])
			copy(data[at:], piece)
			d.do(memChange{op: memWrite, ino: f.ino, block: i, data: data})
			done += len(piece)
			if end := off + int64(done); end > n.size {
				d.do(memChange{op: memGrow, ino: f.ino, size: end})
			}
		}
		return nil
	})
	return done, err
}

// take makes room for a block that is about to be written.
func (d *memDisk) take(n *memNode, block int64) error {
	if _, has := n.blocks[block]; has {
		return nil
	}
	if d.used >= d.blocks {
		return syscall.ENOSPC
	}
	d.used++
	return nil
}

func (f *memFile) Truncate(size int64) error {
	return f.change("truncate", func(*memDisk, *memNode) error {
		f.cut(size)
		return nil
	})
}

// cut is Truncate with the disk locked.
func (f *memFile) cut(size int64) {
	d := f.fs.d
	before := d.now[f.ino].room()
	d.do(memChange{op: memCut, ino: f.ino, size: size})
	d.used += d.now[f.ino].room() - before
}

func (f *memFile) Fallocate(off, n int64) error {
	return f.change("fallocate", func(d *memDisk, node *memNode) error {
		for i := off / memBlock; i*memBlock < off+n; i++ {
			if err := d.take(node, i); err != nil {
				return err
			}
			d.do(memChange{op: memAlloc, ino: f.ino, block: i})
		}
		return nil
	})
}

func (f *memFile) PunchHole(off, n int64) error {
	return f.change("punch", func(d *memDisk, node *memNode) error {
		for i := off / memBlock; i*memBlock < off+n; i++ {
			old, has := node.blocks[i]
			if !has {
				continue
			}
			from, to := max(0, off-i*memBlock), min(memBlock, off+n-i*memBlock)
			if to-from == memBlock {
				d.do(memChange{op: memPunch, ino: f.ino, block: i})
				d.used--
				continue
			}
			data := make([]byte, memBlock)
			copy(data, old)
			clear(data[from:to])
			d.do(memChange{op: memWrite, ino: f.ino, block: i, data: data})
		}
		return nil
	})
}

func (f *memFile) Sync() error {
	return f.use("sync", func(d *memDisk, _ *memNode) error {
		d.settle(func(c *memChange) bool { return c.ino == f.ino && !c.names() })
		return nil
	})
}

func (f *memFile) SyncFS() error {
	return f.use("syncfs", func(d *memDisk, _ *memNode) error {
		d.settle(func(*memChange) bool { return true })
		return nil
	})
}

func (f *memFile) Lock() error {
	return f.use("lock", func(d *memDisk, _ *memNode) error {
		o := d.open[f.ino]
		if o.lock != nil && o.lock != f {
			return ErrLocked
		}
		o.lock = f
		return nil
	})
}

func (f *memFile) Lease() error {
	return f.use("lease", func(d *memDisk, _ *memNode) error {
		o := d.open[f.ino]
		if o.n > 1 {
			return ErrShared
		}
		o.lease = f
		return nil
	})
}

func (f *memFile) Unlease() error {
	return f.use("unlease", func(d *memDisk, _ *memNode) error {
		if d.open[f.ino].lease != f {
			return syscall.EAGAIN // as the kernel says
		}
		d.open[f.ino].lease = nil
		return nil
	})
}

// DropCache has nothing to drop: nothing can be sent from here.
func (f *memFile) DropCache(int64, int64) error {
	return f.use("drop cache", func(*memDisk, *memNode) error { return nil })
}

func (f *memFile) Stat() (fi fs.FileInfo, err error) {
	err = f.use("stat", func(d *memDisk, _ *memNode) error {
		fi = d.info(filepath.Base(f.name), f.ino)
		return nil
	})
	return fi, err
}

func (f *memFile) Close() error {
	f.fs.d.mu.Lock()
	defer f.fs.d.mu.Unlock()
	if f.closed {
		return memError("close", f.name, fs.ErrClosed)
	}
	f.close()
	return nil
}

// close ends the file, its lock and its lease. The disk is locked.
func (f *memFile) close() {
	d := f.fs.d
	o := d.open[f.ino]
	o.n--
	if o.lock == f {
		o.lock = nil
	}
	if o.lease == f {
		o.lease = nil
	}
	f.closed = true
	delete(f.fs.files, f)
	if o.n == 0 {
		delete(d.open, f.ino)
	}
	d.release(f.ino)
}
