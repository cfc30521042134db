package rig

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
)

// The Python readers read every byte of what they were told, twice over, and
// say what they could not read.
func TestPython(t *testing.T) {
	p, err := StartPython()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("SKIPPED: no python3")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	dir, set := t.TempDir(), Small(20, 3000)
	if err := CopySet(t.Context(), dir, set); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(2) {
		if err := p.Prepare(dir, set, 4, seed); err != nil {
			t.Fatal(err)
		}
		if err := p.Read(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := p.Prepare(filepath.Join(dir, "nowhere"), set, 4, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Read(t.Context()); err == nil {
		t.Error("files that are not there were read")
	}
}
