// Package cluster starts Millrace clusters of real processes on this machine
// and does to them what machines and networks do: kill -9, SIGSTOP, restarts,
// empty disks; with packages hosts and disk also partitions, lost packets, power
// cuts and disks that fail. Its tests prove what a cluster of three masters
// promises.
//
// A Cluster gives each process a loopback address of its own (127.x.y.n), so
// that all have the default ports, never collide, and keep their addresses over
// a restart; and a directory of its own with its configuration, state and log.
// Processes end with the program that started them, however that ends.
//
// Config.Host puts the processes elsewhere: onto hosts of their own, for one. A
// History records what clients did to the mount table and to load jobs, and tells
// whether the answers are linearizable.
//
// The package has no other opinion about what must hold: that is in its tests,
// and in command chaos. The tests use the SDK in the test's own process, which
// sees every error, and the binary for the rest. They run in namespaces of their
// own where that can be; those on hosts share one network and run by themselves.
package cluster
