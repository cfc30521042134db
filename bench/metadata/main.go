// Command metadata measures what names cost: it lists a tree of 100,000
// entries and one directory of 1,000,000 through a mount, cold and warm, and
// looks at 10,000 files of a known directory with the kernel's caches dropped.
// Master, worker and mount are processes of their own; their CPU and their
// largest memory are told beside the time. The S3 server is made up in this
// process, so that a million objects cost nothing and its lists are counted.
//
// It must run as root: it mounts, and drops the kernel's caches.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("metadata", run)) }
