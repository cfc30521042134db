package hosts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"millrace/internal/child"
)

// insideVariable is set in a program that Run runs.
const insideVariable = "MILLRACE_TEST_INSIDE"

// Inside reports whether this program has namespaces of its own.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Run runs this program once more, in a network and a mount namespace of its
// own, and returns its exit status. When ctx ends it is asked to end too, and
// has so long for it. Whether that can be had here is known to testenv.
func Run(ctx context.Context, args []string, patience time.Duration) (status int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// Shared, so that hosts, which have slave namespaces, see an unmount.
	const enter = `ip link set lo up && mount --make-rshared / && exec "$0" "$@"`
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "sh", append([]string{"-c", enter, self}, args...)...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS,
	}
	p, err := child.Start(cmd)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		err = p.Terminate(patience)
	case <-p.Done():
		err = p.Err()
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}
