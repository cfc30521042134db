// Package hdfsfs is the under-store kind of HDFS 3.1 and later: a directory of
// a cluster with one or several NameNodes.
//
// NameNodes are asked through the client library of colinmarc/hdfs: it knows
// their calls, high availability and Kerberos. It has no deadlines, no contexts
// and one call at a time, and it does not ask for where blocks are and whether a
// file is open for write; package-internal clients (namenode.go) own its
// connections (rpcconn.go) and see to that. A call is repeated, on new
// connections and the next NameNode, until its context ends or 30 s are over.
//
// Blocks are read without the library (datanode.go), whose reader passes on
// bytes of which the checksum was wrong, asks for the rest of a block whatever
// is needed, and waits for ever. Here each run of bytes within one block is one
// request for just these bytes; its packets are compared with their checksums
// before a byte is passed on; a DataNode that brings nothing for 2 s, or wrong
// bytes, is left for another replica at once, and avoided by others for half a
// minute (replicas.go).
//
// The version tag is file ID, modification time in ms and length. A look at a
// file tells its version and its blocks in one answer (locate.go). A file that
// is open for write, or whose modification time is within 2 s of the look, is
// Unsettled.
//
// Invariants:
//   - Every byte that is passed on was compared with its checksum, and the file
//     was looked at after it came: it has the version asked for. A reader has at
//     most 2 MiB that wait for that look.
//   - Nothing waits for a NameNode or DataNode without a deadline, or beyond the
//     caller's context.
//   - Opening asks nothing of the network; Close leaves no connection and no
//     goroutine behind.
//   - A listing keeps at most 65,536 entries per directory level in memory, and
//     twice that while it reads a directory. A larger directory is read again
//     for each further 65,536. (Recursive lists; others are streamed.)
//
// HDFS knows no names with a colon, and none that are not UTF-8. Symbolic links
// are left out of listings. Not offered, and refused as errs.Unsupported: files
// that are erasure-coded or encrypted by HDFS, blocks without checksums, and
// dfs.data.transfer.protection or dfs.encrypt.data.transfer, for which DataNodes
// want SASL.
package hdfsfs
