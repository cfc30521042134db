package main

import (
	"slices"
	"testing"

	"millrace/bench/rig"
)

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 0.0123: "0.0123", 0.0949: "0.0949", 0.41: "0.41", 1.196: "1.20", 12.34: "12.3", 123.4: "123", 36279: "36279",
	} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestJudge(t *testing.T) {
	runs := func(v ...float64) func(int) (float64, bool) {
		return func(i int) (float64, bool) {
			if i < len(v) {
				return v[i], true
			}
			return 0, false
		}
	}
	for name, c := range map[string]struct {
		target  target
		met     bool
		verdict string
	}{
		"at least, met":           {target{least: true, want: 0.55, figure: runs(0.7, 0.55, 0.1)}, true, "met"},
		"at least, missed":        {target{least: true, want: 0.55, figure: runs(0.41, 0.41, 0.9)}, false, "missed: 0.41 < 0.55"},
		"at most, met":            {target{want: 95, figure: runs(95, 80)}, true, "met"},
		"at most, missed":         {target{want: 95, figure: runs(120, 110, 100)}, false, "missed: 110 > 95.0"},
		"missed by a hair":        {target{least: true, want: 0.45, figure: runs(0.4499)}, false, "missed: 0.4499 < 0.45"},
		"missed, above the floor": {target{least: true, want: 0.55, floor: 0.35, figure: runs(0.41)}, false, "missed: 0.41 < 0.55, but >= 0.35"},
		"missed, below the floor": {target{want: 1.6, floor: 2.4, figure: runs(2.5)}, false, "missed: 2.50 > 1.60, and > 2.40"},
		"a floor nobody asks for": {target{want: 1.6, floor: 2.4, figure: runs(1.5)}, true, "met"},
	} {
		v, ok := c.target.judge(5)
		if !ok || v.Met != c.met || v.Verdict != c.verdict {
			t.Errorf("%s: %v %q, want %v %q", name, v.Met, v.Verdict, c.met, c.verdict)
		}
	}
	v, _ := target{figure: runs(3, 1, 2, 10)}.judge(4)
	if v.Median != 2.5 || v.Lowest != 1 || v.Highest != 10 {
		t.Errorf("median %v of %v to %v, want 2.5 of 1 to 10", v.Median, v.Lowest, v.Highest)
	}
	if _, ok := (target{figure: runs()}).judge(5); ok {
		t.Error("a target without a measurement was judged")
	}
}

// Every target is about steps that are measured.
func TestTargetsHaveSteps(t *testing.T) {
	for _, memory := range []bool{true, false} {
		s, err := parse(nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &report{
			settings: s, big: rig.Big(1, int64(s.big)), small: rig.Small(s.small, smallSize),
			wires: []*wire{{}, {suffix: betweenNetworks}}, samples: map[string][]sample{}, peak: map[string]int64{"copy-mount": 1 << 20},
			disk: "/disk", python: &rig.Python{},
		}
		if memory {
			r.memory, r.mem = "/memory", &rig.Roles{}
		}
		var names []string
		for _, s := range r.steps(1) {
			if slices.Contains(names, s.name) {
				t.Errorf("two steps %q", s.name)
			}
			names = append(names, s.name)
			r.samples[s.name] = []sample{{Wall: 1, Work: s.work, CPU: map[string]float64{reader: 1}}}
		}
		judged := 0
		for _, target := range r.targets() {
			if _, ok := target.judge(1); ok {
				judged++
			} else if memory {
				t.Errorf("%s, %s: no step has that", target.work, target.what)
			}
		}
		if want := len(r.targets()) - 5; !memory && judged != want {
			t.Errorf("without a memory tier %d targets were judged, want %d", judged, want)
		}
	}
}
