package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// SignalError is the cause of a context that a signal ended.
type SignalError struct{ Signal os.Signal }

// Error names the signal.
func (e SignalError) Error() string { return fmt.Sprintf("stopped by signal: %s", e.Signal) }

// Signals returns a context that ends at the first SIGTERM, SIGINT or SIGHUP, with a
// SignalError as its cause. A second one calls exit with 128 plus the
// signal's number: whoever sends two does not want to wait. The returned
// function ends the watching and must be called.
func Signals(ctx context.Context, exit func(int)) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(ch, syscall.SIGHUP)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case s := <-ch:
				if n == 0 {
					cancel(SignalError{s})
					continue
				}
				code := 1
				if s, ok := s.(syscall.Signal); ok {
					code = 128 + int(s)
				}
				exit(code)
				return
			case <-quit:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(quit)
		<-done
		cancel(nil)
	}
}
