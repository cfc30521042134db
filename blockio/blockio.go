package blockio

import (
	"context"
	"fmt"
	"io"
	"os"

	"millrace/block"
)

// Priority orders requests by who waits for them.
type Priority uint8

// The priorities and their numbers on the wire.
const (
	PriorityRead   Priority = 0 // a program waits
	PriorityLoad   Priority = 1 // a load job
	PriorityRepair Priority = 2 // re-replication and scrubbing
)

// String returns "read", "load" or "repair".
func (p Priority) String() string {
	switch p {
	case PriorityRead:
		return "read"
	case PriorityLoad:
		return "load"
	case PriorityRepair:
		return "repair"
	default:
		return fmt.Sprintf("priority %d", uint8(p))
	}
}

// Identity is what a server says about itself in the handshake.
type Identity struct {
	WorkerID block.WorkerID
	BootID   string // the host's /proc/sys/kernel/random/boot_id
}

// Handler opens what tickets name. It is safe for concurrent use.
type Handler interface {
	// Open decides whether the ticket's holder may read, and registers it for
	// one connection. The ticket's bounds and its ID were checked, its expiry
	// and signature were not. The error's kind crosses the wire.
	Open(ctx context.Context, t *block.Ticket) (File, error)
}

// File is one open ticket of one connection.
type File interface {
	// Read writes exactly req.Extent's bytes to w, in order, and says what it
	// knows of their pages' checksums. It is called concurrently. Its error
	// fails this request alone; its kind and text cross the wire, also after
	// some bytes were written.
	//
	// ctx ends when the request's deadline passes, the client cancels it or
	// the connection ends. What Read starts and leaves behind must derive its
	// own context from ctx (WithCancel, WithoutCancel) before Read returns;
	// ctx itself, req and w must not be used afterwards.
	Read(ctx context.Context, req ReadRequest, w Responder) error
	// Close is called once, when no Read is running and none will come.
	Close() error
}

// ReadRequest is what a client asks of a File.
type ReadRequest struct {
	Extent block.Extent // of the file; in it, not empty, and not longer than MaxReadLength
	// Ahead are the extents that the same request asks for after this one,
	// for a File that wants to begin with them; there will be a Read for each
	// that is not empty, unless one fails. Only the first Read of a request
	// has them. It is nil if there are none, and is not to be used after Read
	// has returned.
	Ahead          []block.Extent
	Priority       Priority
	PlacementEpoch uint64 // the epoch by which the client chose this worker; 0 if it does not know
	TraceID        uint64 // 0 is none
	CachedOnly     bool   // answer from the cache or with errs.NotCached
	// Local says that the client is on this host: it came through the socket.
	Local bool
	// Replica says that another worker owns what is read, and that this one is
	// to serve it too, for its host or as it is hot: keep it as a replica,
	// filled from the owner.
	Replica bool
	// ReadThrough says that a worker asks which fills a replica: the owner
	// fetches what it does not have, others answer as to CachedOnly.
	ReadThrough bool
}

// Prompt is a File that can answer reads of what is in memory without waiting.
// They are answered where frames are received: that wakes nobody, and many
// small answers leave with one system call. So its methods must not wait, for
// a disk, a lock that is held long or another machine; the peer alone they may
// wait for. When one returns false it has done nothing, and Read is called.
// ctx is as in Read.
type Prompt interface {
	// ReadNow is Read for few bytes that lie in one page, into p, which has
	// their length; it returns the checksum of the page.
	ReadNow(ctx context.Context, req ReadRequest, p []byte) (crc uint32, ok bool)
	// SendNow is Read for at most MaxDataFrame bytes.
	SendNow(ctx context.Context, req ReadRequest, w Responder) (ok bool, err error)
}

// Descriptors is a File that can hand out descriptors of what it reads from.
type Descriptors interface {
	// Descriptor returns a descriptor that was opened for this call, for
	// reading alone, in which the file's bytes are the length bytes at base.
	// length is the ticket's, and all bytes are there: a file that is not
	// cached whole is errs.NotCached, one that may not be handed out
	// errs.Unsupported. The descriptor is the caller's, who closes it.
	Descriptor(ctx context.Context, o DescriptorOptions) (fd *os.File, base, length int64, err error)
}

// DescriptorOptions goes with the question for a descriptor.
type DescriptorOptions struct {
	// Priority is that of what is fetched.
	Priority Priority
	// Fill has a file of at most one page that is not cached fetched first, if
	// that takes no longer than the question may.
	Fill bool
}

// Toucher is a Handler that wants to know what is read through descriptors.
type Toucher interface {
	// Touch tells that files were used. Clients are not checked: an ID may be
	// one that the server never had, a count any number.
	Touch(ctx context.Context, touches []Touch) error
}

// Responder takes the bytes of one read. It is not safe for concurrent use.
// An error of it means that the connection or the request is over, or that
// more bytes were written than asked for; Read returns it as it is.
type Responder interface {
	// Write sends p, which is the caller's again when it returns.
	Write(p []byte) error
	// SendFile sends n bytes of f at off, by sendfile(2) where the connection
	// allows it. The kernel may then refer to the file's pages until the peer
	// has received them, which is after Read has returned: bytes that were
	// sent may be unlinked, and punched if that cuts no folio of the kernel's
	// cache, but not overwritten with others.
	SendFile(f FileSection, off, n int64) error
	// PageCRC tells the checksum of a page of the file. It is passed on for
	// pages that the Extent covers whole; others are ignored. Pages must come
	// in ascending order, each once.
	PageCRC(page int64, crc uint32)
}

// FileSection is a file that can be sent by descriptor or read. *os.File is
// one.
type FileSection interface {
	io.ReaderAt
	// Fd returns the descriptor, which stays open until SendFile returns. A
	// value that is no descriptor (^uintptr(0)) asks for ReadAt.
	Fd() uintptr
}
