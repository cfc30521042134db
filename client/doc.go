// Package client is the Go SDK of Millrace: namespace calls to the masters
// and reads of file bytes from the workers. The FUSE mount and the command
// line stand on it; it needs no Raft, no under-store and no cache of its own.
//
// Two planes. Namespace calls are gRPC to the leader of the masters, which is
// followed through their answers. Bytes come from the workers over blockio,
// on a few pipelined connections for each worker, through its Unix socket
// when it is on this host. Which worker is asked is computed from the
// placement that a membership stream delivers: the owner of a block, or before
// it the worker of this host, which keeps a replica, or one of those that serve
// a hot block (hot.go). When a worker cannot answer, the next owner is asked,
// which reads through to the under-store. One that failed is tried last for a
// while, and beside one that is slow against its history (history.go) the next
// owner is asked too, and so on (hedge.go); one that does not even say hello any
// more holds no read for long.
//
// Short-circuit (descriptors.go, local.go): a worker of this host hands out
// descriptors of files that it has cached whole. They are shared, counted and
// bounded; a File reads from one where there is one, and asks for one beside
// its reads. Those of files that are likely to be opened soon can be prepared,
// and small files can be fetched for theirs. A longer file that the worker still
// fetches is read by one as well: the worker tells each read that its bytes are
// there (inplace.go). The workers are told of what is read by them, and say what
// they want back (recalls.go): until then those that nobody uses are kept for
// who reads the file next.
//
// Invariants:
//   - A File reads one version: bytes of another are never mixed in. A
//     version that is gone is errs.Stale.
//   - Opening an Entry whose ticket is valid, and reading it, asks no master.
//   - A call that changes something is repeated only when the master can tell
//     the repetition (idempotency key), or surely did not do it.
//   - A read never waits for a descriptor. One that fails is not used again,
//     and the worker serves; one that is out needs no worker.
//   - A descriptor that its worker wants back is given to no new user behind
//     its last one, and closed when nobody uses it: a few seconds later at the
//     most, and without an answer of the worker as if all had been wanted back.
//   - Every call ends: by its context, or when the retry budget is spent.
//   - Every goroutine is owned by the Client and has ended when Close returns.
package client
