// Package child runs other programs that end with this one. It is for what
// supervises instances, and for tests, benchmarks and tools that start servers:
// a child of theirs must not stay behind, however they end.
//
// Invariants: a child is in a process group of its own, so that a Ctrl-C at
// the terminal reaches its starter alone; the kernel ends it when its starter
// dies; it is waited for exactly once.
package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a child. Its methods may be called from any goroutine.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended
	err  error         // how it ended; read after done
}

// Start starts a command. The child is killed when this process dies, or gets
// the Pdeathsig that cmd.SysProcAttr asks for. A context of the command ends
// it as package exec says.
func Start(cmd *exec.Cmd) (*Process, error) {
	attr := syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Setpgid = true
	cmd.SysProcAttr = &attr
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.keep(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// keep starts the child and waits for it on one thread: the kernel sends
// Pdeathsig when the thread that started the child ends, not the process.
func (p *Process) keep(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
}

// PID returns the child's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the child ended, as exec.Cmd.Wait does. It waits for the
// end.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Running reports whether the child has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the child as kill -9 does, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Terminate asks the child to end by SIGTERM and waits. It returns how the
// child ended: nil is a clean end. That it ended before, or that it did not
// within patience and was killed, is an error.
func (p *Process) Terminate(patience time.Duration) error {
	if !p.Running() {
		return p.Ended()
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s ended after SIGTERM: %w", p.cmd.Path, p.err)
		}
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM and was killed", p.cmd.Path, patience)
	}
}

// Ended returns the error of a child that ended before anybody asked it to,
// and how it did. It waits for the end.
func (p *Process) Ended() error {
	err := p.Err()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("%s ended by itself: %w", p.cmd.Path, err)
}
