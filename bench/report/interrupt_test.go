package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/child"
	"millrace/internal/testenv"
)

// patience bounds waits for what must happen: it only decides how long a broken
// build takes to fail.
const patience = 3 * time.Minute

// Whoever has enough of it presses Ctrl-C: nothing is left, no process, no
// mount, no file on the disk or in memory, no wire.
func TestInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, NOT TESTED: it starts three clusters")
	}
	testenv.Require(t, testenv.Root, testenv.Fuse, testenv.S3Server, testenv.Tmpfs)
	bin, disk := t.TempDir(), t.TempDir()
	memory, err := os.MkdirTemp(testenv.TmpfsDir, "millrace-bench-test-") //nolint:usetesting // that is no tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(memory); err != nil {
			t.Error(err)
		}
	})
	build(t, bin, "millrace/bench/report", "millrace/bench/barefuse")
	millrace := os.Getenv("MILLRACE_BINARY")
	if millrace == "" {
		build(t, bin, "millrace/cmd/millrace")
		millrace = filepath.Join(bin, "millrace")
	}
	cmd := exec.Command(filepath.Join(bin, "report"), "-millrace", millrace, "-barefuse", filepath.Join(bin, "barefuse"),
		"-runs", "1", "-big", "64MiB", "-small", "100", "-dir", disk, "-memory", memory, "-json", "")
	said, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, w
	bench, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bench.Kill)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, bench.Kill) // ends what it says
	lines := bufio.NewScanner(io.TeeReader(said, &out))
	measuring := false
	for !measuring && lines.Scan() {
		measuring = strings.HasPrefix(lines.Text(), "run ")
	}
	if !late.Stop() || !measuring || len(left(t, disk, memory)) < 6 {
		t.Fatalf("it does not measure; it said:\n%s", out.String())
	}
	wire := fmt.Sprint("mrbench", bench.PID())
	if err := syscall.Kill(bench.PID(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	late = time.AfterFunc(patience, bench.Kill)
	defer late.Stop()
	_, _ = io.Copy(&out, said) // to its end
	<-bench.Done()
	if err := bench.Err(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v, want exit status 1; it said:\n%s", err, out.String())
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		all := left(t, disk, memory)
		if _, err := os.Stat(filepath.Join("/sys/class/net", wire)); err == nil {
			all = append(all, "the wire "+wire) // which the kernel takes away behind us
		}
		if len(all) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left:\n%s\nit said:\n%s", strings.Join(all, "\n"), out.String())
		}
	}
}

// left is what there is of a benchmark in these directories: files, mounts,
// and processes that have them in their command line.
func left(t *testing.T, dirs ...string) (all []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, " "+dir+"/") {
				all = append(all, "the mount "+line)
			}
		}
		for _, p := range processes {
			b, err := os.ReadFile(p)
			if err == nil && bytes.Contains(b, []byte(dir)) { // else it has ended
				all = append(all, "the process "+string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
			}
		}
	}
	return all
}

func build(t *testing.T, dir string, packages ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
