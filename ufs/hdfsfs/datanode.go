package hdfsfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"millrace/internal/errs"
)

// Of the data transfer protocol between clients and DataNodes.
const (
	transferVersion = 28
	opReadBlock     = 81
	statusSuccess   = 0
	checksumCRC32   = 1
	checksumCRC32C  = 2
	checksumSize    = 4

	maxResponse = 64 << 10 // bytes of the answer in front of the packets
	maxPacket   = 16 << 20 // bytes of data and checksums in a packet; Hadoop's own bound
	maxChunk    = 1 << 20  // bytes per checksum
)

// run is one request to a DataNode: bytes of one block, in order. It is used by
// one goroutine.
type run struct {
	conn    net.Conn
	in      *bufio.Reader
	stop    func() bool // of the context's watch over conn
	timeout time.Duration

	table *crc32.Table
	chunk int   // bytes per checksum
	at    int64 // offset in the block of the next packet
	from  int64 // offset in the block of the next byte to pass on
	end   int64 // offset in the block behind the last one

	checked []byte // of the last packet, to be passed on
	buf     []byte
}

// dialer connects to a DataNode.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// startRun asks the DataNode that conn leads to for length bytes of a block
// from an offset within it. Each piece of the answer must come within timeout.
// The connection is the run's; it is closed when ctx ends.
func startRun(ctx context.Context, conn net.Conn, timeout time.Duration, b *fileBlock, offset, length int64) (*run, error) {
	r := &run{
		conn: conn, in: bufio.NewReader(conn), timeout: timeout,
		from: offset, end: offset + length,
		stop: context.AfterFunc(ctx, func() { _ = conn.Close() }), // what is under way ends with an error
	}
	if err := r.request(b); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *run) close() {
	r.stop()
	_ = r.conn.Close() // nothing is written that could be lost
}

// request sends the request and reads the answer in front of the packets.
func (r *run) request(b *fileBlock) error {
	if err := r.conn.SetDeadline(time.Now().Add(r.timeout)); err != nil {
		return err
	}
	if _, err := r.conn.Write(readRequest(b, r.from, r.end-r.from)); err != nil {
		return err
	}
	n, err := binary.ReadUvarint(r.in)
	if err != nil {
		return unexpected(err)
	}
	if n > maxResponse {
		return corrupt("an answer of %d bytes", n)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r.in, message); err != nil {
		return unexpected(err)
	}
	resp, err := parseResponse(message)
	if err != nil {
		return err
	}
	if resp.status != statusSuccess {
		return errs.E(errs.Unavailable, "", "", fmt.Errorf("status %d: %s", resp.status, resp.message))
	}
	switch resp.checksum {
	case checksumCRC32:
		r.table = crc32.IEEETable
	case checksumCRC32C:
		r.table = crc32.MakeTable(crc32.Castagnoli)
	default:
		return errs.E(errs.Unsupported, "", "", fmt.Errorf("the block has no checksums that could be verified (type %d)", resp.checksum))
	}
	if resp.chunk < 1 || resp.chunk > maxChunk || resp.chunkOffset > uint64(r.from) {
		return corrupt("checksums of %d bytes from offset %d, asked for was %d", resp.chunk, resp.chunkOffset, r.from)
	}
	r.chunk, r.at = int(resp.chunk), int64(resp.chunkOffset)
	return nil
}

