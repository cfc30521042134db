// Package ufslimit holds an under-store to ufs.Limits: so many bytes of files
// and so many requests a second, all readers of the mount in this process
// together. Each process that opens the under-store has limits of its own.
//
// A Limiter is what does the waiting. A kind of under-store that makes several
// requests per call, or repeats them, asks it before each; Wrap is for those of
// which a call is a request.
//
// Invariants:
//   - Waiting ends with the caller's context. One whose deadline comes before
//     his turn is refused at once.
//   - Turns are given in the order of asking.
//   - In any time of t seconds at most rate*t + burst pass, the burst being a
//     second's worth of requests, one at least, and of bytes an eighth of a
//     second's, 4 KiB to 1 MiB.
package ufslimit
