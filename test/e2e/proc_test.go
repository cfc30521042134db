package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"millrace/internal/child"
)

// stderrKept is how many bytes of a process's stderr the tests can see.
const stderrKept = 16 << 20

// proc is a process that may be started again and again. It ends with the
// test's own.
type proc struct {
	child  *child.Process // nil before the first launch
	stderr *child.Tail
}

// launch starts a command with an environment added to the test's own.
func (p *proc) launch(args, env []string, stdout *os.File) (err error) {
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	p.stderr = child.NewTail(stderrKept)
	cmd.Stderr = p.stderr
	if stdout != nil {
		cmd.Stdout = stdout
	}
	p.child, err = child.Start(cmd)
	return err
}

func (p *proc) running() bool { return p.child != nil && p.child.Running() }

// kill ends the process as kill -9 does, and waits until it is gone.
func (p *proc) kill() {
	if p.running() {
		p.child.Kill()
	}
}

// terminate ends the process by SIGTERM. That it does not end cleanly is an
// error.
func (p *proc) terminate() error {
	if p.child == nil {
		return errors.New("it was never started")
	}
	if err := p.child.Terminate(patience); err != nil {
		return fmt.Errorf("%w; its stderr:\n%s", err, p.stderr)
	}
	return nil
}
