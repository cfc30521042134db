package fuse

import (
	"runtime"
	"testing"
	"time"
)

// While there is a mount, the threads that wait for the kernel take nothing
// away from the others; each mount has its own, and gives them back.
func TestReadersHaveRoom(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	a, b := start(t, newFake(time.Hour), ""), start(t, newFake(time.Hour), "")
	if n := runtime.GOMAXPROCS(0); n != before+2*deviceReaders {
		t.Errorf("%d threads may run, want %d", n, before+2*deviceReaders)
	}
	for _, m := range []*mounted{a, b} {
		m.stop()
		if err := m.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d threads may run after the mounts, want %d", n, before)
	}
}
