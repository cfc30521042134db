// Command demo shows Millrace at work on a real S3 server, on this machine
// alone: it starts the server with a generated bucket, runs `millrace up` on
// it, reads everything cold, loads it with a progress bar, reads it again
// warm, and prints what each way of reading cost. It leaves nothing behind.
//
// It exits 1 when anything failed, when a byte was wrong, or when the warm
// phase asked the S3 server for anything.
package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("demo", run)) }
