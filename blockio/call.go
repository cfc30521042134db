package blockio

import (
	"fmt"
	"os"
	"sync"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// Range is one piece of a ReadV: len(Buf) bytes of the file at Off.
type Range struct {
	Off int64
	Buf []byte
}

// call is one request on the client. Its caller waits for done; the
// connection's reader delivers into it and is the only one that ends it. A
// caller that does not wait any longer abandons it, after which its buffers
// are not touched again and the reader puts it away at its END.
type call struct {
	id         uint64
	priority   Priority
	opens      bool     // END brings a handle
	descriptor bool     // DATA brings a descriptor
	checked    bool     // each page must come whole, with a checksum
	upTo       bool     // what comes may be less than want
	inPlace    bool     // an END alone says that the bytes are in place, or DATA brings a mark
	length     int64    // of the file
	one        [1]Range // room for the ranges of what reads one
	done       chan struct{}

	// Written by the reader before done.
	end     endPayload
	crcs    []pageCRC
	handle  uint32
	file    *os.File // the descriptor
	mark    uint64   // that names it, of a call in place
	base    int64    // of the file's bytes in it
	refused error    // what is wrong with the descriptor
	corrupt error    // what is wrong with the bytes
	err     error    // the connection's end

	mu        sync.Mutex
	ranges    []Range // the caller's; nil once it is abandoned
	at, in    int     // the next byte belongs to ranges[at].Buf[in]
	want, got int     // bytes asked for and delivered
	sums      pageSums
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
	k.id, k.priority, k.opens, k.descriptor, k.checked, k.upTo, k.inPlace = 0, PriorityRead, false, false, false, false, false
	k.length, k.one = 0, [1]Range{}
	k.end, k.crcs, k.handle, k.corrupt, k.err = endPayload{}, k.crcs[:0], 0, nil, nil
	k.sums.reset()
	k.file, k.mark, k.base, k.refused = nil, 0, 0, nil
	k.ranges, k.at, k.in, k.want, k.got, k.ended, k.abandoned = nil, 0, 0, 0, 0, false, time.Time{}
	c.calls.Put(k)
}

// into makes p, at off of the file, where the answer goes.
func (k *call) into(p []byte, off int64) {
	k.one[0] = Range{Off: off, Buf: p}
	k.ranges, k.want = k.one[:], len(p)
}

// abandon gives the call to the reader, unless it has ended already.
func (k *call) abandon(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return false
	}
	k.ranges, k.one, k.abandoned = nil, [1]Range{}, now
	return true
}

// closeFile closes a descriptor that nobody will take. The reader calls it.
func (k *call) closeFile() {
	if k.file != nil {
		_ = k.file.Close() // was never written to
		k.file = nil
	}
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

// next returns where the next bytes belong, at most n of them; nil if nobody
// wants them any longer. Called with the lock.
func (k *call) next(n int) []byte {
	for k.at < len(k.ranges) && k.in == len(k.ranges[k.at].Buf) {
		k.at, k.in = k.at+1, 0
	}
	if k.at >= len(k.ranges) {
		return nil
	}
	p := k.ranges[k.at].Buf[k.in:]
	return p[:min(n, len(p))]
}

// took counts n bytes that were put where next said. Called with the lock.
func (k *call) took(n int) {
	k.in += n
	k.got += n
	k.sums.arrived(k.geometry(), k.ranges, k.at, k.in)
}

// inOne returns how many of the next n bytes belong together.
func (k *call) inOne(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.next(n))
}

// take delivers bytes, at most room of them.
func (k *call) take(b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(b) > 0 {
		p := k.next(len(b))
		if p == nil { // abandoned
			k.got += len(b)
			return
		}
		copy(p, b)
		k.took(len(p))
		b = b[len(p):]
	}
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

// geometry divides the file into pages; blocks do not matter here.
func (k *call) geometry() block.Geometry {
	return block.Geometry{Length: k.length, BlockSize: block.DefaultBlockSize}
}

// checkEnd reports what is impossible about an END, and notes which page is
// not what the server says.
func (k *call) checkEnd(e *endPayload, addr string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case e.Failed || !k.abandoned.IsZero():
		return nil // nobody will look at the bytes
	case k.inPlace && !k.descriptor && k.got == 0 && len(e.CRCs) == 0:
		return nil // they are elsewhere
	case k.got != k.want && !k.upTo:
		return fmt.Errorf("%w: END after %d of %d bytes", errProtocol, k.got, k.want)
	}
	if pages := k.sums.before; k.checked && int64(len(e.CRCs)) != pages {
		k.corrupt = errs.E(errs.Corrupt, "read", addr, fmt.Errorf("%d pages came with %d checksums", pages, len(e.CRCs)))
		return nil
	}
	wrong, known := k.sums.compare(e.CRCs)
	if !known {
		return fmt.Errorf("%w: END tells the checksum of a page that was not read whole", errProtocol)
	}
	if wrong != nil {
		k.corrupt = errs.E(errs.Corrupt, "read", addr,
			fmt.Errorf("page %d of the answer does not have the checksum %08x that the server told", wrong[0].Page, wrong[0].CRC))
	}
	return nil
}
