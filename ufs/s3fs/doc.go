// Package s3fs is the under-store kind of S3: a bucket, or a prefix of one,
// on AWS or any server that speaks S3's protocol.
//
// Paths are keys below the prefix; the slash makes directories. A key that
// cannot be a path (with an empty component, "." or "..", or a slash at its
// end) is left out of listings. Where a key is both an object and the prefix
// of others, Stat and a non-recursive List say the object; the others can
// still be named, and a recursive List yields them all.
//
// The version tag is the strong ETag without its quotes; without one it is
// "lm:SECONDS:LENGTH", from LastModified. A version ID is no part of it, since
// listings do not carry one.
//
// Retries are those of the AWS SDK alone. Bodies are not retried: a body that
// breaks off is errs.Unavailable, and its reader asks for the rest again.
//
// Invariants:
//   - Opening asks nothing of the network; Close leaves no connection behind.
//   - Every answer is checked against what was asked, also where a condition
//     was sent with the request: servers that ignore Range or If-Match exist.
//   - Messages name the bucket, the key and what to do, and never a secret.
package s3fs
