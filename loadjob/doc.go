// Package loadjob owns what a load job is: its specification and state, how
// the files below its paths become items of work (Plan), the bookkeeping that
// makes its sums exact (Tracker), and how a worker runs a batch of items
// (RunTask). It knows no Raft, no RPC and no clock of its own except for the
// wait for unsettled files; the cachemaster commits its Progress, the
// cacheworker loads its bytes.
//
// Plan streams the listing in byte order and cuts it into items: one for a
// file of at most one block, one per block for a longer one, so that its
// blocks can go to their owners. Items may end in any order. The Tracker
// passes its cursor over a file only when that file and every one listed
// before it are done, and the sums that go with the cursor (Snapshot) count
// exactly the files that the cursor has passed. So a leader that takes over
// goes on from the committed cursor and sums, and counts no file twice.
//
// Invariants:
//   - Each listed file is counted once in Sums.Listed of files and once in one
//     of Loaded, AlreadyCached, Failed and Gone; its bytes likewise.
//   - Snapshot's sums and cursor are of the same moment. In it, and in every
//     final state but Canceled, listed = loaded + already cached + failed +
//     gone, in files and in bytes.
//   - A file is AlreadyCached only if nothing of it was fetched. It is Gone
//     when it was not found or changed since it was listed, and nothing else
//     went wrong with it.
//   - At most Config.Window items and files are held at a time, however long
//     the listing and however slow its first file, if the emit function of
//     Plan waits for Tracker.Wait.
package loadjob
