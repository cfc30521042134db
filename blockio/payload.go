package blockio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"millrace/block"
	"millrace/internal/errs"
)

// readPayload is the payload of READ, and of one range of READV.
type readPayload struct {
	Offset uint64 // from the start of the header's block, or of the file
	Length uint32 // in bytes
}

func appendReadPayload(b []byte, p readPayload) []byte {
	b = binary.LittleEndian.AppendUint64(b, p.Offset)
	b = binary.LittleEndian.AppendUint32(b, p.Length)
	return binary.LittleEndian.AppendUint32(b, 0) // reserved
}

// parseReadPayload decodes exactly readPayloadSize bytes.
func parseReadPayload(b []byte) readPayload {
	_ = b[readPayloadSize-1]
	return readPayload{Offset: binary.LittleEndian.Uint64(b), Length: binary.LittleEndian.Uint32(b[8:])}
}

// extent returns the bytes of the file that a range asks for, and an error if
// they are not all in the file or in the block that index names.
func (p readPayload) extent(g block.Geometry, index uint32) (block.Extent, error) {
	within := g.Whole()
	if index != noBlock {
		if int64(index) >= g.Blocks() {
			return block.Extent{}, fmt.Errorf("block %d of a file of %d blocks", index, g.Blocks())
		}
		within = g.Block(int64(index))
	}
	switch {
	case p.Length > MaxReadLength:
		return block.Extent{}, fmt.Errorf("a read of %d bytes is longer than %d", p.Length, MaxReadLength)
	case p.Offset > math.MaxInt64 || int64(p.Offset) > within.Length || int64(p.Length) > within.Length-int64(p.Offset):
		return block.Extent{}, fmt.Errorf("a read of %d bytes at %d reaches behind the end at %d", p.Length, p.Offset, within.Length)
	}
	return block.Extent{Offset: within.Offset + int64(p.Offset), Length: int64(p.Length)}, nil
}

// appendExtents appends the extents that the ranges in b ask for, as extent
// has them. Together they are not longer than MaxReadLength.
func appendExtents(to []block.Extent, b []byte, g block.Geometry, index uint32) ([]block.Extent, error) {
	if len(b)%readPayloadSize != 0 {
		return to, fmt.Errorf("ranges of %d bytes", len(b))
	}
	var sum int64
	for ; len(b) > 0; b = b[readPayloadSize:] {
		e, err := parseReadPayload(b).extent(g, index)
		if err != nil {
			return to, err
		}
		if sum += e.Length; sum > MaxReadLength {
			return to, fmt.Errorf("ranges of more than %d bytes", MaxReadLength)
		}
		to = append(to, e)
	}
	return to, nil
}

// Touch tells that an open file was used without the worker's seeing it,
// through a descriptor.
type Touch struct {
	FileID block.FileID
	Count  uint32 // how often since the last notice
}

func appendTouch(b []byte, t *Touch) []byte {
	b = append(b, t.FileID[:]...)
	b = binary.LittleEndian.AppendUint32(b, t.Count)
	return binary.LittleEndian.AppendUint32(b, 0) // reserved
}

func parseTouches(b []byte) ([]Touch, error) {
	if len(b)%touchSize != 0 {
		return nil, fmt.Errorf("touches of %d bytes", len(b))
	}
	touches := make([]Touch, 0, len(b)/touchSize)
	for ; len(b) > 0; b = b[touchSize:] {
		touches = append(touches, Touch{FileID: block.FileID(b[:16]), Count: binary.LittleEndian.Uint32(b[16:])})
	}
	return touches, nil
}

// descriptorPayload comes with a descriptor: where in it the file's bytes are.
type descriptorPayload struct {
	Base, Length uint64
	Mark         uint64 // of a file that fills; 0 and not on the wire for one that is whole
}

// size returns the bytes that d takes on the wire.
func (d *descriptorPayload) size() uint32 {
	if d.Mark == 0 {
		return descriptorSize
	}
	return descriptorSize + markSize
}

func appendDescriptor(b []byte, d descriptorPayload) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.Base)
	b = binary.LittleEndian.AppendUint64(b, d.Length)
	if d.Mark != 0 {
		b = binary.LittleEndian.AppendUint64(b, d.Mark)
	}
	return b
}

