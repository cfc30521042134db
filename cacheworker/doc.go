// Package cacheworker owns the worker: it serves the bytes of files from the
// cache directories of its host and, on a miss, through them from the
// under-stores.
//
// A read (read.go) goes over its extent piece by piece. It pins a piece in
// the tier, asks the fetcher for what is missing, and answers in order while
// pages arrive. The fetcher (fetch.go, flight.go) keeps one flight per range
// of missing pages: one ranged GET whose body is filled into the tier page by
// page and published to all that wait for it. Read-ahead (ahead.go) and load
// tasks (load.go) start the same flights; a gate (gate.go) bounds what is in
// flight and orders it. What cannot be kept goes its own way (unkept.go), and a
// crew (crew.go) of goroutines flies all of them. Pages that the tier's scrubber
// found damaged are fetched for it (repair.go) behind all others. Programs on
// this host may get a descriptor of what is cached whole, and tell what they
// read by it (descriptor.go), or of what still fills, and be told which bytes
// are there by now (inplace.go). What other hosts read most is counted (heat.go)
// and told with each heartbeat. The worker's identity, mount table and start
// epoch are kept in its data directory (identity.go, mounts.go), and which
// masters there were; a reporter per master (masters.go, master.go, report.go),
// also of those that join the group later, registers the worker, beats, and
// streams changes of cached blocks.
//
// Invariants:
//   - A page of a file is fetched once however many readers want it at a time,
//     as long as it can be kept.
//   - A flight belongs to the worker: a reader that goes away takes nothing
//     from the others that wait for it.
//   - Only bytes that the under-store gave for the ticket's version, whole
//     pages, are filled into the tier, at first or second hand, and at second
//     hand only with their checksum; a fetch that fails leaves the pages before
//     the failure and nothing else.
//   - A worker that is asked by another one answers from its cache or says no,
//     unless it owns what is read and is asked to fetch it for a replica
//     (replica.go): nobody waits for a worker that waits for a third one.
//   - What cannot be kept (no room, an unsettled version) is served all the
//     same, from memory of bounded size, and shared by who reads it meanwhile.
//   - Bytes in flight from all under-stores, requests in flight to each, pins
//     of each read and changes not yet reported to each master are bounded by
//     the configuration. When these bounds are reached, reads go before
//     read-ahead, loads and repairs, in this order.
//   - An under-store that answers slowly or not at all takes neither the room
//     nor the turn of others: cached reads and other mounts go on, its own
//     readers can give up, and the worker can stop.
//   - Pages of a removed mount are dropped, if not now, at the next start.
//   - A stop ends within bounded times: the masters hear that the worker
//     leaves, and in the end what it holds.
//   - The start epoch grows at each start, and reports of one epoch to one
//     master are numbered without gaps; after any doubt the next one is full.
//   - Without a master the worker serves every mount that it knows.
package cacheworker
