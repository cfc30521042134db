package main

import (
	"fmt"
	"io"
	"strings"
)

// role is a kind of process, by the names of those that are of it.
type role struct {
	name string
	is   func(process string) bool
}

// roles are all kinds, in the order in which they are told.
func roles() []role {
	ends := func(suffix string) func(string) bool {
		return func(name string) bool { return strings.HasSuffix(name, suffix) }
	}
	return []role{
		{"mount", ends("-mount")},
		{"worker", ends("-worker")},
		{"master", ends("-master")},
		{"reader", ends(reader)},
		{"bare mount", func(name string) bool { return strings.HasPrefix(name, "bare-") }},
		{"S3 server", ends("s3")},
	}
}

// explain says of each target that was missed why: what was measured in the
// same runs, ours and what stands beside it, by process, and what is known.
func explain(targets []target, verdicts []verdict, steps []measured) {
	byName := map[string]*measured{}
	for i := range steps {
		byName[steps[i].Name] = &steps[i]
	}
	for i := range verdicts {
		v := &verdicts[i]
		if v.Met {
			continue
		}
		t := targets[i]
		for _, name := range t.steps {
			if m := byName[name]; m != nil {
				v.Why = append(v.Why, m.cost())
			}
		}
		if t.note != "" {
			v.Why = append(v.Why, t.note)
		}
	}
}

// cost says in one line what a step cost for each unit of its work.
func (m *measured) cost() string {
	work, unit := m.Runs[0].Work/1e6, "us of CPU each"
	if m.Unit == inBytes {
		work, unit = m.Runs[0].Work/(1<<10), "CPU s/GiB"
	}
	all := m.median(func(s sample) float64 { return s.cpuOf(anybody) })
	var parts []string
	for _, r := range roles() {
		v := m.median(func(s sample) float64 { return s.cpuOf(r.is) })
		if v*50 >= all && v > 0 { // less is what others do meanwhile
			parts = append(parts, r.name+" "+figure(v/work))
		}
	}
	return fmt.Sprintf("%s: %s %s a second; %s: %s", m.Name, figure(m.Median), m.Unit, unit, strings.Join(parts, ", "))
}

func anybody(string) bool { return true }

// printReasons prints what explain found.
func (r *results) printReasons(w io.Writer) {
	first := true
	for _, v := range r.Targets {
		if v.Met {
			continue
		}
		if first {
			fmt.Fprintln(w, "\nWhy the missed ones are missed, by the medians of these runs:")
			first = false
		}
		fmt.Fprintf(w, "- %s, %s: %s\n", v.Work, v.What, v.Verdict)
		for _, line := range v.Why {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
}
