package blockio

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"millrace/block"
	"millrace/internal/errs"
)

// MaxRecalls bounds the files of one answer.
const MaxRecalls = 1024

// Recalls is what a server wants back of the descriptors that it handed out:
// those that their holder does not use are to be closed, and those that it uses
// to be given to nobody else once their users have left. Whoever wants such a
// file again asks anew.
type Recalls struct {
	// Position is what to ask from the next time.
	Position uint64
	// Idle is how long a descriptor that nobody uses may be kept, in whole ms; 0
	// wants all back, those of files that are in use included. AnyTime is as
	// long as one likes.
	Idle time.Duration
	// Files are wanted back for themselves, at most MaxRecalls.
	Files []block.FileID
}

// AnyTime is Recalls.Idle where the server needs no room.
const AnyTime time.Duration = math.MaxInt64

// anyTimeMS is AnyTime on the wire.
const anyTimeMS = math.MaxUint32

// Recaller is a Handler that wants descriptors back.
type Recaller interface {
	// Recalls tells what was recalled from a position on that it told before.
	// Every descriptor whose hand-out had begun before it told the position is
	// meant; of one whose answer is under way the client knows that it asked
	// before. 0, and a position that it does not know, is answered by wanting
	// all back.
	Recalls(ctx context.Context, since uint64) (Recalls, error)
}

// recalls answers RECALLS.
func (r *request) recalls() error {
	v, err := r.conn.srv.recaller.Recalls(r.ctx, r.since)
	switch {
	case err != nil:
		return err
	case len(v.Files) > MaxRecalls || v.Idle < 0:
		return errs.E(errs.Internal, "recall descriptors", "", fmt.Errorf("%d files, idle for %v", len(v.Files), v.Idle))
	}
	b := appendRecalls(make([]byte, 0, recallsFixed+len(v.Files)*len(block.FileID{})), &v)
	r.allowed = int64(len(b))
	return r.Write(b)
}

func appendRecalls(b []byte, v *Recalls) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, v.Position)
	b = le.AppendUint32(b, uint32(min(v.Idle/time.Millisecond, anyTimeMS)))
	b = le.AppendUint32(b, 0) // reserved
	for i := range v.Files {
		b = append(b, v.Files[i][:]...)
	}
	return b
}

func parseRecalls(b []byte) (Recalls, error) {
	const id = len(block.FileID{})
	if len(b) < recallsFixed || (len(b)-recallsFixed)%id != 0 || len(b) > recallsFixed+MaxRecalls*id {
		return Recalls{}, fmt.Errorf("%w: recalls of %d bytes", errProtocol, len(b))
	}
	le := binary.LittleEndian
	v := Recalls{Position: le.Uint64(b), Idle: AnyTime}
	if ms := le.Uint32(b[8:]); ms != anyTimeMS {
		v.Idle = time.Duration(ms) * time.Millisecond
	}
	for b = b[recallsFixed:]; len(b) > 0; b = b[id:] {
		v.Files = append(v.Files, block.FileID(b[:id]))
	}
	return v, nil
}

// Recalls asks the server which of its descriptors it wants back, from a
// position on that it told before; 0 is the first time. Without FeatureRecalls
// in Hello it is errs.Unsupported.
func (c *Conn) Recalls(ctx context.Context, since uint64) (Recalls, error) {
	const op = "ask what is recalled"
	if err := c.offers(FeatureRecalls, op); err != nil {
		return Recalls{}, err
	}
	answer := make([]byte, recallsFixed+MaxRecalls*len(block.FileID{}))
	k := c.newCall()
	k.upTo, k.length = true, int64(len(answer))
	k.into(answer, 0)
	head := header{Op: opRecalls, Block: noBlock, Length: recallsSize}
	if err := c.do(ctx, op, k, &head, binary.LittleEndian.AppendUint64(nil, since)); err != nil {
		return Recalls{}, err
	}
	got, err := k.got, k.end.err(op, c.addr)
	c.recycle(k)
	if err != nil {
		return Recalls{}, err
	}
	v, err := parseRecalls(answer[:got])
	if err != nil {
		return Recalls{}, errs.E(errs.Unavailable, op, c.addr, err)
	}
	return v, nil
}
