// Command testsum runs `go test -json` with its arguments and prints what a
// reader of a CI log needs: go test's line for each package as it ends, the
// whole output of what failed, each skip with its reason (go test hides them
// unless it is verbose), and sums. It fails when go test fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	//nolint:gosec // the arguments are the developer's own
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s := newSummary(stdout)
	readErr := s.readAll(out)
	if readErr != nil {
		_, _ = io.Copy(io.Discard, out) // let go test end; the first error is the one to tell
	}
	err = cmd.Wait()
	s.print()
	if err == nil && s.failed > 0 {
		err = errors.New("tests failed")
	}
	return errors.Join(readErr, err)
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string `json:"Action"`
	Package string `json:"Package"` // none in the events of builds
	Test    string `json:"Test"`    // none in the events of whole packages
	Output  string `json:"Output"`
}

// decode calls use for each event in r.
func decode(r io.Reader, use func(event)) error {
	d := json.NewDecoder(r)
	for {
		var e event
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the events of go test: %w", err)
		}
		use(e)
	}
}
