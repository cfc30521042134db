// Package tier is the block store of one worker: it keeps pages of files in
// cache directories and gives them back, checked.
//
// It owns the directories' layout and index (FORMAT.md), the ledgers of what
// they take on their file systems, the order of victims, and the checksums of
// pages. It knows nothing of under-stores, networks or other workers. The
// directories of one medium form a tier; Store finds a file's part, type dir
// is all that concerns one directory.
//
// A file's directory is chosen when something of it is kept for the first
// time, by the length of the file: the fastest tier that has room without
// giving anything up; if none has, the slowest tier that can give something
// up (place.go). A directory in memory takes no part over an eighth of it,
// unless there is nothing but memory. From then on all pages of the file go
// to that directory.
//
// A file in a slower tier that is read often from its start is queued for a
// faster one, and movers, which Run owns, copy it there (move.go). They make
// room by moving what the policy names down to a tier that has room, and by
// giving it up where there is none; nobody who reads or fills waits for a
// move. A copy is a part of its own that nobody finds until it is whole: then
// it takes the old one's place in the maps, and the old one goes the way of a
// dropped part, so that handles which have it read on.
//
// The order of victims is that of paced (policy.go), which has no object per
// access and survives a restart: it keeps what is hit at every epoch of a
// training, and lets go of it when nobody reads it any more. In memory,
// ristretto's advice can be made to come before it (advice.go): that is
// asynchronous and loses what it is told, so nothing waits for it, what it
// names is a suggestion, and a sweep finds what it no longer knows.
//
// The life of a page: a Handle pins the range that somebody reads, so that
// nothing of it is evicted; Reserve charges the ledger for what is absent,
// evicting others if it must; Fill writes the page, then its index record,
// and then shows it to everybody; ReadAt and Section serve it, after its
// checksum was compared once in a run of the store; a handle that asks for it
// has it compared at every read. The scrubber (scrub.go) goes over all pages
// round and round, and writes those that are damaged again in their place.
//
// A file of which every page is there can be handed out (HandOut): somebody
// else reads it by a descriptor of his own, which the store does not have to
// remember, since it asks the kernel before it takes anything away. What is then
// in the way, and what it would not hand out any more, it recalls (recall.go):
// whoever keeps descriptors that he does not use asks for that list.
//
// Invariants:
//   - What is not in the ledger is not on the disk: bytes rounded to the file
//     system's block, extents, directories and the index are charged before
//     they are written, and never pass the capacity or the file system's free
//     share.
//   - A page is in the index only after its bytes are in the kernel, and is
//     shown only after its record is. kill -9 loses nothing that was shown.
//     After a boot, pages recorded behind the last checkpoint are compared
//     with their checksums before they are served.
//   - A backing file has one open file description in this process. A file
//     that the kernel cannot prove to be ours alone (F_SETLEASE) is never a
//     victim, and never truncated, punched or overwritten with other bytes;
//     files that are dropped go to held/ and stay charged until the proof. The
//     scrubber writes into files that others have open, but nothing other than
//     the bytes that the index has the checksum of.
//   - A page that the scrubber found damaged is checked at each read until it
//     is repaired or dropped. It is dropped when its source has changed or
//     gone, has other bytes under the same tag, or the disk does not take
//     them; while its source does not answer it stays and is tried again.
//   - A page that failed its checksum is spoiled: absent, and its room stays
//     taken and charged until the page is filled again or its unit goes.
//   - Parts are sent from their files, and what waits in a socket's queue must
//     not become zeros: a part that is evicted as a whole is never punched,
//     and a block of a large one only as a whole, of whole folios of the
//     kernel's cache. Where blocks are not that, their part is not sent from
//     its file.
//   - A part is in no directory until its first fill, and in the same one ever
//     after; a move makes another part. A file that is found in two directories
//     at the start keeps the copy with more pages, in the faster one if they
//     are equal.
//   - A directory whose disk fails (health.go) is forgotten at once: its parts
//     leave the store and their handles find all pages absent, and none of its
//     names is used any more; nothing is made in its place. What comes back
//     (comeback.go) is another dir with a number of its own, so that whoever
//     still has a part of the old one never meets the new one's ledger or
//     index; each of its pages is compared before it is served. A part that
//     was kept elsewhere meanwhile stays, and the one that comes back goes.
//   - A name in data/ is taken away before its part leaves the maps, so that
//     no new part of the same file can meet the old file.
//   - A page is compared with its checksum when a mover copies it, and one
//     that differs is not copied.
//   - A page counts as checked only if no sync of its directory failed since
//     its bytes were written or read, for the kernel throws away what it cannot
//     write.
//   - A copy is found by its directory until it is found by all: whoever wants
//     every part of a directory looks at the copies first.
//   - Locks are taken in this order: upkeepMu, roomMu, dir.gate, part.mu,
//     then at most one leaf lock. A mover takes the locks of two parts, the
//     old one's before the copy's. The hit path takes a shard of the map for
//     reading and the part's lock.
//
// A cached file of one page costs about 200 bytes of memory and its path and
// tag (BenchmarkMemoryPerFile); a page of a larger one, 4.25 bytes.
package tier
