package rig

import (
	"bytes"
	"crypto/sha3"
	"encoding/binary"
	"fmt"
)

const unitSize = 1 << 20

// Content yields the bytes of one object, as bench/dataset.py defines them:
// SHAKE-128 of the key, 1 MiB of it, repeated; in objects above 1 MiB the
// first 8 bytes of each MiB are its number, little-endian.
// It is safe for concurrent use.
type Content struct {
	size int64
	unit []byte
}

// NewContent prepares the content of the object with that key and size.
func NewContent(key string, size int64) *Content {
	return &Content{size: size, unit: sha3.SumSHAKE128([]byte(key), int(min(size, unitSize)))}
}

// ReadAt fills p with the bytes at off. p must lie within the object.
func (c *Content) ReadAt(p []byte, off int64) {
	for len(p) > 0 {
		n, in := off/unitSize, off%unitSize
		k := copy(p, c.unit[in:])
		if c.size > unitSize && in < 8 {
			var counter [8]byte
			binary.LittleEndian.PutUint64(counter[:], uint64(n))
			copy(p[:k], counter[in:])
		}
		p, off = p[k:], off+int64(k)
	}
}

// Check compares p with the object's bytes at off. scratch is at least as
// long as p.
func (c *Content) Check(p []byte, off int64, scratch []byte) error {
	want := scratch[:len(p)]
	c.ReadAt(want, off)
	if bytes.Equal(p, want) {
		return nil
	}
	for i := range p {
		if p[i] != want[i] {
			return fmt.Errorf("byte %d is %#02x, want %#02x", off+int64(i), p[i], want[i])
		}
	}
	return nil
}
