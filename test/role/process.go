package role

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"millrace/internal/child"
	"millrace/internal/wait"
)

// Process is a role, which may be started again and again. Its methods may be
// called from any goroutine, those that start and end it by one at a time.
type Process struct {
	// Name is what messages call it.
	Name string
	// HTTP is where its HTTP server listens, HOST:PORT. It is set before the
	// server is asked.
	HTTP string

	mu    sync.Mutex
	child *child.Process // nil before the first start
}

// Start starts it by a command and does not wait for it.
func (p *Process) Start(cmd *exec.Cmd) error {
	started, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child = started
	return nil
}

func (p *Process) process() *child.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child
}

// PID returns the ID of the latest process. It was started.
func (p *Process) PID() int { return p.process().PID() }

// Running reports whether it was started and has not ended.
func (p *Process) Running() bool {
	c := p.process()
	return c != nil && c.Running()
}

// Kill ends it as kill -9 does and waits until it is gone.
func (p *Process) Kill() {
	if c := p.process(); c != nil {
		c.Kill()
	}
}

// Terminate ends it by SIGTERM, which must be clean.
func (p *Process) Terminate(patience time.Duration) error {
	c := p.process()
	if c == nil {
		return fmt.Errorf("%s was never started", p.Name)
	}
	if err := c.Terminate(patience); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

// Pause stops it as SIGSTOP does: its sockets stay open and nobody answers.
func (p *Process) Pause() error { return syscall.Kill(p.PID(), syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Process) Resume() error { return syscall.Kill(p.PID(), syscall.SIGCONT) }

// Poll is how often something is asked for that cannot be waited for.
const Poll = 20 * time.Millisecond

// Until waits until a condition of the process holds. It gives up when the
// process ends.
func (p *Process) Until(ctx context.Context, condition func() error) error {
	for {
		err := condition()
		if err == nil {
			return nil
		}
		c := p.process()
		if c == nil {
			return fmt.Errorf("%s was never started", p.Name)
		}
		if !c.Running() {
			return fmt.Errorf("%s: %w", p.Name, c.Ended())
		}
		if e := wait.For(ctx, Poll); e != nil {
			return fmt.Errorf("%s: %w", p.Name, errors.Join(e, err))
		}
	}
}

// Ready waits until it says that it is ready.
func (p *Process) Ready(ctx context.Context) error {
	return p.Until(ctx, func() error {
		_, err := p.Get(ctx, "/readyz")
		return err
	})
}
