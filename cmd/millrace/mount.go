package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"millrace/fuse"
	"millrace/internal/errs"
)

// readyFDEnv names the descriptor on which a mount in the background tells its
// starter that it is mounted.
const readyFDEnv = "MILLRACE_READY_FD"

func (a *app) mountCommand() *cobra.Command {
	bind := bindings{"data-dir": "fuse.data_dir", "http-listen": "fuse.http_listen"}
	var options, root string
	var background bool
	c := &cobra.Command{
		Use:   "mount MOUNTPOINT",
		Short: "Mount the namespace on a directory",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, _, err := a.settings(cmd, bind)
			if err != nil {
				return err
			}
			if s.FUSE.Config, err = fuse.ParseOptions(s.FUSE.Config, options); err != nil {
				return usageError{err}
			}
			if !strings.HasPrefix(root, "/") {
				return usagef("--path %q: want a path of the namespace, which begins with a slash", root)
			}
			point, err := absolute(args[0])
			if err != nil {
				return err
			}
			// Each mount point has a directory of its own, so that several
			// mounts of a host need only different ports.
			dir := filepath.Join(s.FUSE.DataDir, url.PathEscape(strings.TrimPrefix(point, "/")))
			if background {
				return a.mountInBackground(cmd.Context(), point, dir)
			}
			n, err := newNode(s, a.logger(s))
			if err != nil {
				return err
			}
			return a.runMount(cmd.Context(), n, dir, mountSpec{point: point, root: cleanPath(root), masters: s.Cluster.Masters})
		},
	}
	f := c.Flags()
	f.StringVar(&root, "path", "/", "`PATH` of the namespace that is mounted")
	f.StringVarP(&options, "options", "o", "", "mount `OPTIONS`, separated by commas: ro, allow_other, uid=, gid=, umask=, passthrough=auto|off, no_open, read_ahead=, nonempty")
	f.BoolVar(&background, "background", false, "return when it is mounted; umount ends it")
	f.String("data-dir", "", "`DIR` of locks, addresses and logs")
	f.String("http-listen", "", "`HOST:PORT` of /metrics, /healthz, /readyz and /debug/pprof")
	return c
}

func (a *app) runMount(ctx context.Context, n *node, dir string, spec mountSpec) error {
	if err := n.lock(dir, "another mount point"); err != nil {
		return n.fail(ctx, err)
	}
	var err error
	if spec.http, err = n.listen(ctx, mountRole, "http", tcp("the mount's HTTP", n.settings.FUSE.HTTPListen, "--http-listen", "fuse.http_listen")); err != nil {
		return n.fail(ctx, err)
	}
	if err := n.addresses.Write(dir); err != nil {
		return n.fail(ctx, err)
	}
	if err := n.startMount(ctx, spec); err != nil {
		return n.fail(ctx, err)
	}
	if err := a.tellReady(); err != nil {
		return n.fail(ctx, err)
	}
	return n.finish(ctx)
}

// tellReady tells the process that put this one into the background.
func (a *app) tellReady() error {
	fd, err := strconv.Atoi(a.getenv(readyFDEnv))
	if err != nil {
		return nil //nolint:nilerr // there is nobody to tell
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, err = f.WriteString(readyWord + "\n")
	return errors.Join(err, f.Close())
}

const readyWord = "ready"

// mountInBackground starts this program again, without --background, in a
// session of its own, and waits until it is mounted or has ended. Its log goes
// to a file in dir; what it logged before it failed is shown.
func (a *app) mountInBackground(ctx context.Context, point, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(err, "make data directory", dir)
	}
	logName := filepath.Join(dir, "log")
	logFile, err := os.OpenFile(logName, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return errs.Wrap(err, "open log", logName)
	}
	defer func() { _ = logFile.Close() }()
	before, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return errs.Wrap(err, "open log", logName)
	}
	exe, err := os.Executable()
	if err != nil {
		return errs.Wrap(err, "find the program", "")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return errs.Wrap(err, "make a pipe", "")
	}
	defer func() { _ = r.Close() }()
	//nolint:noctx // itself, with its own arguments, which outlives this process
	child := exec.Command(exe, withoutBackground(a.args)...)
	child.Args[0] = "millrace" // not the name that this process may have been called by
	child.Stdout, child.Stderr = logFile, logFile
	child.ExtraFiles = []*os.File{w}
	child.Env = append(os.Environ(), readyFDEnv+"=3")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	_ = w.Close()
	if err != nil {
		return errs.Wrap(err, "start", exe)
	}
	stop := context.AfterFunc(ctx, func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, _ := bufio.NewReader(r).ReadString('\n') // the end of the pipe is the end of the process
	if strings.TrimSpace(line) == readyWord {
		_, _ = fmt.Fprintf(a.stderr, "mounted on %s by process %d, which logs to %s\n", point, child.Process.Pid, logName)
		return child.Process.Release()
	}
	_ = child.Wait() // it failed, and says why in its log
	return a.showLog(logName, before)
}

// showLog copies a log from an offset on to stderr.
func (a *app) showLog(name string, from int64) error {
	f, err := os.Open(name)
	if err != nil {
		return errs.Wrap(err, "read log", name)
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(a.stderr, io.NewSectionReader(f, from, 1<<20)); err != nil {
		return errs.Wrap(err, "read log", name)
	}
	return errTold
}

func withoutBackground(args []string) []string {
	var list []string
	for _, arg := range args {
		if arg != "--background" && !strings.HasPrefix(arg, "--background=") {
			list = append(list, arg)
		}
	}
	return list
}
