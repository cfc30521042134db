// Command millrace is the one binary of Millrace: its daemons and the tools
// that talk to them. Each subcommand is a file that parses, wires and calls;
// what happens is in the packages.
package main

import (
	"context"
	"os"

	"millrace/internal/daemon"
)

func main() {
	ctx, stop := daemon.Signals(context.Background(), os.Exit)
	code := runAs(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
