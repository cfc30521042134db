package child_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/child"
)

// patience bounds waits that end at once unless something is broken.
const patience = time.Minute

func start(t *testing.T, script string) (*child.Process, *child.Tail) {
	t.Helper()
	out := child.NewTail(1 << 10)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p, out
}

// await returns what a child wrote when it ends in the text.
func await(t *testing.T, p *child.Process, out *child.Tail, text string) string {
	t.Helper()
	for !strings.HasSuffix(out.String(), text) {
		if !p.Running() {
			t.Fatalf("%v; it wrote:\n%s", p.Ended(), out)
		}
		time.Sleep(time.Millisecond)
	}
	return out.String()
}

func TestTerminate(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"clean", `trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done`, ""},
		{"failing", `trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done`, "exit status 3"},
		{"not handled", `echo ready; exec sleep 1000`, "signal: terminated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, out := start(t, c.script)
			await(t, p, out, "ready\n")
			err := p.Terminate(patience)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if p.Running() {
				t.Error("it still runs")
			}
		})
	}
}

func TestTerminateWhatEndedBefore(t *testing.T) {
	for _, script := range []string{"exit 0", "exit 7"} {
		p, _ := start(t, script)
		<-p.Done()
		if err := p.Terminate(patience); err == nil || !strings.Contains(err.Error(), "by itself: exit status "+script[5:]) {
			t.Errorf("%s: got %v", script, err)
		}
	}
}

func TestTerminateKillsWhatDoesNotEnd(t *testing.T) {
	p, out := start(t, `trap '' TERM; echo ready; exec sleep 1000`)
	await(t, p, out, "ready\n")
	if err := p.Terminate(time.Millisecond); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("got %v", err)
	}
	if err := p.Err(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("it ended with %v", err)
	}
}

// The child has a process group of its own, and asks the kernel to end it with
// its starter, also where the caller had wishes for other attributes.
func TestGroup(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	p, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if group, err := syscall.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("its group is %d, %v, want %d", group, err, p.PID())
	}
	if cmd.SysProcAttr.Pdeathsig != syscall.SIGTERM {
		t.Errorf("Pdeathsig is %v, want SIGTERM", cmd.SysProcAttr.Pdeathsig)
	}
}

// A child ends when its starter is killed, which then can clean up nothing.
func TestEndsWithItsStarter(t *testing.T) {
	const role = "MILLRACE_TEST_CHILD_STARTER"
	if os.Getenv(role) != "" {
		p, err := child.Start(exec.CommandContext(t.Context(), "sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("pid " + strconv.Itoa(p.PID()) + ".\n")
		<-p.Done()
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestEndsWithItsStarter$")
	cmd.Env = append(os.Environ(), role+"=1")
	out := child.NewTail(1 << 10)
	cmd.Stdout, cmd.Stderr = out, out
	starter, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer starter.Kill()
	_, pidText, _ := strings.Cut(await(t, starter, out, ".\n"), "pid ")
	pid, err := strconv.Atoi(strings.TrimSuffix(pidText, ".\n"))
	if err != nil {
		t.Fatal(err)
	}
	starter.Kill()
	for deadline := time.Now().Add(patience); alive(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d outlives its starter", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

// alive reports whether a process runs; one that nobody has waited for yet
// does not.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z")
}

func TestStartFails(t *testing.T) {
	if _, err := child.Start(exec.CommandContext(t.Context(), "/nonexistent/program")); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestTail(t *testing.T) {
	out := child.NewTail(4)
	for _, s := range []string{"ab", "cdefgh", "i"} {
		if n, err := out.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	if got := out.String(); got != "fghi" {
		t.Errorf("kept %q, want fghi", got)
	}
}
