// Command peers measures other FUSE file systems over S3 on the same work as
// `make bench`: a large object and small ones, cold and warm, names and opens,
// each beside the local disk and a bare S3 client in the same run. It takes
// those whose binaries it finds, says which it does not, starts its own S3
// server, and leaves nothing behind but a JSON file.
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("bench-peers", run)) }
