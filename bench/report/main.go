// Command report measures this machine: the mount, its parts and its load jobs
// beside what they are held against, the local file systems, a FUSE mount with
// nothing behind it, and a bare S3 client. Everything runs interleaved, a few
// times, and what is printed are medians and their spread: a table of the
// targets, met or missed, a table of all measurements with the CPU time of
// every process, and both as JSON. It starts its own S3 server and its own
// clusters, and leaves nothing behind but the JSON file.
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("bench", run)) }
