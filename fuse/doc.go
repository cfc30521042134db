// Package fuse is the FUSE mount: it answers the kernel's requests on a
// directory of this host with the files of the cluster's namespace.
//
// It owns the mount point's life (clearing what a crashed run left behind,
// mounting, serving, unmounting), the node table, the coherence of the
// kernel's caches, and the translation of errors to errno. Bytes and names
// come through the Client interface; package client stands behind it.
//
// It speaks go-fuse's raw API, request by request, since the table that binds
// the kernel's node IDs to versions of files is the heart of the matter.
//
// A file whose bytes are all in a local file of the cache is handed to the
// kernel, which then reads it without this process (passthrough.go). All others
// take the copy path: a READ is spliced or copied from the local file where
// there is one by then (read.go, reply.go), also from one that still fills once
// the client says that the bytes are there, else filled by the client.
//
// Many small files are bound by what happens around their bytes: the readers
// of the device have room to block (readers.go), an OPEN of one that is not
// cached waits a moment for the worker to fetch it and hand it out, and a
// directory that is opened in order has the local files of what comes next asked
// for ahead, and fetched (openahead.go). Names that are looked up one by one cost a question to a
// master each, so the directory of several such names is listed beside them
// (siblings.go).
//
// Invariants:
//   - A node ID is bound for life to (path, file ID, kind). The size, times
//     and inode number of a node never change; a new version of a path is a
//     new node. So the kernel may keep the pages of a node for ever, but for
//     those that it read while the version was unsettled.
//   - The inode number of a path is stable over versions and runs.
//   - An OPEN of a node whose path has a newer version answers ESTALE, on
//     which the kernel looks the whole path up again, unseen by the program.
//   - Entries live in the kernel's cache as long as the master's answer is
//     valid, no longer.
//   - All opens of a node that are there at the same time are in one mode,
//     passthrough or copy, and have one backing file: the kernel refuses
//     others. The first decides, the last release ends it.
//   - A local file is believed only if it is as long as it must be, and one
//     that cannot be read is read through the client instead.
//   - A READ allocates nothing.
//   - In no-open mode (unopened.go) the kernel tells of no opens: a READ finds
//     what an OPEN would have made by its node, among a bounded number of them,
//     and that of a node whose path has a newer version answers ESTALE.
//   - A directory of which every name is in the entry cache, as the masters
//     listed it and still fresh, is read again without a master; a rewound one
//     is listed anew. What a listing lacks is believed missing for a minute.
//   - Nothing can be written: every such request is EROFS.
//   - Run leaves no dead mount point behind.
package fuse
