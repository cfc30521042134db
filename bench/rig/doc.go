// Package rig is what the demo and the benchmarks share: the deterministic
// data set, the bare S3 client that everything is measured against, running a
// real S3 server, a real `millrace up`, a cluster of a process for each role,
// and a bare FUSE mount as child processes, a network of its own, what is done to files (work.go for
// figures, files.go where every byte is compared), and accounting of wall
// time, CPU and S3 requests.
//
// Invariants:
//   - The bytes of an object are a function of its key and size alone, the
//     same as in bench/dataset.py, so that every byte read can be checked.
//   - Every process started here is ended by its PID, and dies with its parent.
//   - S3 requests are counted at the server, from its access log.
package rig
