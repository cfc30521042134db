// Package block owns the names and the arithmetic that every part of Millrace
// shares: file IDs, tickets, block and page geometry, page checksums, and the
// rendezvous placement of blocks on workers.
//
// Everything here is pure: no I/O, no clock, no state. Each encoding and each
// function that two machines must agree on has test vectors under testdata/,
// as JSON that other languages can read.
//
// Invariants:
//   - A FileID names the bytes of one version of one file, for ever.
//   - Every machine derives the same FileID from the same ticket.
//   - Encodings are little-endian and versioned; decoders accept any input
//     without panicking and without allocating more than the input's size.
package block
