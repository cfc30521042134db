// Package e2e runs the real binary as real processes, with ports and
// directories of their own, against a real S3 server and a real HDFS on
// loopback, and checks every byte that it reads against the source.
//
// It owns the proof of what the README promises: right bytes while the cache
// evicts, after kill -9 at any time, and S3 requests counted at the server's
// side. Nothing of Millrace is linked in but test helpers; what is tested is
// what people run.
//
// TestFsx reads at random for 20 seconds while everything changes;
// MILLRACE_FSX_DURATION=10m makes it longer, and MILLRACE_FSX_SEED repeats the
// decisions of a run that failed, which printed it.
package e2e
