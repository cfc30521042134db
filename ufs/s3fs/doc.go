// Package s3fs is the under-store kind of S3: a bucket, or a prefix of one,
// on AWS or any server that speaks S3's protocol.
//
// Paths are keys below the prefix, byte by byte; the slash makes directories.
// Of the keys that no tree of files has:
//
//   - A key with an empty component ("a//b", "/a"), with a component "." or
//     "..", or with a NUL is no path. Listings leave it out, and what is below
//     it; to name it is errs.Invalid, and the server is not asked. A key
//     "a/../b" is thus neither a/../b nor b, and nothing leads out of the
//     mount's prefix.
//   - A key with a slash at its end ("a/") is how tools mark directories: it
//     makes the directory a exist, and is no file itself, whatever it holds.
//   - Any other byte is a part of a name: spaces, "%", "+", "?", "\", control
//     characters, bytes that are no UTF-8. Nothing is normalized: "é" in two
//     encodings is two files.
//   - A key that is both an object and the prefix of others: Stat and a
//     non-recursive List say the file, once; the others can still be named,
//     and a recursive List yields them all.
//   - A path whose key is longer than the server takes (1,024 bytes, prefix
//     included) is errs.Invalid.
//
// Who asks: the SDK's own chain (AWS_* variables, files, metadata service), or
// the options profile, credentials_file, access_key_env with secret_key_env, or
// anonymous. Option requester_pays says with each request that the one who asks
// pays. Options sse_c_key_file and sse_c_key_env name a key of 32 bytes, raw or
// as base64, which goes along with each GET and HEAD (SSE-C): over https only,
// or to loopback. An endpoint that is an IP or a name without a dot is spoken to
// in path style, others by the bucket's name in front of the host's; path_style
// says otherwise.
//
// The version tag is the strong ETag without its quotes; without one it is
// "lm:SECONDS:LENGTH", from LastModified. A version ID is no part of it, since
// listings do not carry one.
//
// The first attempt of a GET is made without the SDK (get.go), whose middleware
// costs more than all else that a small object takes; what is no success is
// handed to the SDK as the outcome of its own first attempt.
//
// Retries are those of the AWS SDK alone: 5 attempts, with 0.1 to 5 s in
// between, or as long as Retry-After says, up to 20 s. What cannot get better
// is not tried again: a certificate that does not hold, and an endpoint that
// takes a connection and does not answer within 30 s. Bodies are not retried:
// one that breaks off, or brings nothing for 30 s, is errs.Unavailable, and its
// reader asks for the rest again.
//
// A bucket that does not exist makes the root errs.NotFound and all below it
// errs.Unavailable: its files are not known to be deleted.
//
// Invariants:
//   - Opening asks nothing of the network; Close leaves no connection behind.
//   - Every answer is checked against what was asked, also where a condition
//     was sent with the request: servers that ignore Range or If-Match exist.
//   - A listing has at most two pages of the server's answer in memory.
//   - A page means what the SDK's parser says it does: the one here reads what
//     is written plainly, at a sixth of the cost, and leaves the rest to that.
//   - Messages name the bucket, the key and what to do, and never a secret.
package s3fs
