// Package blockio owns the data plane: the wire on which workers hand bytes of
// blocks to clients and to each other, its server and its client. It knows
// handles and ranges of bytes, not files: what a ticket means and where bytes
// come from is the business of the server's Handler.
//
// # The wire
//
// SPEC.md beside this file specifies the protocol in full, well enough to
// write a client in another language, and testdata/ holds its test vectors.
// In short: little-endian, on TCP or a Unix stream socket. Both sides say
// hello (magic, version, features, worker ID, boot ID, limits), then the
// client sends requests and the server answers each with any number of DATA
// frames, at most 1 MiB each and interleaved with those of other requests,
// and one END frame with the outcome and the checksums of whole pages. Every
// frame has the same header of 64 bytes with a checksum of its own.
//
// Besides OPEN, READ and CLOSE there are READV, many ranges of a file in one
// request; OPEN_READ, which saves small files a round trip; FD, which passes
// a descriptor of the file to a client on the same host; TOUCH, by which such a
// client tells what it used; and RECALLS, by which it asks what it is to give
// back. A client on the same host can also have a descriptor of a file that
// still fills: its READs are then told that their bytes are there, which saves
// the socket all of them. Each is a feature that the server's hello offers or
// not. What a Handler and its Files offer, they say by implementing Toucher,
// Recaller, Descriptors and InPlace.
//
// # Goroutines
//
// A Server owns, per connection, one goroutine that reads frames and one per
// request in flight, at most ServerConfig.MaxRequests of them, and a few that
// wait for the next request; Serve waits for all. What a File has at hand (see
// Prompt) is answered by the goroutine that reads frames, while nobody else
// sends: nobody is woken for it, and small answers gather until there is
// nothing more to read. A Conn owns one goroutine that reads frames, and
// computes the checksums of pages as they arrive, and one that writes what the
// kernel did not take at once; Close waits for both.
//
// # Invariants
//
//   - Every length that arrives is checked against a bound before anything is
//     allocated or read for it.
//   - A peer that breaks the protocol, stalls or lies costs its connection and
//     nothing else. A request that fails costs itself and nothing else.
//   - Every request is answered with exactly one END; CANCEL and CLOSE are not
//     requests of their own and have no answer.
//   - A caller's buffers are never written to after ReadAt, ReadV or OpenRead
//     has returned.
//   - A descriptor is closed by whoever holds it when its way ends: the server
//     after it was sent or not, the client's reader if nobody waits for it.
//   - A read of a connection that is served from the cache allocates nothing,
//     on either side.
//   - Bytes reach the caller with success only if all of them arrived and each
//     page whose checksum the server gave matches it, or, where the caller asked
//     for it, not at all: then they are in the file that the caller has open.
package blockio
