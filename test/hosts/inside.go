package hosts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"millrace/internal/child"
	"millrace/internal/testenv"
)

// insideVariable is set in a program that Main runs.
const insideVariable = "MILLRACE_TEST_INSIDE"

// Inside reports whether this program has namespaces of its own.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Main runs a program, or its tests, in a network and a mount namespace of its
// own: main is called there, in another process. Where they cannot be had it is
// called here. Main returns its exit status. Signals that end a program are
// passed on, and have patience.
func Main(main func() int, patience time.Duration) (status int) {
	if Inside() || testenv.Namespaces.Missing() != nil {
		return main()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := again(ctx, patience)
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// again runs this program once more, in namespaces of its own.
func again(ctx context.Context, patience time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Shared, so that hosts, which have slave namespaces, see an unmount.
	const enter = `ip link set lo up && mount --make-rshared / && exec "$0" "$@"`
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "sh", append([]string{"-c", enter, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS,
	}
	p, err := child.Start(cmd)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return p.Terminate(patience)
	case <-p.Done():
		return p.Err()
	}
}
