package disk

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"millrace/internal/child"
)

// Failure is what a disk answers, and to which system calls.
type Failure struct {
	What  string
	errno string
	calls string
}

// Failures returns those that Fail knows. The system calls are of those that
// nothing but files get.
func Failures() []Failure {
	return []Failure{
		{"I/O errors at reads and writes", "EIO", "pread64,preadv,pwrite64,pwritev,fdatasync,fsync,syncfs,fallocate"},
		{"I/O errors at writes", "EIO", "pwrite64,pwritev,fdatasync,fsync,syncfs"},
		{"no space", "ENOSPC", "pwrite64,pwritev,fallocate,ftruncate"},
	}
}

// Fail lets all disks of a process fail. heal ends it. It needs strace.
func Fail(ctx context.Context, pid int, f Failure) (heal func() error, err error) {
	const patience = 10 * time.Second
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "strace", "-f", "-o", "/dev/null", "-p", strconv.Itoa(pid),
		"-e", "trace="+f.calls, "-e", "inject="+f.calls+":error="+f.errno)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	p, err := child.Start(cmd)
	if err != nil {
		return nil, err
	}
	said := bufio.NewScanner(stderr)
	if !said.Scan() || !strings.Contains(said.Text(), "attached") {
		p.Kill()
		return nil, fmt.Errorf("trace process %d: %s", pid, said.Text())
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }() // it ends with strace
	return func() error {
		if !p.Running() {
			return nil // the process has ended, and strace with it
		}
		_ = p.Terminate(patience) // its status is the signal's
		return nil
	}, nil
}
