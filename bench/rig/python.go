package rig

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"millrace/internal/child"
)

//go:embed readers.py
var readersScript string

// Python is a running python3 that reads files: readers that cost more than
// those of this program, as most programs' do.
type Python struct {
	proc *child.Process
	in   *os.File
	out  *bufio.Reader
	pipe io.Closer // of out
	want int64     // bytes of the set that is prepared
}

// StartPython starts python3; exec.ErrNotFound if there is none.
func StartPython() (*Python, error) {
	binary, err := exec.LookPath("python3")
	if err != nil {
		return nil, err
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer stdout.Close()
	cmd := exec.Command(binary, "-c", readersScript) //nolint:noctx // ended by Stop, not by a context
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	proc, err := child.Start(cmd)
	if err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	return &Python{proc: proc, in: in, out: bufio.NewReader(out), pipe: out}, nil
}

// PID returns the process ID.
func (p *Python) PID() int { return p.proc.PID() }

// Prepare tells which files Read is to read: those of the set below root, in
// an order that seed decides, with that many readers at once.
func (p *Python) Prepare(root string, d Dataset, readers int, seed uint64) error {
	var text strings.Builder
	fmt.Fprintln(&text, readers, len(d.Objects))
	for _, i := range rand.New(rand.NewPCG(seed, 0)).Perm(len(d.Objects)) {
		fmt.Fprintln(&text, filepath.Join(root, filepath.FromSlash(d.Objects[i].Key)))
	}
	p.want = d.Bytes()
	return p.ask(text.String(), "ready")
}

// Read reads what was prepared.
func (p *Python) Read(context.Context) error {
	return p.ask("go\n", strconv.FormatInt(p.want, 10))
}

func (p *Python) ask(question, want string) error {
	if _, err := p.in.WriteString(question); err != nil {
		return errors.Join(fmt.Errorf("ask python3: %w", err), p.proc.Ended())
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		return errors.Join(fmt.Errorf("python3 says nothing: %w", err), p.proc.Ended())
	}
	if got := strings.TrimSpace(line); got != want {
		return fmt.Errorf("python3 says %q, want %q", got, want)
	}
	return nil
}

// Stop ends the process, which does so when it is told nothing more.
func (p *Python) Stop() error {
	err := p.in.Close()
	select {
	case <-p.proc.Done():
		err = errors.Join(err, p.proc.Err())
	case <-time.After(stopPatience):
		err = errors.Join(err, p.proc.Terminate(stopPatience))
	}
	return errors.Join(err, p.pipe.Close())
}
