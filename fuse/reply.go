package fuse

import (
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// replies are the results of reads, which are used again: a READ of the
// kernel costs no allocation of ours.
type replies struct {
	data  sync.Pool // of *dataReply
	files sync.Pool // of *fileReply
}

// dataReply hands bytes to the kernel that are in go-fuse's own buffer.
type dataReply struct {
	of   *replies
	data [1][]byte
}

func (r *replies) of(data []byte) *dataReply {
	p, ok := r.data.Get().(*dataReply)
	if !ok {
		p = &dataReply{of: r}
	}
	p.data[0] = data
	return p
}

// Bytes implements gofuse.ReadResult.
func (p *dataReply) Bytes([]byte) ([]byte, gofuse.Status) { return p.data[0], gofuse.OK }

// Size implements gofuse.ReadResult.
func (p *dataReply) Size() int { return len(p.data[0]) }

// Slices has go-fuse write the bytes as they are, not through a pipe.
func (p *dataReply) Slices() ([][]byte, gofuse.Status) { return p.data[:], gofuse.OK }

// Done implements gofuse.ReadResult.
func (p *dataReply) Done() {
	p.data[0] = nil
	p.of.data.Put(p)
}

// spliceWorth are the reads that are spliced: for a short one the calls that a
// pipe takes cost more than the second copy.
var spliceWorth = span{64 << 10, maxRequest} //nolint:gochecknoglobals // a constant

// fileReply hands bytes to the kernel that are in a local file: go-fuse
// splices them, so that they are copied once.
type fileReply struct {
	of   *replies
	fd   int
	at   int64 // in the local file
	size int

	// For when the local file fails.
	fs   *fsys
	open *openFile
	off  int64 // in the open file
}

func (r *replies) ofFile(f *fsys, o *openFile, d Descriptor, off, size int64) *fileReply {
	p, ok := r.files.Get().(*fileReply)
	if !ok {
		p = &fileReply{of: r}
	}
	base, _ := d.Extent()
	p.fs, p.open, p.fd, p.at, p.off, p.size = f, o, d.FD(), base+off, off, int(size)
	return p
}

// Seekable says where the bytes are.
func (p *fileReply) Seekable() (fd uintptr, off int64, size int) {
	return uintptr(p.fd), p.at, p.size
}

// Size implements gofuse.ReadResult.
func (p *fileReply) Size() int { return p.size }

// Bytes implements gofuse.ReadResult: it is asked when splicing failed, which
// is either about pipes or about the local file.
func (p *fileReply) Bytes(buf []byte) ([]byte, gofuse.Status) {
	buf = buf[:p.size]
	p.open.local.copied.Store(true)
	if preadFull(p.fd, buf, p.at) {
		return buf, gofuse.OK
	}
	p.open.local.distrust()
	ctx, cancel := p.fs.req.begin()
	defer cancel()
	return p.fs.readAt(ctx, p.open, buf, p.off)
}

// Done implements gofuse.ReadResult.
func (p *fileReply) Done() {
	p.fs, p.open = nil, nil
	p.of.files.Put(p)
}
