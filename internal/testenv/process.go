package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// outputTail is how many bytes of a process's output are kept for messages.
const outputTail = 32 << 10

// process is a child that ends with its starter.
type process struct {
	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed when the child has ended
	err    error         // how it ended; read after done
	stop   sync.Once
}

// startProcess starts cmd. The child ends when ctx does, when stop is called,
// and when this process dies.
func startProcess(ctx context.Context, path string, args, env []string) (*process, error) {
	p := &process{output: &tail{limit: outputTail}, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, path, args...)
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = stopGrace
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	started := make(chan error, 1)
	go p.keep(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// keep starts the child and waits for it on one thread: the kernel sends
// Pdeathsig when the thread that started the child ends, not the process.
func (p *process) keep(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
}

// end asks the child to end, kills it when it does not, and waits for it.
func (p *process) end() error {
	var err error
	p.stop.Do(func() {
		select {
		case <-p.done:
			err = fmt.Errorf("%s ended by itself: %w\n%s", p.cmd.Path, p.err, p.output)
			return
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
		grace := time.NewTimer(stopGrace)
		defer grace.Stop()
		select {
		case <-p.done:
		case <-grace.C:
			_ = p.cmd.Process.Kill()
			<-p.done
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
		case <-p.done:
			return fmt.Errorf("%s before %s: %w\n%s", p.cmd.Path, what, errors.Join(errors.New("ended"), p.err), p.output)
		case <-ctx.Done():
			return fmt.Errorf("%s: no %s in time: %w\n%s", p.cmd.Path, what, context.Cause(ctx), p.output)
		}
	}
}

// tail is a writer that keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   bytes.Buffer
}

func (w *tail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if over := w.buf.Len() - w.limit; over > 0 {
		w.buf.Next(over)
	}
	return len(p), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