// cutMark returns the mark at the end of a payload, and what is before it.
func cutMark(b []byte) (mark uint64, rest []byte, err error) {
	if len(b) > markSize {
		rest = b[:len(b)-markSize]
		mark = binary.LittleEndian.Uint64(b[len(rest):])
	}
	if mark == 0 {
		return 0, nil, fmt.Errorf("%w: %d bytes without a mark", errProtocol, len(b))
	}
	return mark, rest, nil
}

// parseDescriptor decodes descriptorSize bytes for a file of length.
func parseDescriptor(b []byte, length int64) (base int64, err error) {
	_ = b[descriptorSize-1]
	d := descriptorPayload{Base: binary.LittleEndian.Uint64(b), Length: binary.LittleEndian.Uint64(b[8:])}
	if d.Length != uint64(length) || d.Base > uint64(math.MaxInt64-length) {
		return 0, fmt.Errorf("%w: a descriptor with %d bytes at %d for a file of %d", errProtocol, d.Length, d.Base, length)
	}
	return int64(d.Base), nil
}

// pageCRC is the checksum of one page. Page counts the pages that the ranges
// touch, in the order of the ranges: 0 is the page that holds the first byte.
type pageCRC struct {
	Page uint32
	CRC  uint32
}

// endPayload is the payload of END.
type endPayload struct {
	Failed bool
	Kind   errs.Kind
	Text   string
	CRCs   []pageCRC
}

// appendEnd appends the encoding of e; Text and CRCs must be within bounds.
func appendEnd(b []byte, e *endPayload) []byte {
	le := binary.LittleEndian
	var outcome uint16
	if e.Failed {
		outcome = 1
	}
	b = le.AppendUint16(b, outcome)
	b = le.AppendUint16(b, uint16(e.Kind))
	b = le.AppendUint32(b, uint32(len(e.Text)))
	b = le.AppendUint32(b, uint32(len(e.CRCs)))
	b = le.AppendUint32(b, 0) // reserved
	b = append(b, e.Text...)
	for _, c := range e.CRCs {
		b = le.AppendUint32(b, c.Page)
		b = le.AppendUint32(b, c.CRC)
	}
	return b
}

// parseEnd decodes all of b. The checksums are appended to crcs, whose room is
// used again.
func parseEnd(b []byte, crcs []pageCRC) (endPayload, error) {
	if len(b) < endFixed || len(b) > maxEnd {
		return endPayload{}, fmt.Errorf("%w: END of %d bytes", errProtocol, len(b))
	}
	le := binary.LittleEndian
	outcome, kind := le.Uint16(b), le.Uint16(b[2:])
	texts, count := le.Uint32(b[4:]), le.Uint32(b[8:])
	switch {
	case outcome > 1 || outcome == 0 && (kind != 0 || texts != 0):
		return endPayload{}, fmt.Errorf("%w: END with outcome %d, kind %d and %d bytes of text", errProtocol, outcome, kind, texts)
	case texts > maxEndText || count > maxPageCRCs || len(b) != endFixed+int(texts)+int(count)*crcSize:
		return endPayload{}, fmt.Errorf("%w: END of %d bytes with %d bytes of text and %d checksums", errProtocol, len(b), texts, count)
	}
	e := endPayload{Failed: outcome == 1, Kind: errs.Kind(kind), CRCs: crcs}
	b = b[endFixed:]
	if texts > 0 {
		e.Text = strings.ToValidUTF8(string(b[:texts]), "\uFFFD")
		b = b[texts:]
	}
	for ; len(b) > 0; b = b[crcSize:] {
		c := pageCRC{Page: le.Uint32(b), CRC: le.Uint32(b[4:])}
		if n := len(e.CRCs); n > len(crcs) && e.CRCs[n-1].Page >= c.Page {
			return endPayload{}, fmt.Errorf("%w: END's checksums are not in ascending order", errProtocol)
		}
		e.CRCs = append(e.CRCs, c)
	}
	return e, nil
}

// endOf returns the END that tells err.
func endOf(err error) endPayload {
	if err == nil {
		return endPayload{}
	}
	return endPayload{Failed: true, Kind: errs.KindOf(err), Text: cutText(err.Error(), maxEndText)}
}

// cutText returns at most n bytes of s, cut between characters.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// err returns the error that a failed END tells, nil for a success. Where the
// server says what failed, its words stand alone; else op on addr did.
func (e *endPayload) err(op, addr string) error {
	if !e.Failed {
		return nil
	}
	if e.Text == "" {
		return errs.E(e.Kind, op, addr, nil)
	}
	return errs.E(e.Kind, "", "", errors.New(e.Text))
}
