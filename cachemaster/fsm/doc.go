// Package fsm owns the masters' replicated state machine: the commands that
// cross the Raft log, the state that they build, and the bbolt file that keeps
// it. It knows Raft's interfaces and nothing else of the cluster: no network,
// no clock, no under-store.
//
// A command is a JSON envelope with a version (see Command); what stands in
// testdata/commands.json is read by every release. JSON and not protobuf,
// because commands are few, small (at most MaxCommandSize) and worth reading
// in a dump of a log; paths, which may hold any byte, are escaped as in URLs.
//
// Invariants:
//   - The state depends on the sequence of applied commands alone: applying
//     reads no clock and no randomness; both come in the command.
//   - A batch's changes, the answers to its idempotency keys and its applied
//     index are one bbolt transaction. What is not newer than the applied
//     index is skipped, since the log is replayed after a crash.
//   - A command that this release cannot read, or a failed write, stops the
//     machine (see Store.Failed) instead of skipping an entry: a machine that
//     went on would differ from its peers.
//   - State values are immutable: a batch makes a new one.
package fsm
