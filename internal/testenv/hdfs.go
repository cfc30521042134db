package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"millrace/internal/child"
)

const (
	// hdfsUser is who tests are in HDFS: the one who starts its daemons may do all.
	hdfsUser  = "root"
	localhost = "127.0.0.1"
)

// HDFS is a real HDFS on loopback, with one NameNode or two.
type HDFS struct {
	URL string // hdfs://HOST:PORT, of the first NameNode

	script string
	dir    string
	guard  *exec.Cmd
	hold   io.Closer // the guard ends HDFS when it is closed
}

// StartHDFS starts an HDFS with so many DataNodes for the test. The test is
// skipped, or fails, where that cannot be; see Require.
func StartHDFS(tb testing.TB, dataNodes int, properties ...string) *HDFS {
	tb.Helper()
	return start(tb, dataNodes, defined(properties)...)
}

// defined makes options of properties.
func defined(properties []string) []string {
	var options []string
	for _, p := range properties {
		options = append(options, "-D", p)
	}
	return options
}

// StartHDFSPair is StartHDFS with two NameNodes that share a journal: "nn", which
// is active at first, and "nn2".
func StartHDFSPair(tb testing.TB, dataNodes int) *HDFS {
	tb.Helper()
	return start(tb, dataNodes, "--ha")
}

func start(tb testing.TB, dataNodes int, options ...string) *HDFS {
	tb.Helper()
	Require(tb, HadoopFS)
	h, err := launchHDFS(context.WithoutCancel(tb.Context()), localhost, dataNodes, options)
	if err != nil {
		tb.Fatalf("start HDFS: %v", err)
	}
	tb.Cleanup(func() {
		if err := h.Stop(); err != nil {
			tb.Errorf("stop HDFS: %v", err)
		}
	})
	return h
}

// ConfDir returns the directory with core-site.xml and hdfs-site.xml.
func (h *HDFS) ConfDir() string { return filepath.Join(h.dir, "conf") }

// Activate makes the NameNode, "nn" or "nn2", the active one.
func (h *HDFS) Activate(ctx context.Context, daemon string) error {
	cmd := exec.CommandContext(ctx, "bash", h.script, "activate", h.dir, daemon)
	cmd.Env = append(os.Environ(), "HADOOP_USER_NAME="+hdfsUser)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s active: %w: %s", daemon, err, out)
	}
	return nil
}

// LaunchHDFS starts an HDFS with a directory of its own, which goes with it,
// and returns when it takes writes, some 20 s later. properties are Hadoop's,
// KEY=VALUE. It runs until Stop is called or this process ends.
func LaunchHDFS(ctx context.Context, dataNodes int, properties ...string) (*HDFS, error) {
	return LaunchHDFSAt(ctx, localhost, dataNodes, properties...)
}

// LaunchHDFSAt is LaunchHDFS at another IP address of this host.
func LaunchHDFSAt(ctx context.Context, host string, dataNodes int, properties ...string) (*HDFS, error) {
	return launchHDFS(ctx, host, dataNodes, defined(properties))
}

