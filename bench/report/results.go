package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"text/tabwriter"

	"millrace/bench/rig"
)

// samples are the costs of all runs by data set and way of reading.
type samples map[string]map[string][]rig.Cost

func (s samples) add(set, way string, c rig.Cost) {
	if s[set] == nil {
		s[set] = map[string][]rig.Cost{}
	}
	s[set][way] = append(s[set][way], c)
}

// result is one line of the table. Seconds are of the median run.
type result struct {
	Set          string  `json:"set"`
	Way          string  `json:"way"`
	Seconds      float64 `json:"seconds"`
	Fastest      float64 `json:"fastest_seconds"`
	Slowest      float64 `json:"slowest_seconds"`
	Rate         float64 `json:"rate"`       // of the median run
	Unit         string  `json:"unit"`       // of Rate: MiB/s or files/s
	Ratio        float64 `json:"ratio"`      // of Rate to the yardstick's
	Yardstick    string  `json:"yardstick"`  // the way it is compared with
	DaemonCPU    float64 `json:"daemon_cpu"` // median; CPU s per GiB, or CPU µs per file
	DaemonUnit   string  `json:"daemon_cpu_unit"`
	GetsPerRun   float64 `json:"s3_gets"`   // median
	OthersPerRun float64 `json:"s3_others"` // median
}

type results struct {
	Runs  int      `json:"runs"`
	Cores int      `json:"cores"`
	Lines []result `json:"results"`
}

func (r *report) results(runs int) results {
	out := results{Runs: runs, Cores: runtime.NumCPU()}
	for _, set := range r.sets {
		ways := r.samples[set.Name]
		amount, unit := float64(set.Bytes())/(1<<20), "MiB/s"
		perDaemon, daemonUnit := float64(set.Bytes())/(1<<30), "CPU s/GiB"
		if set.Name == "small" {
			amount, unit = float64(len(set.Objects)), "files/s"
			perDaemon, daemonUnit = float64(len(set.Objects))/1e6, "CPU us/file"
		}
		rate := func(way string) float64 { return amount / median(ways[way], wall) }
		for _, way := range []string{wayBare, wayCold, wayLocal, wayWarm} {
			yardstick := wayBare
			if way == wayLocal || way == wayWarm {
				yardstick = wayLocal
			}
			out.Lines = append(out.Lines, result{
				Set: set.Name, Way: way,
				Seconds: median(ways[way], wall),
				Fastest: slices.Min(values(ways[way], wall)), Slowest: slices.Max(values(ways[way], wall)),
				Rate: rate(way), Unit: unit, Ratio: rate(way) / rate(yardstick), Yardstick: yardstick,
				DaemonCPU: median(ways[way], daemon) / perDaemon, DaemonUnit: daemonUnit,
				GetsPerRun: median(ways[way], gets), OthersPerRun: median(ways[way], others),
			})
		}
	}
	return out
}

func wall(c rig.Cost) float64   { return c.Wall.Seconds() }
func daemon(c rig.Cost) float64 { return c.Daemon.Seconds() }
func gets(c rig.Cost) float64   { return float64(c.Gets) }
func others(c rig.Cost) float64 { return float64(c.Others) }

func values(costs []rig.Cost, of func(rig.Cost) float64) []float64 {
	v := make([]float64, 0, len(costs))
	for _, c := range costs {
		v = append(v, of(c))
	}
	slices.Sort(v)
	return v
}

// median returns the middle value, or the mean of the two in the middle.
func median(costs []rig.Cost, of func(rig.Cost) float64) float64 {
	v := values(costs, of)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func (r results) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "medians of %d interleaved runs, %d cores\trate\tratio\tof\tseconds\tfastest to slowest\tdaemon CPU\tS3 GETs\tother S3\t\n", r.Runs, r.Cores)
	for _, l := range r.Lines {
		_, _ = fmt.Fprintf(t, "%s, %s\t%.0f %s\t%.2f x\t%s\t%.2f\t%.2f to %.2f\t%.2f %s\t%.0f\t%.0f\t\n", l.Set, l.Way,
			l.Rate, l.Unit, l.Ratio, l.Yardstick, l.Seconds, l.Fastest, l.Slowest, l.DaemonCPU, l.DaemonUnit, l.GetsPerRun, l.OthersPerRun)
	}
	_ = t.Flush()
}

func (r results) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
