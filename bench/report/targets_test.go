package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/bench/rig"
)

var update = flag.Bool("update", false, "rewrite what is to be printed")

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

// reportOf is a report of runs that each took what cost says of each step;
// without a memory tier there are no steps of it.
func reportOf(t *testing.T, memory bool, runs int, cost func(i int, s step) sample) *report {
	t.Helper()
	s, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.runs = runs
	r := &report{
		settings: s, big: rig.Big(1, int64(s.big)), small: rig.Small(s.small, smallSize),
		wires: []*wire{{}, {suffix: betweenNetworks}}, samples: map[string][]sample{}, peak: map[string]int64{"copy-mount": 1 << 20},
		disk: "/disk", python: &rig.Python{}, replay: func(int) (float64, bool) { return 0.44, true },
	}
	if memory {
		r.memory, r.mem = "/memory", &rig.Roles{}
	}
	for i, s := range r.steps(1) {
		if r.samples[s.name] != nil {
			t.Errorf("two steps %q", s.name)
		}
		for range runs {
			r.samples[s.name] = append(r.samples[s.name], cost(i, s))
		}
	}
	return r
}

// Every target is about steps that are measured, and says why it is missed by
// steps that are, and in words.
func TestTargetsHaveSteps(t *testing.T) {
	for _, memory := range []bool{true, false} {
		r := reportOf(t, memory, 1, func(_ int, s step) sample {
			return sample{Wall: 1, Work: s.work, CPU: map[string]float64{reader: 1}}
		})
		judged := 0
		for _, target := range r.targets() {
			if _, ok := target.judge(1); ok {
				judged++
			} else if memory {
				t.Errorf("%s, %s: no step has that", target.work, target.what)
			}
			for _, name := range target.steps {
				if memory && r.samples[name] == nil {
					t.Errorf("%s, %s: there is no step %q beside it", target.work, target.what, name)
				}
			}
			if target.note == "" {
				t.Errorf("%s, %s: nothing is said of why it is missed", target.work, target.what)
			}
		}
		if want := len(r.targets()) - 5; !memory && judged != want {
			t.Errorf("without a memory tier %d targets were judged, want %d", judged, want)
		}
	}
}

// What is printed of figures that are made up: some targets are missed, and
// it says why.
func TestPrint(t *testing.T) {
	r := reportOf(t, true, 3, func(i int, s step) sample {
		out := sample{Wall: s.work / 1000, Work: s.work, CPU: map[string]float64{
			reader: 0.1 * float64(1+i%7), "s3": 0.001, "bare-ssd": 0.2, "ssd-worker": 0.05 * float64(1+i%3),
			"ssd-mount": 1.5, "cold-mount": 1.2, "cold-worker": 0.9, "ssd-master": 0.0001,
		}}
		if i%2 == 0 {
			out.Wall *= 1.5
		}
		return out
	})
	r.noNetwork = errors.New("no program ip")
	out := r.results(time.Now())
	out.Seconds, out.Cores = 700, 2
	var got bytes.Buffer
	out.print(&got)
	const name = "testdata/report.txt"
	if *update {
		if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("%s; run with -update if it is to be so (-want +got)\n%s", name, d)
	}
}

// The hit ratio of the policy that workers use, which is the table's.
func TestEpochHits(t *testing.T) {
	if v, ok := epochHits(0); !ok || v < 0.45 || v > 0.5 {
		t.Errorf("hit ratio %v, %v; want 0.45 to 0.5", v, ok)
	}
}
