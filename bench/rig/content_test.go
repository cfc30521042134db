package rig

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// The hashes were printed by bench/dataset.py's content().
func TestContentIsThatOfTheDataset(t *testing.T) {
	for _, c := range []struct {
		key  string
		size int64
		hash string
	}{
		{"tiny/00001.txt", 1 << 10, "28a04e8450f2b45dba0b5374eddcd97ef3330f2cdf7f1594ab49cde916285127"},
		{"small/001/002.jpg", 100 << 10, "7c608e654d1d612c01ead250f32805c8c957f4c95c2b349b4adab1cbcbb57294"},
		{"big/0.bin", 3<<20 + 12345, "472cb103d28bfd664811f6ae515bf9456b6ce3b93c2345deec0e4cdd0212f140"},
	} {
		content := NewContent(c.key, c.size)
		whole := make([]byte, c.size)
		content.ReadAt(whole, 0)
		if sum := sha256.Sum256(whole); hex.EncodeToString(sum[:]) != c.hash {
			t.Errorf("content of %s is not that of dataset.py", c.key)
		}
		for _, off := range []int64{0, 1, 5, 1<<20 - 3, 1 << 20, 1<<20 + 4, 2<<20 + 9} {
			if off >= c.size {
				continue
			}
			piece := make([]byte, min(700_000, c.size-off))
			content.ReadAt(piece, off)
			if !bytes.Equal(piece, whole[off:off+int64(len(piece))]) {
				t.Errorf("%s: bytes at %d differ from those of a whole read", c.key, off)
			}
			piece[len(piece)-1] ^= 1
			if content.Check(piece, off, make([]byte, len(piece))) == nil {
				t.Errorf("%s: a flipped bit at %d was not noticed", c.key, off+int64(len(piece))-1)
			}
		}
	}
}
