package block

import (
	"hash/crc32"

	"golang.org/x/sys/cpu"
)

const (
	// foldSize is what foldCRC takes in one step.
	foldSize = 256
	// foldFrom is from how many bytes on folding gains.
	foldFrom = 4 * foldSize
)

// foldCRC returns the state of the checksum behind p, whose length is a
// multiple of foldSize and not 0, given the state before it. The state is the
// checksum without its inversions. It needs what canFold says.
//
//go:noescape
func foldCRC(state uint32, p []byte) uint32

// canFold reports whether this processor multiplies polynomials 512 bits at a
// time, which is more than twice as fast as its instruction for CRC32C.
func canFold() bool { return cpu.X86.HasAVX512F && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasSSE42 }

func updateCRC(crc uint32, b []byte) uint32 {
	if len(b) >= foldFrom && canFold() {
		n := len(b) &^ (foldSize - 1)
		crc, b = ^foldCRC(^crc, b[:n]), b[n:]
	}
	return crc32.Update(crc, castagnoli, b)
}