func launchHDFS(ctx context.Context, host string, dataNodes int, options []string) (*HDFS, error) {
	script, err := hdfsScript()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-hdfs-")
	if err != nil {
		return nil, err
	}
	h := &HDFS{script: script, dir: dir}
	if err := h.watch(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := h.launch(ctx, host, dataNodes, options); err != nil {
		return nil, errors.Join(err, h.Stop())
	}
	return h, nil
}

// watch starts the guard, which outlives this process to end the daemons: they
// are nobody's children.
func (h *HDFS) watch(ctx context.Context) error {
	const wait = `read -r _; HDFS_WAIT=0 "$0" stop "$1"; rm -rf "$1"`
	h.guard = exec.CommandContext(context.WithoutCancel(ctx), "bash", "-c", wait, h.script, h.dir)
	h.guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hold, err := h.guard.StdinPipe()
	if err != nil {
		return err
	}
	h.hold = hold
	return h.guard.Start()
}

// launch starts the daemons. Their ports are next to each other, below those
// that the kernel gives away: where one is taken, another range is tried.
func (h *HDFS) launch(ctx context.Context, host string, dataNodes int, options []string) error {
	const lowest, highest, tries = 12000, 32000, 20
	var output *child.Tail
	for range tries {
		port := lowest + rand.N(highest-lowest)
		args := []string{h.script, "start", h.dir, "--host", host, "--port", strconv.Itoa(port), "--datanodes", strconv.Itoa(dataNodes)}
		args = append(args, options...)
		output = child.NewTail(outputTail)
		cmd := exec.CommandContext(ctx, "bash", args...)
		cmd.Env = hdfsEnv()
		cmd.Stdout, cmd.Stderr = output, output
		p, err := child.Start(cmd)
		if err != nil {
			return err
		}
		if p.Err() == nil {
			h.URL = fmt.Sprintf("hdfs://%s:%d", host, port)
			return nil
		}
		if !strings.Contains(output.String(), "is taken") {
			break
		}
		stop := exec.CommandContext(ctx, "bash", h.script, "stop", h.dir)
		stop.Env = append(os.Environ(), "HDFS_WAIT=0")
		if err := stop.Run(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s", output)
}

// hdfsEnv is the environment of the script: on a busy machine four Java
// programs take minutes to start.
func hdfsEnv() []string {
	return append(os.Environ(), "HDFS_HEAP=128m", "HDFS_WAIT=300", "HADOOP_USER_NAME="+hdfsUser)
}

// Stop ends the daemons and removes their data.
func (h *HDFS) Stop() error {
	return errors.Join(h.hold.Close(), h.guard.Wait())
}

// Address returns where the NameNode listens.
func (h *HDFS) Address() string { return strings.TrimPrefix(h.URL, "hdfs://") }

// DataDir returns the directory of a daemon's data: "dn1" is the first
// DataNode.
func (h *HDFS) DataDir(daemon string) string { return filepath.Join(h.dir, daemon) }

// Signal sends a signal to a daemon: "nn" is the NameNode, "dn1" the first
// DataNode.
func (h *HDFS) Signal(daemon string, sig syscall.Signal) error {
	pid, err := h.pid(daemon)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

func (h *HDFS) pid(daemon string) (int, error) {
	b, err := os.ReadFile(filepath.Join(h.dir, daemon+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Revive starts the daemons that died, and returns when all serve.
func (h *HDFS) Revive(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "bash", h.script, "start", h.dir)
	cmd.Env = hdfsEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// Kill ends a daemon as kill -9 does, and returns when it is gone.
func (h *HDFS) Kill(ctx context.Context, daemon string) error {
	pid, err := h.pid(daemon)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); errors.Is(err, fs.ErrNotExist) || strings.Contains(string(state), ") Z ") {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Client returns a client to write with.
func (h *HDFS) Client(tb testing.TB) *hdfs.Client {
	tb.Helper()
	c, err := hdfs.NewClient(hdfs.ClientOptions{Addresses: []string{h.Address()}, User: hdfsUser})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() }) // it is of no use any more
	return c
}

// PutHDFS makes or replaces a file, with the directories above it, in blocks of
// so many bytes and one replica each, or as many as given.
func PutHDFS(c *hdfs.Client, name string, data []byte, blockSize int64, replication int) error {
	if err := c.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// The library gives up a file when a DataNode fails it, as those of a busy
	// machine do.
	const tries = 3
	var err error
	for range tries {
		if err = putOnce(c, name, data, blockSize, replication); err == nil {
			return nil
		}
	}
	return err
}

func putOnce(c *hdfs.Client, name string, data []byte, blockSize int64, replication int) error {
	if err := c.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, err := c.CreateFile(name, replication, blockSize, 0o644)
	if err != nil {
		return err
	}
	if len(data) > 0 { // an empty block is never complete
		if _, err := w.Write(data); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	return CloseHDFS(w)
}

// CloseHDFS ends a file that was written, when its last block is where it
// should be: the library leaves it to its user to ask again until then.
func CloseHDFS(w *hdfs.FileWriter) error {
	for end := time.Now().Add(startLimit); ; time.Sleep(time.Millisecond) {
		if err := w.Close(); err == nil || !hdfs.IsErrReplicating(err) || time.Now().After(end) {
			return err
		}
	}
}

// hdfsScript finds test/hdfs/hdfs.sh in a folder above the working directory.
func hdfsScript() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		script := filepath.Join(dir, "test", "hdfs", "hdfs.sh")
		if _, err := os.Stat(script); err == nil {
			return script, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("test/hdfs/hdfs.sh is in no folder above")
		}
		dir = up
	}
}

// checkHDFS sees that HDFS can be started: there is Java, and the jars are
// there or can be had.
func checkHDFS() error {
	java := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		java = filepath.Join(home, "bin", "java")
	}
	if _, err := exec.LookPath(java); err != nil {
		return err
	}
	script, err := hdfsScript()
	if err != nil {
		return err
	}
	const patience = 5 * time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "bash", script, "jars").CombinedOutput(); err != nil {
		return fmt.Errorf("the jars of Hadoop: %w: %s", err, out)
	}
	return nil
}
