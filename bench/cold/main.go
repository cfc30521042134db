// Command cold compares builds of millrace on what is in no cache: one large
// object and objects of 100 KiB read through a mount, and loaded, from an S3
// server of its own, in interleaved runs beside the bare S3 client. Each build
// has a master, a worker and a mount, whose CPU is told apart. It leaves
// nothing behind.
//
//	go run ./bench/cold [-runs 5] [-only seq,small,load,loads] BINARY...
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("cold", run)) }
