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
		return false
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
	d, err := f.Descriptor(ctx)
	if err != nil {
		return // it is remembered, and the worker goes on to serve
	}
	f.local.Store(d)
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
