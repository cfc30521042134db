package rig

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

func TestCPU(t *testing.T) {
	before, self := mustCPU(t, os.Getpid()), SelfCPU()
	for sum := 0; SelfCPU()-self < 20*time.Millisecond; sum++ { // burns what is to be seen
		runtime.KeepAlive(sum)
	}
	if grown := mustCPU(t, os.Getpid()) - before; grown < 20*time.Millisecond {
		t.Errorf("CPU grew by %v", grown)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if used := mustCPU(t, cmd.Process.Pid); used > time.Second {
		t.Errorf("a process that sleeps used %v", used)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := CPU(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has a CPU time")
	}
}

func mustCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	d, err := CPU(pid)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
