// Package role runs one role of Millrace as a process: it starts it, waits
// until it is ready, asks its HTTP server, and ends it in every way there is.
//
// It knows nothing of how a role is configured and where it lives: that is with
// whoever makes clusters, tests and benchmarks alike.
//
// Invariants: those of package child, so that no process outlives its starter;
// at most one process of a role runs at a time; every request is bounded.
package role