// read passes on the next bytes that were asked for, io.EOF behind the last.
func (r *run) read(p []byte) (int, error) {
	if r.from == r.end {
		return 0, io.EOF
	}
	for len(r.checked) == 0 {
		if err := r.packet(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.checked)
	r.checked = r.checked[n:]
	r.from += int64(n)
	return n, nil
}

// packet reads one packet and compares it with its checksums. A packet is its
// length (32 bits, with these), the length of its header (16 bits), the header,
// the checksums, the data; the first starts with the chunk that holds the
// offset asked for, the last before the end of the block is empty.
func (r *run) packet() error {
	if err := r.conn.SetReadDeadline(time.Now().Add(r.timeout)); err != nil {
		return err
	}
	const lengthSize = 4
	var lengths [lengthSize + 2]byte
	if _, err := io.ReadFull(r.in, lengths[:]); err != nil {
		return unexpected(err)
	}
	header := make([]byte, binary.BigEndian.Uint16(lengths[lengthSize:]))
	if _, err := io.ReadFull(r.in, header); err != nil {
		return unexpected(err)
	}
	h, err := parsePacketHeader(header)
	if err != nil {
		return err
	}
	switch {
	case h.length == 0:
		return corrupt("the DataNode ends at %d of %d", r.at, r.end)
	case h.length < 0 || h.length > maxPacket || h.offset != r.at:
		return corrupt("a packet of %d bytes at %d, expected was %d", h.length, h.offset, r.at)
	}
	data := int(h.length)
	sums := (data + r.chunk - 1) / r.chunk * checksumSize
	if size := binary.BigEndian.Uint32(lengths[:]); int64(size) != int64(lengthSize+sums+data) || size > maxPacket {
		return corrupt("a packet of %d bytes with %d of data and %d of checksums", size, data, sums)
	}
	if cap(r.buf) < sums+data {
		r.buf = make([]byte, sums+data)
	}
	body := r.buf[:sums+data]
	if _, err := io.ReadFull(r.in, body); err != nil {
		return unexpected(err)
	}
	if err := r.verify(body[:sums], body[sums:]); err != nil {
		return err
	}
	first, last := max(r.from-r.at, 0), min(r.end-r.at, int64(data))
	r.at += int64(data)
	if first < last {
		r.checked = body[int64(sums)+first : int64(sums)+last]
	}
	return nil
}

// verify compares data with the checksums of its chunks.
func (r *run) verify(sums, data []byte) error {
	for i := 0; len(data) > 0; i += checksumSize {
		n := min(r.chunk, len(data))
		if want, got := binary.BigEndian.Uint32(sums[i:]), crc32.Checksum(data[:n], r.table); got != want {
			return corrupt("checksum %08x instead of %08x near offset %d of the block", got, want, r.at)
		}
		data = data[n:]
	}
	return nil
}

// readRequest builds the request for length bytes of a block from offset on.
func readRequest(b *fileBlock, offset, length int64) []byte {
	field := func(to []byte, num protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(to, num, protowire.BytesType), value)
	}
	number := func(to []byte, num protowire.Number, value int64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(to, num, protowire.VarintType), uint64(value))
	}
	base := field(nil, 1, b.id)
	if len(b.token) > 0 {
		base = field(base, 2, b.token)
	}
	op := field(nil, 1, field(field(nil, 1, base), 2, []byte("millrace")))
	op = number(number(op, 2, offset), 3, length)
	return protowire.AppendBytes([]byte{0, transferVersion, opReadBlock}, op)
}

// response is the answer in front of the packets.
type response struct {
	status      uint64
	message     string
	checksum    uint64 // its type
	chunk       uint64 // bytes per checksum
	chunkOffset uint64 // where in the block the first packet starts
}

func parseResponse(b []byte) (response, error) {
	var out response
	status := false
	err := fields(b, func(num int, value uint64, message []byte) error {
		switch num {
		case 1:
			out.status, status = value, true
		case 4:
			return fields(message, func(num int, value uint64, message []byte) error {
				switch num {
				case 1:
					return fields(message, func(num int, value uint64, _ []byte) error {
						switch num {
						case 1:
							out.checksum = value
						case 2:
							out.chunk = value
						}
						return nil
					})
				case 2:
					out.chunkOffset = value
				}
				return nil
			})
		case 5:
			out.message = string(message)
		}
		return nil
	})
	if err == nil && !status {
		err = corrupt("an answer without a status")
	}
	return out, err
}

// packetHeader is the header of a packet.
type packetHeader struct {
	offset int64 // in the block
	length int32 // bytes of data
}

func parsePacketHeader(b []byte) (packetHeader, error) {
	var out packetHeader
	err := fields(b, func(num int, value uint64, _ []byte) error {
		switch num {
		case 1:
			out.offset = int64(value)
		case 4:
			out.length = int32(uint32(value))
		}
		return nil
	})
	return out, err
}

// fields calls f with each field of a protobuf message: with its value, or with
// its bytes.
func fields(b []byte, f func(num int, value uint64, message []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return corrupt("no protobuf message: %v", protowire.ParseError(n))
		}
		b = b[n:]
		var value uint64
		var message []byte
		switch typ {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			value, n = protowire.ConsumeFixed64(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			value = uint64(v)
		case protowire.BytesType:
			message, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return corrupt("no protobuf message: %v", protowire.ParseError(n))
		}
		if err := f(int(num), value, message); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return errs.E(errs.Corrupt, "", "", fmt.Errorf(format, args...))
}

// unexpected says that the end of a connection is not the end of the bytes.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
