// Package cachemaster owns what the masters decide: the Raft group and its
// state machine (fsm), the under-store mount table, the namespace with its
// cache of under-store metadata, the map of cached blocks (blockmap), the
// membership of workers and their placement, the scheduler of load jobs, and
// the gRPC services that offer all this.
//
// A Master is one process of the group. Every master keeps membership and
// block map, from what workers tell each of them; only the leader answers for
// the namespace, the mount table and the jobs, and only after it made sure
// that it still leads (see raftNode.verify). Every master tells who follows the
// membership which blocks are hot (hot.go), by what workers tell it.
//
// Invariants:
//   - A disk that is empty takes part in the group in two cases only: it is
//     one of those that the group is founded with, or the group does not count
//     on it (see founding.go). No vote is given twice, and nothing that was
//     acknowledged is lost with a disk.
//   - The Raft log and its snapshots are bounded by raft_snapshot_entries,
//     raft_trailing_entries and two snapshots.
//   - What is replicated changes through a committed command alone; the
//     membership's liveness, the block map, which blocks are hot and the metadata
//     cache are soft and may be lost at any time.
//   - Metadata that was asked for before a change of its under-store mount is
//     never served after that change.
//   - Of a directory that is known in part, the metadata cache tells what is
//     there and never what is not.
//   - That something is missing is never believed for longer than missing_ttl,
//     whatever the freshness.
//   - Placement follows the registry, not liveness: a worker that is away
//     keeps what it owns until an operator drains or forgets it.
//   - A job's committed sums count exactly the files up to its committed
//     cursor, so that a new leader goes on without counting any twice.
package cachemaster
