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
// The life of a page: a Handle pins the range that somebody reads, so that
// nothing of it is evicted; Reserve charges the ledger for what is absent,
// evicting others if it must; Fill writes the page, then its index record,
// and then shows it to everybody; ReadAt and Section serve it, after its
// checksum was compared once in a run of the store.
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
//     files that are dropped go to held/ and stay charged until the proof. A
//     page that failed its checksum is punched without it: it was never
//     given out.
//   - A part is in no directory until its first fill, and in the same one ever
//     after. A file that is found in two directories at the start keeps the
//     copy with more pages, in the faster one if they are equal.
//   - A name in data/ is taken away before its part leaves the maps, so that
//     no new part of the same file can meet the old file.
//   - Locks are taken in this order: upkeepMu, roomMu, dir.gate, part.mu,
//     then at most one leaf lock. The hit path takes a shard of the map for
//     reading and the part's lock.
//
// A cached file of one page costs about 200 bytes of memory and its path and
// tag (BenchmarkMemoryPerFile); a page of a larger one, 4.25 bytes.
package tier
