// Package tier is the block store of one worker: it keeps pages of files in a
// cache directory and gives them back, checked.
//
// It owns the directory's layout and index (FORMAT.md), the ledger of what
// the directory takes on its file system, the order of victims, and the
// checksums of pages. It knows nothing of under-stores, networks or other
// workers. There is one directory now; Store stands above type dir so that
// more of them, and tiers, can come.
//
// The life of a page: a Handle pins the range that somebody reads, so that
// nothing of it is evicted; Reserve charges the ledger for what is absent,
// evicting others if it must; Fill writes the page, then its index record,
// and then shows it to everybody; ReadAt and Section serve it, after its
// checksum was compared once in a run of the store.
//
// A file of which every page is there can be handed out (HandOut): somebody
// else reads it by a descriptor of his own, which the store does not have to
// remember, since it asks the kernel before it takes anything away.
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
//   - A name in data/ is taken away before its part leaves the maps, so that
//     no new part of the same file can meet the old file.
//   - Locks are taken in this order: upkeepMu, roomMu, dir.gate, part.mu,
//     then at most one leaf lock. The hit path takes a shard of the map for
//     reading and the part's lock.
//
// A cached file of one page costs about 200 bytes of memory and its path and
// tag (BenchmarkMemoryPerFile); a page of a larger one, 4.25 bytes.
package tier
