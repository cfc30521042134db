package disk_test

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"testing"

	"millrace/internal/child"
	"millrace/internal/testenv"
	"millrace/test/disk"
)

// TestFail: a process whose disk fails is told so, and is well afterwards.
func TestFail(t *testing.T) {
	testenv.Require(t, testenv.Strace)
	const script = `while :; do dd if=/dev/zero of="$0" bs=1 count=1 conv=fsync 2>/dev/null && echo kept || echo lost; done`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script, filepath.Join(t.TempDir(), "file"))
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	p, err := child.Start(cmd)
	must(t, err)
	t.Cleanup(p.Kill)
	lines := bufio.NewScanner(stdout)
	await := func(want string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == want {
				return
			}
		}
		t.Fatalf("it ended before anything was %s", want)
	}
	await("kept")
	for _, f := range disk.Failures() {
		if f.What == "no space" {
			continue // dd asks for none by the calls that fail
		}
		heal, err := disk.Fail(t.Context(), p.PID(), f)
		must(t, err)
		await("lost")
		must(t, heal())
		await("kept")
	}
}
