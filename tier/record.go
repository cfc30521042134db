package tier

import (
	"encoding/binary"
	"errors"
	"fmt"

	"millrace/block"
)

// Types of index records. Numbers are never changed or reused; a reader skips
// unknown types from recordOptional on and refuses the others.
const (
	recordPart       = 1 // a backing file exists
	recordPages      = 2 // pages are present
	recordDropPages  = 3 // pages are gone
	recordDropPart   = 4 // a backing file is gone
	recordCheckpoint = 5 // everything before a position is on the disk
	recordEnd        = 6 // the snapshot is complete
	recordOptional   = 128
)

// kind says what the bytes of a page are.
type kind uint8

// The kinds. This release writes kindCached and kindReplica alone; the formats
// know the rest.
const (
	kindCached  kind = 1 // a copy of what the under-store has
	kindDirty   kind = 2 // not yet in the under-store
	kindParity  kind = 3 // of an erasure-coded file
	kindReplica kind = 4 // a copy of what the under-store has, beside its owner's
)

const (
	flagVisited = 1 << 0 // pages: was hit since the policy last looked
	flagClean   = 1 << 0 // checkpoint: the store was closed
)

const (
	frameHeader   = 8
	partFixed     = 1 + 1 + 1 + 1 + 8 + 16 + 8 + 8 + 8 + 4 + 4
	pagesFixed    = 1 + 1 + 1 + 1 + 8 + 8 + 4 + 4 + 4 + 4
	dropFixed     = 1 + 3 + 8 + 4 + 4 + 4
	dropPartFixed = 1 + 3 + 8
	checkFixed    = 1 + 1 + 2 + 8 + 8 + 8
	endFixed      = 1 + 3 + 8

	maxPagesPerBlock = int(block.MaxBlockSize / block.PageSize)
	// maxPayload bounds a record's payload, in bytes.
	maxPayload = partFixed + block.MaxPathLength + block.MaxTagLength
)

var (
	errRecord      = errors.New("malformed index record")
	errNewerRecord = errors.New("index record of a newer release")
)

// record is any index record; Type says which fields hold.
type record struct {
	Type  uint8
	Flags uint8
	Kind  kind
	Shard uint8

	Serial uint64 // of the part within this directory: all but checkpoint and end

	// recordPart
	File      block.FileID
	MountID   uint64
	Length    int64
	BlockSize int64
	Path, Tag []byte // alias the decoded payload

	// recordPages and recordDropPages: pages First.. of the block
	Generation  uint64
	Block       uint32
	BlockLength uint32 // in bytes
	First       uint32
	Count       uint32
	CRCs        []uint32 // Count of them; recordPages only

	// recordCheckpoint: all records before Offset of log segment Segment
	// are durable, and so are the pages that they tell of
	Segment uint64
	Offset  uint64
	UnixMS  uint64

	Records uint64 // recordEnd: how many came before
}

// appendFrame appends r to b as a frame:
//
//	u32 n, length of the payload | u32 CRC32C of n and the payload | payload
//
// The payloads are specified in FORMAT.md.
func appendFrame(b []byte, r *record) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = append(b, make([]byte, frameHeader)...)
	switch r.Type {
	case recordPart:
		b = append(b, r.Type, byte(r.Kind), r.Shard, 0)
		b = le.AppendUint64(b, r.Serial)
		b = append(b, r.File[:]...)
		b = le.AppendUint64(b, r.MountID)
		b = le.AppendUint64(b, uint64(r.Length))
		b = le.AppendUint64(b, uint64(r.BlockSize))
		b = le.AppendUint32(b, uint32(len(r.Path)))
		b = le.AppendUint32(b, uint32(len(r.Tag)))
		b = append(append(b, r.Path...), r.Tag...)
	case recordPages:
		b = append(b, r.Type, byte(r.Kind), r.Flags, 0)
		b = le.AppendUint64(b, r.Serial)
		b = le.AppendUint64(b, r.Generation)
		b = le.AppendUint32(b, r.Block)
		b = le.AppendUint32(b, r.BlockLength)
		b = le.AppendUint32(b, r.First)
		b = le.AppendUint32(b, uint32(len(r.CRCs)))
		for _, crc := range r.CRCs {
			b = le.AppendUint32(b, crc)
		}
	case recordDropPages:
		b = append(b, r.Type, 0, 0, 0)
		b = le.AppendUint64(b, r.Serial)
		b = le.AppendUint32(b, r.Block)
		b = le.AppendUint32(b, r.First)
		b = le.AppendUint32(b, r.Count)
	case recordDropPart:
		b = append(b, r.Type, 0, 0, 0)
		b = le.AppendUint64(b, r.Serial)
	case recordCheckpoint:
		b = append(b, r.Type, r.Flags, 0, 0)
		b = le.AppendUint64(b, r.Segment)
		b = le.AppendUint64(b, r.Offset)
		b = le.AppendUint64(b, r.UnixMS)
	case recordEnd:
		b = append(b, r.Type, 0, 0, 0)
		b = le.AppendUint64(b, r.Records)
	}
	payload := b[start+frameHeader:]
	le.PutUint32(b[start:], uint32(len(payload)))
	le.PutUint32(b[start+4:], frameChecksum(b[start:start+4], payload))
	return b
}

