package loadjob

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStateText(t *testing.T) {
	for s := Planning; s <= Canceled; s++ {
		text, err := s.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got State
		if err := got.UnmarshalText(text); err != nil || got != s {
			t.Errorf("%d: read %q back as %d, %v", s, text, got, err)
		}
	}
	if got := State(0).String(); got != "unknown" {
		t.Errorf("State(0) is %q", got)
	}
	var s State
	if err := s.UnmarshalText([]byte("unknown")); err == nil {
		t.Error("an unknown state was read")
	}
}

func TestApply(t *testing.T) {
	now := time.Unix(1700000000, 0).UTC()
	job := Job{ID: "J", Paths: []string{"/"}, State: Planning, Started: now}
	p := Progress{
		Cursor: Cursor{0, "/a"}, Files: Sums{Listed: 1, Loaded: 1}, Bytes: Sums{Listed: 9, Loaded: 9},
		State: Succeeded, Finished: now.Add(time.Second),
	}
	if !job.Apply(p) {
		t.Fatal("progress was refused")
	}
	want := Job{
		ID: "J", Paths: []string{"/"}, State: Succeeded, Started: now, Finished: now.Add(time.Second),
		Cursor: p.Cursor, Files: p.Files, Bytes: p.Bytes,
	}
	if d := cmp.Diff(want, job); d != "" {
		t.Error(d)
	}
	if job.Apply(Progress{State: Running}) {
		t.Error("a final job took progress")
	}
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{}).Validate(); err == nil {
		t.Error("a window of 0 was accepted")
	}
}
