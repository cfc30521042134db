// Package cluster starts Millrace clusters of real processes on this machine
// and does to them what machines and networks do: kill -9, SIGSTOP, restarts,
// empty disks. Its tests prove what a cluster of three masters promises.
//
// A Cluster gives each process a loopback address of its own (127.x.y.n), so
// that all have the default ports, never collide, and keep their addresses over
// a restart; and a directory of its own with its configuration, state and log.
// Processes end with the program that started them, however that ends.
//
// The package itself has no opinion about what must hold: that is in its tests.
// They use the SDK in the test's own process, which sees every error, and the
// binary for the rest.
package cluster
