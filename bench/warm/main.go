// Command warm compares builds of millrace on what a warm mount costs: files
// of 100 KiB by 8 readers in shuffled order, and one large file in sequence,
// in interleaved runs with the kernel's caches dropped before each. It starts
// one cluster for each build over a local directory that it makes, and leaves
// nothing behind.
//
//	go run ./bench/warm [-cache /dev/shm] BINARY...
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("warm", run)) }
