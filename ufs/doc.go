// Package ufs owns the under-store interface: how Millrace sees the system
// that owns the data, be it S3, HDFS or a local directory.
//
// Each kind of under-store is a sub-package (ufs/s3fs, ufs/hdfsfs, ufs/localfs)
// and passes the suite in ufs/ufstest. A Registry, built in cmd and passed on,
// maps URI schemes to them. Errors are classified with internal/errs: NotFound,
// Permission, Stale (the version asked for is gone), NotDir, IsDir,
// Unavailable, Throttled, Timeout, Invalid. What cannot be known for sure is
// never NotFound or Stale, for on those the cached bytes of a file are given
// up: a bucket that is missing makes its files Unavailable.
//
// Invariants:
//   - The tags of one version from Stat, List and Read are equal.
//   - Read yields bytes of the version asked for, exactly as many as asked
//     for, or an error; never a mix, never silently short.
//   - No path leaves the under-store's root, whatever its bytes.
//   - Every kind obeys Limits, per process.
package ufs
