package blockio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"millrace/block"
)

// op says what a frame is. Requests go to the server, the top bit marks what
// goes to the client. Numbers are never changed or reused.
type op uint8

const (
	opOpen     op = 1    // payload: a ticket; END's handle names it from now on
	opClose    op = 2    // gives a handle back; no answer
	opRead     op = 3    // payload: readPayload, and a mark with flagInPlace
	opReadV    op = 4    // payload: 1 to MaxRanges of readPayload
	opOpenRead op = 5    // payload: readPayload, then a ticket; OPEN and READ in one
	opFD       op = 6    // asks for a descriptor of the file, by SCM_RIGHTS
	opTouch    op = 7    // payload: up to maxTouches of Touch
	opCancel   op = 8    // ends the request of that ID early; no answer
	opWrite    op = 9    // reserved
	opRecalls  op = 10   // payload: the position to ask from
	opData     op = 0x80 // bytes, in order
	opEnd      op = 0x81 // the outcome; the last frame of a request
)

// Sizes and bounds of the wire, in bytes where nothing else is said.
const (
	headerSize = 64
	// MaxDataFrame bounds the payload of a DATA frame.
	MaxDataFrame = 1 << 20
	// MaxReadLength bounds one READ.
	MaxReadLength = 64 << 20

	// MaxRanges bounds the ranges of one READV.
	MaxRanges = 64

	readPayloadSize    = 16
	descriptorSize     = 16
	markSize           = 8
	maxTouches         = 1024
	touchSize          = 24
	recallsSize        = 8  // of the question
	recallsFixed       = 16 // of the answer, before the files
	maxOpenReadPayload = readPayloadSize + block.MaxTicketSize

	endFixed    = 16
	crcSize     = 8
	maxEndText  = 1024
	maxPageCRCs = 512
	maxEnd      = endFixed + maxEndText + maxPageCRCs*crcSize
)

// noBlock in a header says that offsets count from the start of the file.
const noBlock = 0xFFFFFFFF

// Flags. The low half is optional: a bit that the receiver does not know is
// ignored. The high half is critical: a request with an unknown one is
// refused with errs.Unsupported, a response with one ends the connection.
const (
	flagReplica      uint32 = 1 << 0  // keep a replica, filled from the owner
	flagFill         uint32 = 1 << 1  // fetch a file of one page before its descriptor is passed
	flagCachedOnly   uint32 = 1 << 16 // answer from the cache or with errs.NotCached
	flagReadThrough  uint32 = 1 << 17 // for a replica: fetch as the owner, or answer as to flagCachedOnly
	flagInPlace      uint32 = 1 << 18 // of READ and FD: the client can read the server's file as it fills
	criticalFlags    uint32 = 0xFFFF0000
	requestCritical         = flagCachedOnly | flagReadThrough | flagInPlace
	responseCritical uint32 = 0
)

var errProtocol = errors.New("protocol error")

// header stands before every payload. Layout in SPEC.md.
type header struct {
	Length         uint32 // of the payload
	Op             op
	Priority       Priority
	Shard          uint16
	RequestID      uint64
	Handle         uint32
	Block          uint32
	Flags          uint32
	TimeoutMS      uint32 // 0 is none
	Generation     uint64
	PlacementEpoch uint64
	TraceID        uint64
}

// appendHeader appends the encoding of h to b.
func appendHeader(b []byte, h *header) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = le.AppendUint32(b, h.Length)
	b = append(b, byte(h.Op), byte(h.Priority))
	b = le.AppendUint16(b, h.Shard)
	b = le.AppendUint64(b, h.RequestID)
	b = le.AppendUint32(b, h.Handle)
	b = le.AppendUint32(b, h.Block)
	b = le.AppendUint32(b, h.Flags)
	b = le.AppendUint32(b, h.TimeoutMS)
	b = le.AppendUint64(b, h.Generation)
	b = le.AppendUint64(b, h.PlacementEpoch)
	b = le.AppendUint64(b, h.TraceID)
	b = le.AppendUint32(b, 0) // reserved
	return le.AppendUint32(b, block.Checksum(b[start:start+headerSize-4]))
}

// parseHeader decodes the first headerSize bytes of b and checks the checksum,
// that the op is known and that the payload is within the op's bounds.
func parseHeader(b []byte) (header, error) {
	_ = b[headerSize-1]
	le := binary.LittleEndian
	if got := block.Checksum(b[:headerSize-4]); got != le.Uint32(b[headerSize-4:]) {
		return header{}, fmt.Errorf("%w: header's checksum does not match", errProtocol)
	}
	h := header{
		Length:         le.Uint32(b),
		Op:             op(b[4]),
		Priority:       Priority(b[5]),
		Shard:          le.Uint16(b[6:]),
		RequestID:      le.Uint64(b[8:]),
		Handle:         le.Uint32(b[16:]),
		Block:          le.Uint32(b[20:]),
		Flags:          le.Uint32(b[24:]),
		TimeoutMS:      le.Uint32(b[28:]),
		Generation:     le.Uint64(b[32:]),
		PlacementEpoch: le.Uint64(b[40:]),
		TraceID:        le.Uint64(b[48:]),
	}
	least, most, known := h.Op.bounds()
	switch {
	case !known:
		return header{}, fmt.Errorf("%w: op %d is unknown", errProtocol, h.Op)
	case h.Length < least || h.Length > most:
		return header{}, fmt.Errorf("%w: a payload of %d bytes for op %d is not in [%d, %d]", errProtocol, h.Length, h.Op, least, most)
	case h.RequestID == 0 && h.Op != opClose:
		return header{}, fmt.Errorf("%w: op %d without a request ID", errProtocol, h.Op)
	}
	return h, nil
}

// bounds returns the least and the most bytes of payload that o may have.
func (o op) bounds() (least, most uint32, known bool) {
	switch o {
	case opOpen:
		return 1, block.MaxTicketSize, true
	case opClose, opCancel, opFD:
		return 0, 0, true
	case opRead:
		return readPayloadSize, readPayloadSize + markSize, true
	case opReadV:
		return readPayloadSize, MaxRanges * readPayloadSize, true
	case opOpenRead:
		return readPayloadSize + 1, maxOpenReadPayload, true
	case opTouch:
		return touchSize, maxTouches * touchSize, true
	case opWrite:
		return 0, MaxDataFrame, true
	case opRecalls:
		return recallsSize, recallsSize, true
	case opData:
		return 1, MaxDataFrame, true
	case opEnd:
		return endFixed, maxEnd, true
	default:
		return 0, 0, false
	}
}

// feature returns the feature that must be offered for o to be sent; 0 if it
// is no option.
func (o op) feature() uint64 {
	switch o {
	case opReadV:
		return FeatureReadV
	case opOpenRead:
		return FeatureOpenRead
	case opFD:
		return FeatureFD
	case opTouch:
		return FeatureTouch
	case opWrite:
		return FeatureWrite
	case opRecalls:
		return FeatureRecalls
	default:
		return 0
	}
}

// toClient reports whether o is sent by servers.
func (o op) toClient() bool { return o&0x80 != 0 }
