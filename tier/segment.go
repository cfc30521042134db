package tier

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"millrace/block"
	"millrace/internal/errs"
)

// Names and headers of index files.
const (
	segmentPrefix  = "log-"
	snapshotPrefix = "snapshot-"
	tempSuffix     = ".tmp"

	headerSize    = 64
	formatVersion = 1

	segmentMagic  = "MILLLOG\n"
	snapshotMagic = "MILLSNP\n"
)

// header stands at the start of each index file:
//
//	8 bytes magic | u32 format version | u32 CRC32C of the header with this
//	field 0 | u64 sequence | 16 bytes boot ID | 24 bytes 0
type header struct {
	magic string
	seq   uint64
	boot  [16]byte
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, h.magic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint64(b[16:], h.seq)
	copy(b[24:40], h.boot[:])
	binary.LittleEndian.PutUint32(b[12:], block.Checksum(b))
	return b
}

func decodeHeader(b []byte, magic string) (header, error) {
	if len(b) < headerSize || string(b[:8]) != magic {
		return header{}, fmt.Errorf("%w: not an index file", errRecord)
	}
	c := append([]byte(nil), b[:headerSize]...)
	sum := binary.LittleEndian.Uint32(c[12:])
	copy(c[12:16], []byte{0, 0, 0, 0})
	if block.Checksum(c) != sum {
		return header{}, fmt.Errorf("%w: header checksum", errRecord)
	}
	if v := binary.LittleEndian.Uint32(c[8:]); v != formatVersion {
		return header{}, fmt.Errorf("%w: format %d, this release knows %d", errNewerRecord, v, formatVersion)
	}
	h := header{magic: magic, seq: binary.LittleEndian.Uint64(c[16:])}
	copy(h.boot[:], c[24:40])
	return h, nil
}

func segmentName(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x", segmentPrefix, seq))
}

func snapshotName(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x", snapshotPrefix, seq))
}

// parseIndexName reads the sequence of an index file's name.
func parseIndexName(name, prefix string) (seq uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 16, 64)
	return seq, err == nil
}

// readRecords reads the header and the records of an index file and calls
// apply with each record and the offset behind it, in order. It stops without
// an error at the end, at the zeros of room that was never written, and at
// the first frame that is not whole or does not match its checksum: valid is
// the offset up to which the file is good, and torn says that bytes follow
// it. An error is one of the disk, of a newer release, or of apply. The
// record is reused. Memory is bounded by the largest frame.
func readRecords(f io.ReaderAt, magic string, apply func(r *record, end int64) error) (valid int64, torn bool, err error) {
	src := bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 1<<20)
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(src, head); err != nil {
		return 0, true, ignoreEOF(err)
	}
	if _, err = decodeHeader(head, magic); err != nil {
		if errors.Is(err, errNewerRecord) {
			return 0, true, errs.E(errs.Invalid, "", "", err)
		}
		return 0, true, nil
	}
	valid = headerSize
	var r record
	var payload []byte
	for {
		payload, torn, err = readFrame(src, payload)
		if err != nil || payload == nil {
			return valid, torn, err
		}
		if err := decodeRecord(payload, &r); err != nil {
			if errors.Is(err, errNewerRecord) {
				return valid, true, errs.E(errs.Invalid, "", "", err)
			}
			return valid, true, nil
		}
		valid += int64(frameHeader + len(payload))
		if err := apply(&r, valid); err != nil {
			return valid, false, err
		}
	}
}

// readFrame returns the next frame's payload, or nil at the end of the good
// part of the file. It reuses buf.
func readFrame(src io.Reader, buf []byte) (payload []byte, torn bool, err error) {
	var head [frameHeader]byte
	if n, err := io.ReadFull(src, head[:]); err != nil {
		return nil, n > 0, ignoreEOF(err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n == 0 {
		return nil, head != [frameHeader]byte{}, nil
	}
	if n > uint32(maxPayload) {
		return nil, true, nil
	}
	if cap(buf) < int(n) {
		buf = make([]byte, max(int(n), 4<<10))
	}
	buf = buf[:n]
	if _, err := io.ReadFull(src, buf); err != nil {
		return nil, true, ignoreEOF(err)
	}
	if frameChecksum(head[:4], buf) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, true, nil
	}
	return buf, false, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
