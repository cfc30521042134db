// Command report measures the mount against the bare S3 client and the local
// disk in one run, interleaved, and prints medians, spread and ratios as a
// table and as JSON. It starts its own S3 server and its own cluster, and
// leaves nothing behind but the JSON file.
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("bench", run)) }
