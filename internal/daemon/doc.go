// Package daemon owns what every long-running role of the program needs and
// that knows nothing of caches: the order in which roles start and stop, the
// signals that end them, listeners whose errors name who holds the port, the
// operations server (/metrics, /healthz, /readyz, /debug/pprof), the file of
// chosen addresses, the lock on a data directory, and control groups for
// children.
//
// Invariants:
//   - Roles stop in the reverse of the order in which they started, each only
//     when the one started after it has ended.
//   - The first role that ends, for whatever reason, stops all others.
//   - Whoever calls Wait has, when it returns, nothing left running.
package daemon
