// Package errs gives errors a kind that survives every border.
//
// A Kind is what a caller may act on: it is an error itself, so it serves as
// the sentinel of errors.Is, it has a number that crosses the wires (gRPC
// status details and blockio's END frame), and each edge of the program turns
// it once into what its peers speak: internal/rpcerr for gRPC, package fuse
// for errno.
//
// Invariants: the numbers of kinds never change and are never reused; an
// Error's text names the operation, the path and the cause, once each.
package errs
