package blockio

import (
	"fmt"
	"sync"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// call is one request on the client. Its caller waits for done; the
// connection's reader delivers into it and is the only one that ends it. A
// caller that does not wait any longer abandons it, after which its buffer is
// not touched again and the reader puts it away at its END.
type call struct {
	id     uint64
	open   bool  // OPEN, not READ
	off    int64 // of a READ, in the file
	length int64 // of the file
	done   chan struct{}

	// Written by the reader before done.
	end    endPayload
	crcs   []pageCRC
	handle uint32
	err    error // the connection's end

	mu        sync.Mutex
	buf       []byte // the caller's; nil once it is abandoned
	want, got int    // bytes asked for and delivered
	ended     bool
	abandoned time.Time // zero if it is not
}

func newCall() *call { return &call{done: make(chan struct{}, 1)} }

// newCall returns a call that is the caller's until it is recycled or in do.
func (c *Conn) newCall() *call {
	return c.calls.Get().(*call) //nolint:forcetypeassert // the pool holds nothing else
}

// recycle puts a call away that nobody else knows.
func (c *Conn) recycle(k *call) {
	k.id, k.open, k.off, k.length, k.handle, k.err = 0, false, 0, 0, 0, nil
	k.end, k.crcs = endPayload{}, k.crcs[:0]
	k.buf, k.want, k.got, k.ended, k.abandoned = nil, 0, 0, false, time.Time{}
	c.calls.Put(k)
}

// abandon gives the call to the reader, unless it has ended already.
func (k *call) abandon(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return false
	}
	k.buf, k.abandoned = nil, now
	return true
}

// abandonedAt returns when the call was abandoned, zero if it was not.
func (k *call) abandonedAt() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.abandoned
}

// room returns how many bytes may still come.
func (k *call) room() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.want - k.got
}

// take delivers bytes, at most room of them.
func (k *call) take(b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.buf != nil {
		copy(k.buf[k.got:], b)
	}
	k.got += len(b)
}

// finish ends the call and wakes its caller. It reports whether there is one;
// if not, the call is the reader's to put away.
func (k *call) finish() (waited bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	if !k.abandoned.IsZero() {
		return false
	}
	k.done <- struct{}{} // has room: a call ends once
	return true
}

// checkEnd reports what is impossible about an END.
func (k *call) checkEnd(e *endPayload) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !e.Failed && k.got != k.want {
		return fmt.Errorf("%w: END after %d of %d bytes", errProtocol, k.got, k.want)
	}
	g := block.Geometry{Length: k.length, BlockSize: block.DefaultBlockSize}
	for _, c := range e.CRCs {
		p := g.Page(k.off/block.PageSize + int64(c.Page))
		if p.IsEmpty() || p.Offset < k.off || p.End() > k.off+int64(k.want) {
			return fmt.Errorf("%w: END tells the checksum of a page that was not read whole", errProtocol)
		}
	}
	return nil
}

// verify checks the pages of p, all bytes of a READ that succeeded, whose
// checksums came with END.
func (k *call) verify(p []byte, addr string) error {
	g := block.Geometry{Length: k.length, BlockSize: block.DefaultBlockSize}
	for _, c := range k.end.CRCs {
		page := k.off/block.PageSize + int64(c.Page)
		e := g.Page(page)
		if got := block.Checksum(p[e.Offset-k.off : e.End()-k.off]); got != c.CRC {
			return errs.E(errs.Corrupt, "read", addr, fmt.Errorf("page %d has checksum %08x, the server told %08x", page, got, c.CRC))
		}
	}
	return nil
}
