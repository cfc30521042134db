package blockio

import (
	"encoding/binary"
	"fmt"
	"io"

	"millrace/block"
	"millrace/internal/errs"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Features that a peer may offer, for ops that are optional.
const (
	FeatureReadV    uint64 = 1 << 0 // Conn.ReadV
	FeatureOpenRead uint64 = 1 << 1 // Conn.OpenRead
	FeatureFD       uint64 = 1 << 2 // Conn.Descriptor; on Unix sockets alone
	FeatureTouch    uint64 = 1 << 3 // Conn.Touch
	FeatureWrite    uint64 = 1 << 4 // reserved
	FeatureRecalls  uint64 = 1 << 5 // Conn.Recalls; on Unix sockets alone
	FeatureInPlace  uint64 = 1 << 6 // Conn.PartialDescriptor and Conn.ReadInPlace; where FeatureFD is

	ourFeatures = FeatureReadV | FeatureOpenRead | FeatureFD | FeatureTouch | FeatureRecalls | FeatureInPlace
)

const (
	magic       = "MILLRACE"
	preludeSize = 16 // magic, two u16, u32 length of the body
	helloTail   = 4  // checksum of all before
	maxHello    = 16 << 10
	maxToken    = 8 << 10
	maxIDText   = 256
)

// clientHello is the first thing on a connection.
type clientHello struct {
	Least, Most uint16 // versions that the client speaks
	Features    uint64
	BootID      string // of the client's host
	WorkerID    string // of the client, if it is a worker
	Token       []byte // reserved for security; empty when that is off
}

// Hello is what a server says about itself in the handshake.
type Hello struct {
	Version  uint16
	Features uint64 // offered by both sides
	WorkerID block.WorkerID
	BootID   string // the host's /proc/sys/kernel/random/boot_id
	// MaxRequests bounds the requests in flight and MaxHandles the open
	// handles of one connection.
	MaxRequests, MaxHandles uint32
	MaxRead                 uint32 // bytes of one READ
}

// serverHello is the answer: Hello, or why there is none.
type serverHello struct {
	Hello
	Failed bool
	Kind   errs.Kind
	Text   string
}

func encodeClientHello(h *clientHello) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, 256), magic...)
	b = le.AppendUint16(b, h.Least)
	b = le.AppendUint16(b, h.Most)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, h.Features)
	b = appendText(b, h.BootID)
	b = appendText(b, h.WorkerID)
	b = appendText(b, h.Token)
	return closeHello(b)
}

func encodeServerHello(h *serverHello) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, 256), magic...)
	b = le.AppendUint16(b, h.Version)
	var outcome uint16
	if h.Failed {
		outcome = 1
	}
	b = le.AppendUint16(b, outcome)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, h.Features)
	b = le.AppendUint32(b, h.MaxRequests)
	b = le.AppendUint32(b, h.MaxHandles)
	b = le.AppendUint32(b, h.MaxRead)
	b = le.AppendUint32(b, uint32(h.Kind))
	b = appendText(b, h.WorkerID)
	b = appendText(b, h.BootID)
	b = appendText(b, h.Text)
	return closeHello(b)
}

// closeHello fills in the length of the body and appends the checksum.
func closeHello(b []byte) []byte {
	le := binary.LittleEndian
	le.PutUint32(b[12:], uint32(len(b)-preludeSize))
	return le.AppendUint32(b, block.Checksum(b))
}

func appendText[T ~string | ~[]byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// readHello reads one hello and returns the two numbers behind the magic and
// the body.
func readHello(r io.Reader) (first, second uint16, body []byte, err error) {
	le := binary.LittleEndian
	var prelude [preludeSize]byte
	if _, err := io.ReadFull(r, prelude[:]); err != nil {
		return 0, 0, nil, err
	}
	if string(prelude[:8]) != magic {
		return 0, 0, nil, fmt.Errorf("%w: the peer does not speak it (wrong magic)", errProtocol)
	}
	n := le.Uint32(prelude[12:])
	if n > maxHello {
		return 0, 0, nil, fmt.Errorf("%w: a hello of %d bytes is longer than %d", errProtocol, n, maxHello)
	}
	b := make([]byte, n+helloTail)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, 0, nil, err
	}
	crc := block.UpdateChecksum(block.Checksum(prelude[:]), b[:n])
	if crc != le.Uint32(b[n:]) {
		return 0, 0, nil, fmt.Errorf("%w: hello's checksum does not match", errProtocol)
	}
	return le.Uint16(prelude[8:]), le.Uint16(prelude[10:]), b[:n], nil
}

func readClientHello(r io.Reader) (clientHello, error) {
	least, most, b, err := readHello(r)
	if err != nil {
		return clientHello{}, err
	}
	f := fields{b: b}
	h := clientHello{Least: least, Most: most, Features: f.u64()}
	h.BootID = string(f.text(maxIDText))
	h.WorkerID = string(f.text(maxIDText))
	h.Token = f.text(maxToken)
	return h, f.err
}

func readServerHello(r io.Reader) (serverHello, error) {
	version, outcome, b, err := readHello(r)
	if err != nil {
		return serverHello{}, err
	}
	f := fields{b: b}
	h := serverHello{Failed: outcome != 0}
	h.Version = version
	h.Features = f.u64()
	h.MaxRequests, h.MaxHandles, h.MaxRead = f.u32(), f.u32(), f.u32()
	h.Kind = errs.Kind(f.u32())
	h.WorkerID = block.WorkerID(f.text(maxIDText))
	h.BootID = string(f.text(maxIDText))
	h.Text = string(f.text(maxEndText))
	if f.err == nil && !h.Failed && (h.MaxRequests == 0 || h.MaxHandles == 0 || h.MaxRead == 0) {
		return serverHello{}, fmt.Errorf("%w: hello with a limit of 0", errProtocol)
	}
	return h, f.err
}

// fields reads the fields of a body in order; the first that is cut short
// sets err. Bytes behind the last field belong to later versions.
type fields struct {
	b   []byte
	err error
}

func (f *fields) take(n int) []byte {
	if f.err == nil && len(f.b) < n {
		f.err = fmt.Errorf("%w: hello is cut short", errProtocol)
	}
	if f.err != nil {
		return nil
	}
	field := f.b[:n]
	f.b = f.b[n:]
	return field
}

func (f *fields) u32() uint32 {
	if b := f.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if b := f.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (f *fields) text(bound uint32) []byte {
	n := f.u32()
	if f.err == nil && n > bound {
		f.err = fmt.Errorf("%w: a field of %d bytes in a hello is longer than %d", errProtocol, n, bound)
	}
	return f.take(int(n))
}
