// Command chaos runs a Millrace cluster of three masters and four workers as
// real processes before a real S3 server and, where there is Java, a real HDFS,
// does to it at random whatever machines, disks and networks do, and checks all
// the time that nobody notices.
//
// Meanwhile readers read at random and compare every byte with the source,
// callers bind and unbind under-stores and start load jobs, and load jobs run to
// their ends. At the first violation it exits 1 and prints the seed, with which
// it makes the same decisions again; when they fall is up to the machine.
//
// # What goes wrong
//
//   - The leader, any master and any worker: kill -9, SIGSTOP for 10 s, restart.
//   - Their machines: the power of a worker's and of a master's is cut, any
//     master and any worker comes back with an empty disk; the disk of the leader
//     and of any worker answers EIO, or ENOSPC, to reads and writes.
//   - The network: the leader alone; the leader with half of the workers;
//     clients lose a worker; links that lose packets.
//   - The under-stores: S3 answers 500, 503, half bodies, slowly, or ends
//     connections; the way to it is delayed, held up, cut, and swallowed by a TCP
//     proxy; a DataNode and the NameNode of HDFS are killed.
//   - Disks: a worker's is full; a bit of a cached file flips; a DataNode is
//     frozen.
//
// One of each of the four groups, masters, workers, under-stores and disks, goes
// wrong at a time, so that a majority of the masters and two workers are well, and
// most of the time all but two processes.
//
// # What is checked
//
//   - Every byte that a reader gets; that no read fails. A reader may see an error
//     only if the file's under-store was in trouble during its read. That one
//     DataNode is dead or frozen is none: two others have each block.
//   - Changes of the mount table and load jobs are linearizable, and what was
//     acknowledged is there at the end.
//   - Median of the times from a kill of the leader to the next change of the
//     mount table: at most 3 s.
//   - A flipped bit is found, and counted, when its page is read on a path that
//     checks. Bits are flipped in files that one worker alone has, and whole, of
//     an under-store mount with verify=always alone: readers elsewhere are promised
//     less. All else is well meanwhile.
//   - With a frozen DataNode, and all else well, a file that is not cached is
//     read whole within 8 s: another DataNode is asked after 2 s.
//   - A load job reaches its end, and its sums prove it.
//   - At the end all is well again: every object is read, every process ends
//     cleanly.
//
// A worker on a disk that fails cannot start, and cannot end cleanly: nobody asks
// it to, and its disk must be in use again soon after it is well. A change that failed for want of a leader, or in time, may have been done: it
// counts as either. Slow reads are told, and are no violation.
//
// # Where
//
// As root it has mounts and a network of its own, and each process a network
// namespace and a boot ID, which make it another machine to all others: packets
// are lost without a word. Nothing of that has a name outside or outlives the
// program. A power cut is one of an ext4 in a file, by its shutdown call; the
// process is killed and its host has another boot ID afterwards. Lost packets need
// nf_tables, disks that fail strace, HDFS Java; what cannot be done is said at the
// start.
//
// Without root the cluster is on loopback, without faults of the network between
// its processes, full disks and power cuts.
//
// Clocks do not jump: the kernel gives a process no wall clock of its own (time
// namespaces have the monotonic and the boot clock alone), and the machine's is
// not ours. What is compared with another time within a process is compared by the
// monotonic clock, which no setting moves; tickets alone have a wall clock's time,
// with 5 minutes of skew. Tests of the packages set the clock back.
package main
