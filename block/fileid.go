package block

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// FileID names one version of one file: 128 bits, opaque to all but the code
// that made it. The top bit of the first byte says its kind.
type FileID [16]byte

// IDKind says how a FileID came to be.
type IDKind uint8

// The kinds of FileID.
const (
	Derived IDKind = iota // computed from an under-store object's version
	Minted                // drawn at random for a file written through Millrace
)

const mintedBit = 0x80

// idDomain separates the hashes of file IDs from all others.
const idDomain = "millrace/file-id/v1"

// DeriveFileID computes the ID of a version of an under-store object: the
// first 128 bits of SHA-256 over
//
//	"millrace/file-id/v1" 0x00
//	u64 mountID | u32 len(path) path | u32 len(tag) tag | u64 length | u64 blockSize
//
// (integers little-endian), with the kind bit cleared.
func DeriveFileID(mountID uint64, path, tag string, length, blockSize int64) FileID {
	b := make([]byte, 0, len(idDomain)+1+8+4+len(path)+4+len(tag)+16)
	b = append(b, idDomain...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint64(b, mountID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(path)))
	b = append(b, path...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(tag)))
	b = append(b, tag...)
	b = binary.LittleEndian.AppendUint64(b, uint64(length))
	b = binary.LittleEndian.AppendUint64(b, uint64(blockSize))
	sum := sha256.Sum256(b)
	var id FileID
	copy(id[:], sum[:])
	id[0] &^= mintedBit
	return id
}

// MintFileID makes a minted ID of 16 random bytes.
func MintFileID(random [16]byte) FileID {
	id := FileID(random)
	id[0] |= mintedBit
	return id
}

// Kind says whether the ID was derived or minted.
func (id FileID) Kind() IDKind {
	if id[0]&mintedBit != 0 {
		return Minted
	}
	return Derived
}

// IsZero reports whether id is the zero value, which names no file.
func (id FileID) IsZero() bool { return id == FileID{} }

// String returns the ID as 32 lower-case hexadecimal digits.
func (id FileID) String() string { return hex.EncodeToString(id[:]) }

// ParseFileID reads what String returns.
func ParseFileID(s string) (FileID, error) {
	var id FileID
	if len(s) != 2*len(id) {
		return FileID{}, fmt.Errorf("file ID %q: want %d hexadecimal digits", s, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return FileID{}, fmt.Errorf("file ID %q: %w", s, err)
	}
	return id, nil
}

// Key names one block of one file.
type Key struct {
	File  FileID
	Index uint32
}

// String returns "fileID/index".
func (k Key) String() string { return fmt.Sprintf("%s/%d", k.File, k.Index) }

// LocationHash stands for the block in reports of where blocks are cached: the
// xxh64, with seed 0, of the file ID and the little-endian index, with the
// lowest bit clear, which is left to what is said of the block.
func (k Key) LocationHash() uint64 { return k.hash() &^ 1 }

func (k Key) hash() uint64 {
	var buf [len(k.File) + 4]byte
	copy(buf[:], k.File[:])
	binary.LittleEndian.PutUint32(buf[len(k.File):], k.Index)
	return xxhash.Sum64(buf[:])
}
