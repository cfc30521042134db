// Command chaos runs a Millrace cluster of three masters and four workers as
// real processes before a real S3 server, does to it at random whatever
// machines, disks and networks do, and checks all the time that nobody notices.
//
// Meanwhile readers read at random and compare every byte with the source,
// callers bind and unbind under-stores and start load jobs, and load jobs run to
// their ends. At the first violation it exits 1 and prints the seed, with which
// it makes the same decisions again; when they fall is up to the machine.
//
// # What goes wrong
//
//   - The leader, any master and any worker: kill -9, SIGSTOP for 10 s, restart.
//   - The network: the leader alone; the leader with half of the workers;
//     clients lose a worker; links that lose packets.
//   - The under-store: 500, 503, half bodies, slow answers, connections that end;
//     and the way there: delayed, held up, cut, and swallowed by a TCP proxy.
//   - A worker's disk is full; a bit of a cached file flips.
//
// One of each of the four groups goes wrong at a time, so that a majority of
// the masters and three workers are well, and all must be.
//
// # What is checked
//
//   - Every byte that a reader gets; that no read fails. A reader may see an error
//     only if the under-store was in trouble during its read.
//   - Changes of the mount table and load jobs are linearizable, and what was
//     acknowledged is there at the end.
//   - Median of the times from a kill of the leader to the next change of the
//     mount table: at most 3 s.
//   - A flipped bit is found, and counted, when its page is read on a path that
//     checks. Bits are flipped in files that one worker alone has, and whole, of
//     an under-store mount with verify=always alone: readers elsewhere are promised
//     less.
//   - A load job reaches its end, and its sums prove it.
//   - At the end all is well again: every object is read, every process ends
//     cleanly.
//
// # Where
//
// As root it has mounts and a network of its own, and each process a network
// namespace and a boot ID, which make it another machine to all others: packets
// are lost without a word. Nothing of that has a name outside or outlives the
// program. Lost packets need iptables; what cannot be done is said at the start.
// Slow reads are told, and are no violation.
//
// Without root the cluster is on loopback, without faults of the network between
// its processes and with no disk to be filled up.
//
// Clocks do not jump: the kernel gives a process no wall clock of its own, and
// the machine's is not ours.
package main
