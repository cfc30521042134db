package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// proc is a process that may be started again and again. It ends with the
// test's own.
type proc struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	exit   error         // how; read after ended
	stderr *lockedBuffer
}

// lockedBuffer is what a process wrote so far.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// launch starts a command with an environment added to the test's own.
func (p *proc) launch(args, env []string, stdout *os.File) error {
	p.cmd = exec.CommandContext(context.Background(), args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.stderr = &lockedBuffer{}
	p.cmd.Stderr = p.stderr
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.ended = make(chan struct{})
	started := make(chan error, 1)
	go p.keep(started)
	return <-started
}

// keep starts the child and waits for it on one thread: the kernel sends
// Pdeathsig when the thread that started the child ends.
func (p *proc) keep(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.ended)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.exit = p.cmd.Wait()
	}
}

func (p *proc) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process as kill -9 does, and waits until it is gone.
func (p *proc) kill() {
	if p.running() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// terminate ends the process by SIGTERM. That it does not end cleanly is an
// error.
func (p *proc) terminate() error {
	if !p.running() {
		return fmt.Errorf("ended by itself: %w; its stderr:\n%s", errors.Join(p.exit), p.stderr)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.ended:
		if p.exit != nil {
			return fmt.Errorf("ended with %w after SIGTERM; its stderr:\n%s", p.exit, p.stderr)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("did not end within %v of SIGTERM; its stderr:\n%s", patience, p.stderr)
	}
}
