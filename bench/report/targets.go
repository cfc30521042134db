package main

import (
	"fmt"
	"slices"
	"strings"
)

// target is one thing that is to be reached. figure says what one run gave: a
// ratio of rates, or CPU time for an amount of work.
type target struct {
	work   string
	what   string // is compared
	least  bool   // want is the least, not the most
	want   float64
	floor  float64 // was to be reached first; 0: nothing was
	unit   string
	figure func(run int) (v float64, ok bool)
}

// above says that a looser target stood before this one.
func (t target) above(floor float64) target {
	t.floor = floor
	return t
}

// verdict is a target and what came of it.
type verdict struct {
	Work    string  `json:"work"`
	What    string  `json:"what"`
	Target  string  `json:"target"`
	Median  float64 `json:"median"`
	Lowest  float64 `json:"lowest"`
	Highest float64 `json:"highest"`
	Unit    string  `json:"unit"`
	Met     bool    `json:"met"`
	Verdict string  `json:"verdict"`
}

// judge holds what was measured against a target; false if it was not.
func (t target) judge(runs int) (verdict, bool) {
	var all []float64
	for i := range runs {
		if v, ok := t.figure(i); ok {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return verdict{}, false
	}
	slices.Sort(all)
	v := verdict{Work: t.work, What: t.what, Median: median(all), Lowest: all[0], Highest: all[len(all)-1], Unit: t.unit}
	reached := func(want float64) bool { return v.Median <= want }
	sign, broken := "<=", ">"
	if t.least {
		reached = func(want float64) bool { return v.Median >= want }
		sign, broken = ">=", "<"
	}
	v.Target = strings.TrimSpace(fmt.Sprintf("%s %s %s", sign, figure(t.want), t.unit))
	v.Met, v.Verdict = reached(t.want), "met"
	if !v.Met {
		got := figure(v.Median)
		if got == figure(t.want) { // by less than is printed
			got = fmt.Sprint(v.Median)
		}
		v.Verdict = fmt.Sprintf("missed: %s %s %s", got, broken, figure(t.want))
	}
	switch {
	case v.Met || t.floor == 0:
	case reached(t.floor):
		v.Verdict += fmt.Sprintf(", but %s %s", sign, figure(t.floor))
	default:
		v.Verdict += fmt.Sprintf(", and %s %s", broken, figure(t.floor))
	}
	return v, true
}

// median returns the middle of sorted values, or the mean of the two there.
func median(v []float64) float64 {
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// figure prints three digits that matter, and no more than that are there.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.095 || v == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

// of says which processes are named.
func of(names ...string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

// daemons are the processes behind a mount of a cluster.
func daemons(mount, cluster string) func(string) bool {
	return of(mount+"-mount", cluster+"-worker", cluster+"-master")
}

// targets are those of the project, for the work that this machine did.
func (r *report) targets() []target {
	gib := float64(r.big.Bytes()) / (1 << 30)
	per := func(amount float64) float64 { return amount / 1e6 } // in µs each
	files := per(float64(len(r.small.Objects)))
	opens := per(float64(min(openCloses, len(r.small.Objects))))
	ratio := func(work, what string, want float64, step, to string) target {
		return target{work: work, what: "x " + what, least: true, want: want, unit: "x", figure: r.ratio(step, to)}
	}
	most := func(work, what string, want float64, unit string, figure func(int) (float64, bool)) target {
		return target{work: work, what: what, want: want, unit: unit, figure: figure}
	}
	const (
		daemon  = "CPU of our processes"
		perGiB  = "s/GiB"
		perFile = "us each"
	)
	cpu := func(work, step string, whose func(string) bool, want, amount float64, unit string) target {
		return most(work, daemon, want, unit, r.cpu(step, amount, whose))
	}
	ssd, copying, memory, cold := daemons("ssd", "ssd"), daemons("copy", "ssd"), daemons("memory", "memory"), daemons("cold", "cold")
	best := "the S3 client"
	return []target{
		ratio("warm, sequential, passthrough", "the local file", 0.95, "mount, warm, sequential", "disk, sequential"),
		cpu("warm, sequential, passthrough", "mount, warm, sequential", ssd, 0.02, gib, perGiB),
		ratio("warm, 4 KiB random on disk, 1 reader", "bare passthrough mount", 0.95, "mount, warm, random, 1 reader", "bare passthrough mount, random, 1 reader"),
		ratio("warm, 4 KiB random on disk, 8 readers", "bare passthrough mount", 0.95, "mount, warm, random, 8 readers", "bare passthrough mount, random, 8 readers"),
		ratio("warm, 4 KiB random in memory, 8 readers", "bare passthrough mount of tmpfs", 0.95, "mount, memory, random, 8 readers", "bare passthrough mount of tmpfs, random, 8 readers"),
		cpu("warm, sequential, copying", "mount, copying, sequential", copying, 1.2, gib, perGiB).above(1.6),
		most("warm, all that went before", "most memory of our processes", 250, "MiB", r.memoryOf(copying)),
		ratio("warm, 100 KiB files in memory, 8 Python readers", "local tmpfs", 0.55, "mount, memory, small files, Python", "tmpfs, small files, Python"),
		cpu("warm, 100 KiB files in memory, 8 Python readers", "mount, memory, small files, Python", memory, 95, files, perFile).above(260),
		ratio("warm, 100 KiB files on disk, 8 Python readers", "local disk", 0.8, "mount, warm, small files, Python", "disk, small files, Python"),
		cpu("warm, 100 KiB files on disk, 8 Python readers", "mount, warm, small files, Python", ssd, 95, files, perFile).above(260),
		ratio("warm, 100 KiB files in memory, 8 Go readers", "local tmpfs", 0.55, "mount, memory, small files", "tmpfs, small files"),
		cpu("warm, 100 KiB files in memory, 8 Go readers", "mount, memory, small files", memory, 95, files, perFile).above(260),
		ratio("warm, 100 KiB files on disk, 8 Go readers", "local disk", 0.8, "mount, warm, small files", "disk, small files"),
		cpu("warm, 100 KiB files on disk, 8 Go readers", "mount, warm, small files", ssd, 95, files, perFile).above(260),
		ratio("cold, 100 KiB files, 8 readers", best, 0.55, "mount, cold, small files", "S3 client, small objects").above(0.35),
		most("cold, 100 KiB files, 8 readers", "GETs for an object", 1, "", r.of("mount, cold, small files", func(s sample) float64 { return float64(s.Gets) / s.Work })),
		most("cold, 100 KiB files, 8 readers", "HEADs for an object", 0, "", r.of("mount, cold, small files", func(s sample) float64 { return float64(s.Heads) / s.Work })),
		ratio("cold, sequential", best, 0.45, "mount, cold, sequential", "S3 client, 1 object in 8 ranges at once").above(0.3),
		cpu("cold, sequential", "mount, cold, sequential", cold, 1.6, gib, perGiB).above(2.4),
		most("cold, sequential", "bytes from S3 for a byte", 1.02, "", r.of("mount, cold, sequential", func(s sample) float64 { return s.Fetched / (s.Work * (1 << 20)) })),
		most("cold, 4 KiB random", "pages from S3 for a read", 1, "", r.of("mount, cold, random 4 KiB", func(s sample) float64 { return s.Fetched / (s.Work * (256 << 10)) })),
		{work: "load job, large objects", what: "x the S3 client or a disk write", least: true, want: 0.6, unit: "x", figure: r.loadRatio},
		most("load job, large objects", "CPU of the worker", 1, perGiB, r.cpu("load job, large", gib, of("cold-worker"))),
		ratio("load job, 100 KiB objects", best, 0.7, "load job, small", "S3 client, small objects"),
		ratio("stat, kernel's caches dropped", "the local disk", 0.45, "mount, warm, stat", "disk, stat"),
		cpu("open and close of a cached file", "mount, warm, open and close", ssd, 95, opens, perFile),
		cpu("open and close of a cached file, no-open", "mount, no-open, open and close", daemons("no-open", "ssd"), 50, opens, perFile),
		{work: "worker to another host", what: "x the CPU of sendfile and read", want: 1.2, unit: "x", figure: r.wireRatio(wireBare, "")},
		{work: "worker to another host", what: "x the same with a checksum", want: 1.2, unit: "x", figure: r.wireRatio(wireSummed, "")},
		{work: "worker to another host, between networks", what: "x the CPU of sendfile and read", want: 1.2, unit: "x", figure: r.wireRatio(wireBare, betweenNetworks)},
		most("worker to another host, 4 KiB pipelined", "CPU of both ends", 12, perFile, r.cpu(wirePages, per(wireReads), of("ssd-worker", reader))).above(20),
	}
}

// missing are targets that are not held against anything here.
func (r *report) missing() []string {
	all := []string{
		"hit ratio of shuffled epochs: that is by trace replay, not through a mount",
	}
	if r.noNetwork != nil {
		all = append(all, "the worker from another network: "+r.noNetwork.Error())
	}
	if r.noMemory != nil {
		all = append(all, "the memory tier: "+r.noMemory.Error())
	}
	if r.noPython != nil {
		all = append(all, "Python readers, with which the targets of small files were set: "+r.noPython.Error())
	}
	return all
}

// ratio returns by how much faster one step was than another in a run.
func (r *report) ratio(step, to string) func(int) (float64, bool) {
	return func(run int) (float64, bool) {
		a, ok := r.sample(step, run)
		b, also := r.sample(to, run)
		if !ok || !also {
			return 0, false
		}
		return a.rate() / b.rate(), true
	}
}

// cpu returns the CPU time of some processes in a step, by its amount.
func (r *report) cpu(step string, amount float64, whose func(string) bool) func(int) (float64, bool) {
	return r.of(step, func(s sample) float64 { return s.cpuOf(whose) / amount })
}

func (r *report) of(step string, figure func(sample) float64) func(int) (float64, bool) {
	return func(run int) (float64, bool) {
		s, ok := r.sample(step, run)
		if !ok {
			return 0, false
		}
		return figure(s), true
	}
}

func (s sample) cpuOf(whose func(string) bool) (sum float64) {
	for name, t := range s.CPU {
		if whose(name) {
			sum += t
		}
	}
	return sum
}

// loadRatio compares a load job with the slower of what it does: getting from
// S3, and writing to the disk.
func (r *report) loadRatio(run int) (float64, bool) {
	load, ok := r.sample("load job, large", run)
	get, also := r.sample("S3 client, 1 object in 8 ranges at once", run)
	write, too := r.sample("disk, write", run)
	if !ok || !also || !too {
		return 0, false
	}
	return load.rate() / min(get.rate(), write.rate()), true
}

// wireRatio compares the CPU time of both ends with that of a bare server and
// client, which is all this process's own.
func (r *report) wireRatio(step, place string) func(run int) (float64, bool) {
	return func(run int) (float64, bool) {
		ours, ok := r.sample(wireWorker+place, run)
		bare, also := r.sample(step+place, run)
		if !ok || !also {
			return 0, false
		}
		return ours.cpuOf(of("ssd-worker", reader)) / bare.CPU[reader], true
	}
}

// memoryOf returns the sum of the most memory that each of some processes
// held, which is one figure for all runs.
func (r *report) memoryOf(whose func(string) bool) func(int) (float64, bool) {
	return func(int) (mib float64, ok bool) {
		for name, n := range r.peak {
			if whose(name) {
				mib += float64(n) / (1 << 20)
			}
		}
		return mib, mib > 0
	}
}

func (r *report) sample(step string, run int) (sample, bool) {
	all := r.samples[step]
	if run >= len(all) {
		return sample{}, false
	}
	return all[run], true
}
