package blockio

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"millrace/internal/errs"
)

// InPlace is a File that a client on the same host can read where its bytes
// lie, while they come: the client has a descriptor of the local file, which
// need not be whole, and its reads are told that their bytes are there. A mark
// names the local file: never 0, and another one for every file that can be
// open at the same time.
type InPlace interface {
	// PartialDescriptor is Descriptor for a local file in which bytes may be
	// missing, and its mark. For as long as the descriptor is open, wherever
	// it was passed to, bytes that Place told of stay what they are.
	PartialDescriptor(ctx context.Context) (fd *os.File, base, length int64, mark uint64, err error)
	// Place waits until all bytes of req.Extent are in the local file that has
	// the mark. When it is false without an error, Read is called; an error is
	// as Read's.
	Place(ctx context.Context, req ReadRequest, mark uint64) (bool, error)
	// PlaceNow is Place if it need not wait for anything, as in Prompt.
	PlaceNow(ctx context.Context, req ReadRequest, mark uint64) bool
}

// placeNow reports whether a read is answered by END alone, at once.
func (r *request) placeNow() bool {
	p, ok := r.handle.file.(InPlace)
	return ok && p.PlaceNow(r.ctx, r.read, r.mark)
}

// place reports whether a read is answered by END alone. It waits for that.
func (r *request) place() (bool, error) {
	p, ok := r.handle.file.(InPlace)
	if r.mark == 0 || !ok || r.ranges[0].IsEmpty() {
		return false, nil
	}
	r.read.Extent = r.ranges[0]
	return p.Place(r.ctx, r.read, r.mark)
}

// PartialDescriptor is Descriptor for a file that may be read in place before
// it is cached whole: ReadInPlace, with the mark that comes with it, tells
// which bytes are in it; all others are not to be read. Without FeatureInPlace
// in Hello it is errs.Unsupported.
func (c *Conn) PartialDescriptor(ctx context.Context, handle uint32) (f *os.File, base int64, mark uint64, err error) {
	if err := c.offers(FeatureInPlace, "pass a descriptor"); err != nil {
		return nil, 0, 0, err
	}
	return c.askFD(ctx, handle, DescriptorOptions{}, true)
}

// ReadInPlace is ReadAt, for at most Hello().MaxRead bytes, by who has the
// descriptor that came with the mark: if inPlace is true the bytes are where
// that descriptor has them, and stay there for as long as it is open, and p
// was not filled. Else they are in p.
func (c *Conn) ReadInPlace(ctx context.Context, handle uint32, p []byte, off int64, mark uint64, o ReadOptions) (inPlace bool, err error) {
	if err := c.offers(FeatureInPlace, "read"); err != nil {
		return false, err
	}
	length, err := c.lengthOf(handle)
	switch {
	case err != nil:
		return false, err
	case off < 0 || int64(len(p)) > length-off || len(p) > c.maxRead() || mark == 0 || o.Checked:
		return false, errs.E(errs.Invalid, "read", c.addr, fmt.Errorf("%d bytes at %d of a file of %d in place", len(p), off, length))
	case len(p) == 0:
		return false, nil
	}
	k := c.newCall()
	k.length, k.inPlace = length, true
	k.into(p, off)
	var room [readPayloadSize + markSize]byte
	payload := appendReadPayload(room[:0], readPayload{Offset: uint64(off), Length: uint32(len(p))})
	payload = binary.LittleEndian.AppendUint64(payload, mark)
	head := o.header(opRead, handle, payload)
	head.Flags |= flagInPlace
	if err := c.do(ctx, "read", k, &head, payload); err != nil {
		return false, err
	}
	n, err := k.outcome(c.addr)
	c.recycle(k)
	return err == nil && n == 0, err
}
