package block

import "hash/crc32"

//nolint:gochecknoglobals // a constant table; crc32.MakeTable returns the shared Castagnoli table
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC32C (Castagnoli, RFC 3720 appendix B.4) of b: the
// checksum of a page, of an index record and of a blockio header.
func Checksum(b []byte) uint32 { return updateCRC(0, b) }

// UpdateChecksum returns the checksum of the bytes that crc stands for
// followed by b. UpdateChecksum(0, b) is Checksum(b).
func UpdateChecksum(crc uint32, b []byte) uint32 { return updateCRC(crc, b) }
