package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"millrace/internal/child"
)

// BareMount is a running bench/barefuse.
type BareMount struct{ proc *child.Process }

// StartBareMount mounts dir at point, which is made, and returns when it
// answers. mode is passthrough or copy.
func StartBareMount(ctx context.Context, binary, mode, dir, point string) (*BareMount, error) {
	if err := os.MkdirAll(point, 0o755); err != nil {
		return nil, err
	}
	stdout, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	cmd := exec.Command(binary, mode, dir, point) //nolint:noctx // our own binary; ended by Stop, not by a context
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	// Asked to end rather than killed, it takes its mount away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	proc, err := child.Start(cmd)
	err = errors.Join(err, w.Close())
	if err != nil {
		return nil, err
	}
	m := &BareMount{proc}
	line, err := bufio.NewReader(stdout).ReadString('\n') // ends with the process at the latest
	switch {
	case ctx.Err() != nil:
		return nil, errors.Join(context.Cause(ctx), m.Stop())
	case line != "ready\n":
		return nil, fmt.Errorf("bare mount of %s: %w", dir, errors.Join(err, proc.Ended()))
	}
	return m, nil
}

// PID returns the process ID.
func (m *BareMount) PID() int { return m.proc.PID() }

// Stop unmounts and ends the process.
func (m *BareMount) Stop() error { return m.proc.Terminate(stopPatience) }
