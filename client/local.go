package client

import (
	"context"
	"errors"
	"os"
)

// readLocal fills p from the file's descriptor, and reports whether it could.
func (f *File) readLocal(p []byte, off int64) bool {
	d := f.local.Load()
	if d == nil {
		if d = f.known(); d == nil {
			return false
		}
	}
	err := d.readAt(p, off)
	if err == nil {
		return true
	}
	if !errors.Is(err, os.ErrClosed) { // else the file was closed under this read
		f.c.descriptors.broken(d, err)
		f.leaveLocal()
	}
	return false
}

// known takes the descriptor of the version that is there, when the file is
// read for the first time, or the first time since it was asked for one.
func (f *File) known() *Descriptor {
	if f.looked.Load() || f.looked.Swap(true) {
		return nil
	}
	if d := f.c.descriptors.known(f.entry.FileID); d != nil {
		f.readFrom(d)
	}
	return f.local.Load()
}

// seekLocal asks for a descriptor after n bytes came from a worker, beside the
// reads, which never wait for it. A file that is read whole at once is not
// worth the question, unless it is read again.
func (f *File) seekLocal(n int64) {
	again := f.copied.Swap(true)
	r := f.routed.Load()
	if n == f.entry.Size && !again || r == nil || r.to == nil || !f.c.workers.sameHost(r.to) || f.local.Load() != nil {
		return
	}
	if !f.c.descriptors.worthAsking(f.entry.FileID) || f.asking.Swap(true) {
		return
	}
	if !f.c.background(f.findLocal) {
		f.asking.Store(false)
	}
}

func (f *File) findLocal(ctx context.Context) {
	defer f.asking.Store(false)
	if d, err := f.Descriptor(ctx); err == nil { // a failure is remembered, and the worker goes on to serve
		f.readFrom(d)
	}
}

// readFrom lets the reads use d, unless they have a descriptor already.
func (f *File) readFrom(d *Descriptor) {
	if !f.local.CompareAndSwap(nil, d) {
		_ = d.Close() // was not used
	}
	if f.closed.Load() {
		f.leaveLocal()
	}
}

// leaveLocal gives the descriptor back.
func (f *File) leaveLocal() {
	if d := f.local.Swap(nil); d != nil {
		_ = d.Close() // was only read
	}
}
