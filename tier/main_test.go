package tier

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"millrace/block"
)

// holderEnv makes the test binary hold a backing file, as a reader does that
// got its descriptor: the value is "open" or "map", how much of
// it the reader looks at, and the file's name.
const holderEnv = "MILLRACE_TIER_TEST_HOLDER"

func TestMain(m *testing.M) {
	if job := os.Getenv(holderEnv); job != "" {
		if err := hold(job, os.Stdin, os.Stdout); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	checksByDefault()
	goleak.VerifyTestMain(m)
}

// checksByDefault has the models try 25 random histories each, unless
// -rapid.checks says how many: they sync real disks, which takes its time.
func checksByDefault() {
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "rapid.checks" })
	if told {
		return
	}
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
}

// hold opens the file and tells the checksum of what it looks at, and again
// for each line of in.
func hold(job string, in io.Reader, out io.Writer) error {
	var how, name string
	var length int
	if _, err := fmt.Sscanf(job, "%s %d %s", &how, &length, &name); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOATIME, 0)
	if err != nil {
		return err
	}
	bytes := make([]byte, length)
	if how == "map" { // the descriptor goes, the mapping stays
		if bytes, err = syscall.Mmap(int(f.Fd()), 0, length, syscall.PROT_READ, syscall.MAP_SHARED); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	for lines := bufio.NewScanner(in); ; {
		if how != "map" {
			if _, err := f.ReadAt(bytes, 0); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(out, "%08x\n", block.Checksum(bytes)); err != nil || !lines.Scan() {
			return err
		}
	}
}

// holder is another process that has a backing file.
type holder struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	sum string // of what it saw first
}

// startHolder starts a process that has a backing file open or mapped. It
// ends when the test does, at the latest.
func startHolder(t *testing.T, how string, length int64, name string) *holder {
	t.Helper()
	h := &holder{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0])}
	h.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", holderEnv, how, length, name))
	in, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.in, h.out = in, bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.kill)
	h.sum = h.line()
	return h
}

func (h *holder) line() string {
	h.t.Helper()
	if !h.out.Scan() {
		h.t.Fatalf("the holder ended: %v", h.out.Err())
	}
	return h.out.Text()
}

// unchanged checks that the holder still sees the same bytes.
func (h *holder) unchanged() {
	h.t.Helper()
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		h.t.Fatal(err)
	}
	if got := h.line(); got != h.sum {
		h.t.Fatalf("the bytes changed under a holder: checksum %s, then %s", h.sum, got)
	}
}

func (h *holder) signal(sig syscall.Signal) {
	h.t.Helper()
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
}

// leave has the holder end by itself.
func (h *holder) leave() {
	h.t.Helper()
	if err := h.in.Close(); err != nil {
		h.t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		h.t.Fatal(err)
	}
}

// kill ends the holder, also one that is paused, and waits for it.
func (h *holder) kill() {
	_ = h.cmd.Process.Kill() // it may have ended
	_ = h.cmd.Wait()
}
