package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"millrace/internal/size"
)

// results is what is printed and saved.
type results struct {
	Runs    int                `json:"runs"`
	Cores   int                `json:"cores"`
	Seconds float64            `json:"seconds"` // that everything took
	Large   size.Bytes         `json:"large_object"`
	Small   int                `json:"small_objects"`
	Targets []verdict          `json:"targets"`
	Missing []string           `json:"not_measured"`
	Steps   []measured         `json:"measurements"`
	Peak    map[string]float64 `json:"peak_rss_mib"` // of each process
}

// measured is a step and what it cost in each run.
type measured struct {
	Name    string   `json:"name"`
	Unit    string   `json:"unit"` // of the rates and of work
	Median  float64  `json:"median_rate"`
	Slowest float64  `json:"slowest_rate"`
	Fastest float64  `json:"fastest_rate"`
	Runs    []sample `json:"runs"`
}

func (r *report) results(began time.Time) *results {
	out := &results{
		Runs: r.runs, Cores: runtime.NumCPU(), Seconds: time.Since(began).Seconds(),
		Large: r.settings.big, Small: len(r.small.Objects),
		Peak: map[string]float64{}, Missing: r.missing(),
	}
	var judged []target
	for _, t := range r.targets() {
		if v, ok := t.judge(r.runs); ok {
			judged, out.Targets = append(judged, t), append(out.Targets, v)
		}
	}
	for _, s := range r.steps(0) {
		m := measured{Name: s.name, Unit: s.unit, Runs: r.samples[s.name]}
		rates := sortedBy(m.Runs, sample.rate)
		m.Slowest, m.Median, m.Fastest = rates[0], median(rates), rates[len(rates)-1]
		out.Steps = append(out.Steps, m)
	}
	explain(judged, out.Targets, out.Steps)
	for name, n := range r.peak {
		out.Peak[name] = float64(n) / (1 << 20)
	}
	return out
}

func sortedBy(all []sample, of func(sample) float64) []float64 {
	v := make([]float64, 0, len(all))
	for _, s := range all {
		v = append(v, of(s))
	}
	slices.Sort(v)
	return v
}

func (m *measured) median(of func(sample) float64) float64 { return median(sortedBy(m.Runs, of)) }

func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "%d interleaved runs on %d cores in %.0f s: an object of %v and %d of 100 KiB.\n", r.Runs, r.Cores, r.Seconds, r.Large, r.Small)
	fmt.Fprintf(w, "Medians, and in parentheses the lowest and the highest. The kernel's caches are dropped before each\nmeasurement; the S3 server and the readers share the processors.\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "work\tcompared\ttarget\tmeasured\t\t")
	for _, v := range r.Targets {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s (%s to %s)\t%s\t\n", v.Work, v.What, v.Target, figure(v.Median), figure(v.Lowest), figure(v.Highest), v.Verdict)
	}
	_ = t.Flush()
	for _, what := range r.Missing {
		fmt.Fprintln(w, "Not measured:", what)
	}
	r.printReasons(w)
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "measurement\trate a second\t\tCPU seconds: mount\tworker\tmaster\treader\tbare mount\tS3 server\tGET\tHEAD\tother\t")
	for i := range r.Steps {
		r.Steps[i].print(t)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "\nMost memory, MiB:")
	for _, name := range slices.Sorted(maps.Keys(r.Peak)) {
		fmt.Fprintf(w, " %s %.0f", name, r.Peak[name])
	}
	fmt.Fprintln(w)
}

// print prints a step's line.
func (m *measured) print(w io.Writer) {
	cpu := func(is func(string) bool) string {
		v := m.median(func(s sample) float64 { return s.cpuOf(is) })
		if v < 0.005 {
			return "-"
		}
		return fmt.Sprintf("%.2f", v)
	}
	count := func(of func(sample) int64) string {
		if n := m.median(func(s sample) float64 { return float64(of(s)) }); n > 0 {
			return fmt.Sprintf("%.0f", n)
		}
		return "-"
	}
	fmt.Fprintf(w, "%s\t%s %s\t(%s to %s)\t", m.Name, figure(m.Median), m.Unit, figure(m.Slowest), figure(m.Fastest))
	for _, r := range roles() {
		fmt.Fprintf(w, "%s\t", cpu(r.is))
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t\n", count(func(s sample) int64 { return s.Gets }),
		count(func(s sample) int64 { return s.Heads }), count(func(s sample) int64 { return s.Others }))
}

func (r *results) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
