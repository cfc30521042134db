package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Ticket is what every open yields: the right to read one version of one
// file, and all that a worker needs to find its bytes. Masters issue tickets;
// clients carry them to workers unread.
type Ticket struct {
	MountID   uint64 // under-store mount
	Path      string // below the under-store mount, without a leading slash; any bytes
	Tag       string // version tag
	Length    int64  // of the file, in bytes
	BlockSize int64  // in bytes
	FileID    FileID
	Expiry    time.Time // UTC, in whole milliseconds; the zero time never expires
	// Unsettled marks a version that may still change under the same tag: it
	// is served, but not kept in a cache.
	Unsettled bool
	KeyID     uint32 // of the key that signed it; 0 is unsigned
	Identity  string // whom it was issued to; empty when security is off
	Signature []byte // over AppendUnsigned; empty when security is off
}

// Bounds of a ticket's fields, in bytes.
const (
	MaxPathLength = 64 << 10
	MaxTagLength  = 1 << 10
	maxIdentity   = 1 << 10
	maxSignature  = 1 << 10
	// MaxTicketSize bounds an encoded ticket.
	MaxTicketSize = ticketFixed + 4*4 + MaxPathLength + MaxTagLength + maxIdentity + maxSignature
)

const (
	ticketVersion = 1
	ticketFixed   = 1 + 1 + 2 + 4 + 8 + 8 + 8 + 8 + 16

	flagUnsettled = 1 << 0

	maxExpiry = 1 << 53 // Unix ms that every language's number holds exactly
)

// ClockSkew is how far the clocks of two machines may differ for a ticket's
// expiry to hold.
const ClockSkew = 5 * time.Minute

var errTicket = errors.New("malformed ticket")

// Geometry returns the file's division into blocks and pages.
func (t *Ticket) Geometry() Geometry { return Geometry{Length: t.Length, BlockSize: t.BlockSize} }

// Derive returns the derived file ID that the ticket's fields give.
func (t *Ticket) Derive() FileID {
	return DeriveFileID(t.MountID, t.Path, t.Tag, t.Length, t.BlockSize)
}

// Validate checks the ticket's bounds and, for a derived ID, that it belongs
// to the other fields, so that nobody can fill one file's ID with another's
// bytes. It does not look at expiry or signature.
func (t *Ticket) Validate() error {
	if err := t.checkBounds(); err != nil {
		return err
	}
	if t.FileID.Kind() == Derived && t.FileID != t.Derive() {
		return fmt.Errorf("ticket's file ID %s does not belong to its path and version", t.FileID)
	}
	return nil
}

// checkBounds checks that each field is one that the encoding can carry.
func (t *Ticket) checkBounds() error {
	if err := t.Geometry().Validate(); err != nil {
		return err
	}
	for _, f := range []struct {
		name          string
		length, bound int
	}{
		{"path", len(t.Path), MaxPathLength},
		{"version tag", len(t.Tag), MaxTagLength},
		{"identity", len(t.Identity), maxIdentity},
		{"signature", len(t.Signature), maxSignature},
	} {
		if f.length > f.bound {
			return fmt.Errorf("ticket's %s has %d bytes, at most %d are allowed", f.name, f.length, f.bound)
		}
	}
	// An expiry of 0 ms would read as never.
	if ms := t.Expiry.UnixMilli(); !t.Expiry.IsZero() && (ms <= 0 || ms > maxExpiry) {
		return fmt.Errorf("ticket's expiry %v is out of range", t.Expiry)
	}
	return nil
}

// ExpiredAt reports whether the ticket is no longer valid at now, with
// ClockSkew allowed.
func (t *Ticket) ExpiredAt(now time.Time) bool {
	return !t.Expiry.IsZero() && now.After(t.Expiry.Add(ClockSkew))
}

// AppendBinary appends the encoding of t to b. It fails if a field is out of
// its bounds. The encoding, little-endian:
//
//	u8 version = 1 | u8 flags (bit 0 unsettled) | u16 reserved = 0 | u32 key ID
//	u64 mount ID | u64 length | u64 block size | u64 expiry in Unix ms, 0 never
//	16 bytes file ID
//	u32 n, n bytes path | u32 n, n bytes tag | u32 n, n bytes identity
//	u32 n, n bytes signature
func (t *Ticket) AppendBinary(b []byte) ([]byte, error) {
	if err := t.checkBounds(); err != nil {
		return b, err
	}
	b = t.AppendUnsigned(b)
	return appendBytes(b, t.Signature), nil
}

// AppendUnsigned appends what a signature covers: the encoding without the
// signature field. It checks no bounds.
func (t *Ticket) AppendUnsigned(b []byte) []byte {
	var flags byte
	if t.Unsettled {
		flags |= flagUnsettled
	}
	b = append(b, ticketVersion, flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, t.KeyID)
	b = binary.LittleEndian.AppendUint64(b, t.MountID)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Length))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.BlockSize))
	var expiry uint64
	if !t.Expiry.IsZero() {
		expiry = uint64(t.Expiry.UnixMilli())
	}
	b = binary.LittleEndian.AppendUint64(b, expiry)
	b = append(b, t.FileID[:]...)
	b = appendBytes(b, t.Path)
	b = appendBytes(b, t.Tag)
	return appendBytes(b, t.Identity)
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// ParseTicket decodes what AppendBinary wrote and checks its bounds with
// Validate. It reads all of b; bytes behind the ticket are an error.
func ParseTicket(b []byte) (*Ticket, error) {
	if len(b) < ticketFixed || len(b) > MaxTicketSize {
		return nil, fmt.Errorf("%w: %d bytes", errTicket, len(b))
	}
	if b[0] != ticketVersion {
		return nil, fmt.Errorf("%w: version %d is unknown", errTicket, b[0])
	}
	if b[1]&^flagUnsettled != 0 || b[2] != 0 || b[3] != 0 {
		return nil, fmt.Errorf("%w: unknown flags", errTicket)
	}
	le := binary.LittleEndian
	t := &Ticket{
		Unsettled: b[1]&flagUnsettled != 0,
		KeyID:     le.Uint32(b[4:]),
		MountID:   le.Uint64(b[8:]),
		Length:    int64(le.Uint64(b[16:])),
		BlockSize: int64(le.Uint64(b[24:])),
	}
	if ms := le.Uint64(b[32:]); ms > maxExpiry {
		return nil, fmt.Errorf("%w: expiry out of range", errTicket)
	} else if ms != 0 {
		t.Expiry = time.UnixMilli(int64(ms)).UTC()
	}
	copy(t.FileID[:], b[40:56])
	b = b[ticketFixed:]
	var err error
	var path, tag, identity, signature []byte
	for _, f := range []struct {
		dst   *[]byte
		bound int
	}{{&path, MaxPathLength}, {&tag, MaxTagLength}, {&identity, maxIdentity}, {&signature, maxSignature}} {
		if *f.dst, b, err = takeBytes(b, f.bound); err != nil {
			return nil, err
		}
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", errTicket, len(b))
	}
	t.Path, t.Tag, t.Identity = string(path), string(tag), string(identity)
	if len(signature) > 0 {
		t.Signature = append([]byte(nil), signature...)
	}
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errTicket, err)
	}
	return t, nil
}

func takeBytes(b []byte, bound int) (field, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("%w: truncated", errTicket)
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) || n > uint32(bound) {
		return nil, nil, fmt.Errorf("%w: a field of %d bytes does not fit", errTicket, n)
	}
	return b[:n], b[n:], nil
}
