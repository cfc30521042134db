package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/errs"
)

func TestFailOvers(t *testing.T) {
	for _, c := range []struct {
		took string // seconds
		want string
	}{
		{"1 2 3", ""},
		{"1 3 9", ""},
		{"1 4 4", "4s in the median"},
		{"2 2 4 4", "4s in the median"},
	} {
		var y tally
		for s := range strings.FieldsSeq(c.took) {
			d, err := time.ParseDuration(s + "s")
			must(t, err)
			y.failOver(d)
		}
		err := y.checkFailOvers()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.took, err, c.want)
		}
	}
}

func TestSwitches(t *testing.T) {
	var y tally
	must(t, y.checkSwitches())
	y.switched(slowestSwitch)
	must(t, y.checkSwitches())
	y.switched(slowestSwitch + time.Second)
	if err := y.checkSwitches(); err == nil {
		t.Error("a slow switch is let pass")
	}
}

// TestExcuse: the under-store's trouble explains errors, never wrong bytes.
func TestExcuse(t *testing.T) {
	unavailable := errs.E(errs.Unavailable, "read", "/x", nil)
	for _, c := range []struct {
		name          string
		err           error
		before, after int64 // of storeTrouble
		excused       bool
	}{
		{"all is well", unavailable, 2, 2, false},
		{"in trouble before", unavailable, 1, 2, true},
		{"in trouble since", unavailable, 2, 3, true},
		{"in trouble in between", unavailable, 2, 4, true},
		{"wrong bytes", fmt.Errorf("%w: /x", errWrong), 1, 1, false},
	} {
		var w world
		w.s3Store.trouble.Store(c.after)
		if err := w.excuse(c.err, &w.s3Store, c.before, time.Now()); (err == nil) != c.excused {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestFlipBit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "part")
	gone, err := flipBit(name, 0, 1)
	if gone != nil || err != nil {
		t.Errorf("a file that has gone: %v, %v", gone, err)
	}
	must(t, os.WriteFile(name, []byte{0, 0, 0}, 0o600))
	b, err := flipBit(name, 1, 4)
	must(t, err)
	got, err := os.ReadFile(name)
	must(t, err)
	if !bytes.Equal(got, []byte{0, 4, 0}) || !b.isThere() {
		t.Errorf("flipped: % x, there: %v", got, b.isThere())
	}
	must(t, os.WriteFile(name, []byte{0, 0, 0}, 0o600)) // as a repair does
	if b.isThere() {
		t.Error("it is there after the repair")
	}
	must(t, os.Remove(name))
	if b.isThere() {
		t.Error("it is there without the file")
	}
}

// TestOnly: a mistake is refused before anything starts.
func TestOnly(t *testing.T) {
	err := run(t.Context(), []string{"-only", "clouds"})
	if err == nil || !strings.Contains(err.Error(), "clouds") {
		t.Errorf("got %v", err)
	}
}