func frameChecksum(length, payload []byte) uint32 {
	return block.UpdateChecksum(block.Checksum(length), payload)
}

// decodeRecord reads a frame's payload into r. It reuses r.CRCs, and r.Path
// and r.Tag alias payload. It allocates at most 4 bytes per 4 bytes of input.
func decodeRecord(payload []byte, r *record) error {
	if len(payload) == 0 {
		return fmt.Errorf("%w: empty", errRecord)
	}
	*r = record{Type: payload[0], CRCs: r.CRCs[:0]}
	var err error
	switch r.Type {
	case recordPart:
		err = r.decodePart(payload)
	case recordPages:
		err = r.decodePages(payload)
	case recordDropPages, recordDropPart, recordCheckpoint, recordEnd:
		err = r.decodeFixed(payload)
	default:
		if r.Type < recordOptional {
			return fmt.Errorf("%w: type %d", errNewerRecord, r.Type)
		}
	}
	return err
}

func (r *record) decodePart(b []byte) error {
	if len(b) < partFixed {
		return fmt.Errorf("%w: part of %d bytes", errRecord, len(b))
	}
	le := binary.LittleEndian
	r.Kind, r.Shard = kind(b[1]), b[2]
	r.Serial = le.Uint64(b[4:])
	copy(r.File[:], b[12:28])
	r.MountID = le.Uint64(b[28:])
	r.Length = int64(le.Uint64(b[36:]))
	r.BlockSize = int64(le.Uint64(b[44:]))
	path, tag := uint64(le.Uint32(b[52:])), uint64(le.Uint32(b[56:]))
	if path > block.MaxPathLength || tag > block.MaxTagLength || uint64(len(b)) != partFixed+path+tag {
		return fmt.Errorf("%w: part of %d bytes with a path of %d and a tag of %d", errRecord, len(b), path, tag)
	}
	r.Path, r.Tag = b[partFixed:partFixed+path], b[partFixed+path:]
	if r.Kind < kindCached || r.Kind > kindReplica || b[3] != 0 {
		return fmt.Errorf("%w: part of kind %d", errNewerRecord, r.Kind)
	}
	if err := (block.Geometry{Length: r.Length, BlockSize: r.BlockSize}).Validate(); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	if r.File.IsZero() {
		return fmt.Errorf("%w: part without a file ID", errRecord)
	}
	return nil
}

func (r *record) decodePages(b []byte) error {
	if len(b) < pagesFixed {
		return fmt.Errorf("%w: pages of %d bytes", errRecord, len(b))
	}
	le := binary.LittleEndian
	r.Kind, r.Flags = kind(b[1]), b[2]
	r.Serial, r.Generation = le.Uint64(b[4:]), le.Uint64(b[12:])
	r.Block, r.BlockLength = le.Uint32(b[20:]), le.Uint32(b[24:])
	r.First, r.Count = le.Uint32(b[28:]), le.Uint32(b[32:])
	if !r.pagesInBlock() || len(b) != pagesFixed+4*int(r.Count) || int64(r.BlockLength) > block.MaxBlockSize {
		return fmt.Errorf("%w: pages %d+%d in %d bytes", errRecord, r.First, r.Count, len(b))
	}
	if r.Kind < kindCached || r.Kind > kindReplica || r.Flags&^flagVisited != 0 || b[3] != 0 {
		return fmt.Errorf("%w: pages of kind %d, flags %#x", errNewerRecord, r.Kind, r.Flags)
	}
	for b = b[pagesFixed:]; len(b) > 0; b = b[4:] {
		r.CRCs = append(r.CRCs, le.Uint32(b))
	}
	return nil
}

func (r *record) decodeFixed(b []byte) error {
	want := map[uint8]int{
		recordDropPages: dropFixed, recordDropPart: dropPartFixed,
		recordCheckpoint: checkFixed, recordEnd: endFixed,
	}[r.Type]
	if len(b) != want {
		return fmt.Errorf("%w: type %d of %d bytes", errRecord, r.Type, len(b))
	}
	le := binary.LittleEndian
	r.Flags = b[1]
	if b[2] != 0 || b[3] != 0 || r.Flags != 0 && (r.Type != recordCheckpoint || r.Flags != flagClean) {
		return fmt.Errorf("%w: type %d with flags %#x", errNewerRecord, r.Type, r.Flags)
	}
	switch r.Type {
	case recordDropPages:
		r.Serial = le.Uint64(b[4:])
		r.Block, r.First, r.Count = le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:])
		if !r.pagesInBlock() {
			return fmt.Errorf("%w: drop of pages %d+%d", errRecord, r.First, r.Count)
		}
	case recordDropPart:
		r.Serial = le.Uint64(b[4:])
	case recordCheckpoint:
		r.Segment, r.Offset, r.UnixMS = le.Uint64(b[4:]), le.Uint64(b[12:]), le.Uint64(b[20:])
	case recordEnd:
		r.Records = le.Uint64(b[4:])
	}
	return nil
}

func (r *record) pagesInBlock() bool {
	return r.Count > 0 && uint64(r.First)+uint64(r.Count) <= uint64(maxPagesPerBlock)
}
