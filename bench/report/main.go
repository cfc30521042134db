// Command report measures the mount against the bare S3 client and the local
// disk in one run, interleaved, and prints medians, spread and ratios as a
// table and as JSON. It starts its own S3 server and its own cluster, and
// leaves nothing behind but the JSON file.
//
// It needs root (to mount, and to drop the kernel's caches) and /dev/fuse.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has run
	}
}
