package fuse

import (
	"errors"
	"os"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// replies are the results of reads, which are used again: a READ of the
// kernel costs no allocation of ours.
type replies struct {
	data sync.Pool // of *dataReply

	mu   sync.Mutex
	idle []*fileReply // whose pipes are empty
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

// fileReply hands bytes to the kernel that come from a local file: go-fuse
// splices them out of a pipe, so that they are copied once. They are in the
// pipe before the kernel hears of them, since splicing may bring less than it
// should: from a disk that fails behind the first pages, or from a file that
// lost its end. The kernel would take a short answer for the end of the file.
type fileReply struct {
	of    *replies
	r, w  int // the pipe
	room  int // of the pipe, in bytes
	size  int
	extra [1]byte

	// For when go-fuse cannot splice.
	fs   *fsys
	open *openFile
	fd   int
	at   int64 // in the local file
	off  int64 // in the open file

	// What is in use until the bytes have left; nil if there is none.
	unopened *nodeFile
	held     Descriptor
}

// maxIdlePipes bounds the pipes that are kept for later reads.
const maxIdlePipes = 16

// ofFile returns size bytes at off of o, of which d has all; nil if they
// cannot be spliced, or could not be read.
func (r *replies) ofFile(f *fsys, o *openFile, d Descriptor, off, size int64) *fileReply {
	base, _ := d.Extent()
	if (base+off)%int64(os.Getpagesize()) != 0 { // takes more of a pipe than its bytes
		return nil
	}
	p := r.pipe()
	if p == nil || !p.grow(int(size)) {
		o.local.copied.Store(true)
		p.close()
		return nil
	}
	p.fs, p.open, p.fd, p.at, p.off, p.size = f, o, d.FD(), base+off, off, int(size)
	if !p.load() {
		p.close()
		return nil
	}
	return p
}

// pipe returns a reply whose pipe is empty; nil if there can be none.
func (r *replies) pipe() *fileReply {
	r.mu.Lock()
	if n := len(r.idle); n > 0 {
		p := r.idle[n-1]
		r.idle = r.idle[:n-1]
		r.mu.Unlock()
		return p
	}
	r.mu.Unlock()
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	return &fileReply{of: r, r: fds[0], w: fds[1]}
}

// close closes the pipes that are kept. No READ may be under way.
func (r *replies) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.idle {
		p.close()
	}
	r.idle = nil
}

func (p *fileReply) close() {
	if p != nil {
		_, _ = unix.Close(p.r), unix.Close(p.w) // a pipe
	}
}

// grow makes room for n bytes that begin at a page's start.
func (p *fileReply) grow(n int) bool {
	if p.room < n {
		p.room, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, n) // -1 if it is not allowed
	}
	return p.room >= n
}

// load fills the pipe; false if the local file did not give all bytes.
func (p *fileReply) load() bool {
	for {
		at := p.at
		n, err := unix.Splice(p.fd, &at, p.w, nil, p.size, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == int64(p.size)
		}
	}
}

// Stateful says where the bytes are.
func (p *fileReply) Stateful() (fd uintptr, size int) { return uintptr(p.r), p.size }

// Size implements gofuse.ReadResult.
func (p *fileReply) Size() int { return p.size }

// Bytes implements gofuse.ReadResult: it is asked when splicing failed.
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
	if p.unopened != nil {
		p.fs.releaseUnopened(p.unopened)
	}
	if p.held != nil {
		_ = p.held.Close() // was only read
	}
	p.fs, p.open, p.unopened, p.held = nil, nil, nil, nil
	if _, err := unix.Read(p.r, p.extra[:]); !errors.Is(err, unix.EAGAIN) {
		p.close() // not all of it was taken
		return
	}
	r := p.of
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.idle) == maxIdlePipes {
		p.close()
		return
	}
	r.idle = append(r.idle, p)
}
