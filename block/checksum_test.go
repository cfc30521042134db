package block

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// Checksums are those of the standard library, at every length around the
// steps in which they are computed and wherever the bytes begin.
func TestChecksumIsCRC32C(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 70_000)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	check := func(crc uint32, p []byte) {
		t.Helper()
		if got, want := UpdateChecksum(crc, p), crc32.Update(crc, castagnoli, p); got != want {
			t.Fatalf("behind %08x, %d bytes: %08x, want %08x", crc, len(p), got, want)
		}
	}
	for n := range 3000 {
		check(0, b[:n])
		check(random.Uint32(), b[n%67:n%67+n])
	}
	for range 2000 {
		at := random.IntN(len(b))
		check(random.Uint32(), b[at:at+random.IntN(len(b)-at)])
	}
	for _, same := range []byte{0, 0xff} {
		for i := range b {
			b[i] = same
		}
		check(0, b)
		check(0xffffffff, b)
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add(uint32(0), []byte("123456789"), uint16(0))
	f.Add(uint32(1), make([]byte, 100), uint16(300))
	f.Fuzz(func(t *testing.T, crc uint32, p []byte, more uint16) {
		for len(p) > 0 && len(p) < int(more) { // what comes from outside is short
			p = append(p, p...)
		}
		if got, want := UpdateChecksum(crc, p), crc32.Update(crc, castagnoli, p); got != want {
			t.Fatalf("behind %08x, %d bytes: %08x, want %08x", crc, len(p), got, want)
		}
	})
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{1 << 10, 64 << 10, 256 << 10} {
		p := make([]byte, n)
		b.Run(fmt.Sprintf("%d KiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				Checksum(p)
			}
		})
		b.Run(fmt.Sprintf("%d KiB, the standard library's", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				crc32.Checksum(p, castagnoli)
			}
		})
	}
}
