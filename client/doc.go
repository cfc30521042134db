// Package client is the Go SDK of Millrace: namespace calls to the masters
// and reads of file bytes from the workers. The FUSE mount and the command
// line stand on it; it needs no Raft, no under-store and no cache of its own.
//
// Two planes. Namespace calls are gRPC to the leader of the masters, which is
// followed through their answers. Bytes come from the workers over blockio,
// on a few pipelined connections for each worker, through its Unix socket
// when it is on this host. Which worker is asked is computed from the
// placement that a membership stream delivers; when a worker cannot answer,
// the next owner is asked, which reads through to the under-store.
//
// Invariants:
//   - A File reads one version: bytes of another are never mixed in. A
//     version that is gone is errs.Stale.
//   - Opening an Entry whose ticket is valid, and reading it, asks no master.
//   - A call that changes something is repeated only when the master can tell
//     the repetition (idempotency key), or surely did not do it.
//   - Every call ends: by its context, or when the retry budget is spent.
//   - Every goroutine is owned by the Client and has ended when Close returns.
package client
