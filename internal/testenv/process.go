package testenv

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"millrace/internal/child"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// outputTail is how many bytes of a process's output are kept for messages.
const outputTail = 32 << 10

// process is a child whose output explains its failures.
type process struct {
	*child.Process

	path   string
	output *child.Tail
	stop   sync.Once
}

// startProcess starts a program. The child ends when ctx does, when end is
// called, and when this process dies.
func startProcess(ctx context.Context, path string, args, env []string) (*process, error) {
	p := &process{path: path, output: child.NewTail(outputTail)}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	var err error
	p.Process, err = child.Start(cmd)
	return p, err
}

// end asks the child to end, kills it when it does not, and waits for it. That
// it ended by itself is an error; how it ends when asked is not.
func (p *process) end() error {
	var err error
	p.stop.Do(func() {
		alive := p.Running()
		if e := p.Terminate(stopGrace); !alive {
			err = fmt.Errorf("%w\n%s", e, p.output)
		}
	})
	return err
}

// until calls ready each few milliseconds until it says true. It gives up
// when ctx ends or the process does.
func (p *process) until(ctx context.Context, what string, ready func(context.Context) (bool, error)) error {
	const interval = 5 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		ok, err := ready(ctx)
		if ok || (err != nil && ctx.Err() == nil) {
			return err
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("before %s: %w\n%s", what, p.Ended(), p.output)
		case <-ctx.Done():
			return fmt.Errorf("%s: no %s in time: %w\n%s", p.path, what, context.Cause(ctx), p.output)
		}
	}
}
