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
	// Where it is missed: what was measured, what stands beside it, and what is
	// known of the rest.
	steps []string
	note  string
}

// above says that a looser target stood before this one.
func (t target) above(floor float64) target {
	t.floor = floor
	return t
}

// because says what is told where the target is missed: a sentence, and steps
// beside those that the figure is of.
func (t target) because(note string, beside ...string) target {
	t.note, t.steps = note, slices.Concat(t.steps, beside)
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
	// Why it is missed; empty if it is not.
	Why []string `json:"why,omitempty"`
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
			got = fmt.Sprintf("%.5g", v.Median)
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
	all := append(r.warmTargets(), r.smallTargets()...)
	all = append(all, r.coldTargets()...)
	return append(all, r.wireTargets()...)
}

// Units of CPU time, and whose it is.
const (
	perGiB  = "s/GiB"
	perFile = "us each"
	daemon  = "CPU of our processes"
)

// ratio is a target for how much faster one step is than another.
func (r *report) ratio(work, what string, want float64, step, to string) target {
	return target{
		work: work, what: "x " + what, least: true, want: want, unit: "x",
		figure: r.ratioOf(step, to), steps: []string{step, to},
	}
}

// most is a target that is a bound from above.
func most(work, what string, want float64, unit string, figure func(int) (float64, bool), steps ...string) target {
	return target{work: work, what: what, want: want, unit: unit, figure: figure, steps: steps}
}

// cpu is a target for the CPU time of some processes.
func (r *report) cpu(work, what, step string, whose func(string) bool, want, amount float64, unit string) target {
	return most(work, what, want, unit, r.cpuOf(step, amount, whose), step)
}

// inGiB and each say of how much a CPU time is told: in seconds for each GiB,
// or in us for each.
func (r *report) inGiB() float64    { return float64(r.big.Bytes()) / (1 << 30) }
func each(n int) float64            { return float64(n) / 1e6 }
func (r *report) eachFile() float64 { return each(len(r.small.Objects)) }

func (r *report) warmTargets() []target {
	const (
		bare     = "bare passthrough mount"
		nobody   = "No process of ours is on the way of a byte: what differs from the file itself is the disk, which the kernel's caches do not hide here."
		sameWay  = "Both mounts hand the same reads to the same kernel; the spread of the runs says how much is chance."
		bareCopy = "bare copying mount, sequential"
	)
	ssd, copying := daemons("ssd", "ssd"), daemons("copy", "ssd")
	return []target{
		r.ratio("warm, sequential, passthrough", "the local file", 0.95, "mount, warm, sequential", "disk, sequential").
			because(nobody, "bare passthrough mount, sequential"),
		r.cpu("warm, sequential, passthrough", daemon, "mount, warm, sequential", ssd, 0.02, r.inGiB(), perGiB).
			because("What is left is the open, and what goes on in the background; a small object has little to share it."),
		r.ratio("warm, 4 KiB random on disk, 1 reader", bare, 0.95, "mount, warm, random, 1 reader", "bare passthrough mount, random, 1 reader").
			because(sameWay, "disk, random, 1 reader"),
		r.ratio("warm, 4 KiB random on disk, 8 readers", bare, 0.95, "mount, warm, random, 8 readers", "bare passthrough mount, random, 8 readers").
			because(sameWay, "disk, random, 8 readers"),
		r.ratio("warm, 4 KiB random in memory, 8 readers", "bare passthrough mount of tmpfs", 0.95, "mount, memory, random, 8 readers", "bare passthrough mount of tmpfs, random, 8 readers").
			because(sameWay, "tmpfs, random, 8 readers"),
		r.cpu("warm, sequential, copying", daemon, "mount, copying, sequential", copying, 1.2, r.inGiB(), perGiB).above(1.6).
			because("Each byte goes from the page cache to the mount and from there through FUSE, as in the bare mount.", bareCopy),
		most("warm, all that went before", "most memory of our processes", 250, "MiB", r.memoryOf(copying)).
			because("The most that each process held at any time, mount, worker and master; the list at the end has each."),
	}
}

func (r *report) smallTargets() (all []target) {
	const (
		asks = "The worker is asked for a descriptor of each file that the mount has none of; the bare mount has all files open and asks nobody."
		left = "What the bare mount has of the local rate is all that FUSE leaves: each file is a lookup, an open and a close through the kernel to another process."
	)
	type place struct{ where, local, name, of, files, bare string }
	places := []place{
		{"in memory", "local tmpfs", "memory", "memory", "tmpfs", "bare passthrough mount of tmpfs"},
		{"on disk", "local disk", "ssd", "warm", "disk", "bare passthrough mount"},
	}
	for _, by := range []struct{ who, suffix string }{{"Python", ", small files, Python"}, {"Go", ", small files"}} {
		for _, p := range places {
			work, step, bare := fmt.Sprintf("warm, 100 KiB files %s, 8 %s readers", p.where, by.who), "mount, "+p.of+by.suffix, p.bare+by.suffix
			want := map[string]float64{"memory": 0.55, "ssd": 0.8}[p.name]
			note := left
			if by.who == "Go" {
				note += " These readers cost far less than those in Python, with which the target was set."
			}
			all = append(all,
				r.ratio(work, p.local, want, step, p.files+by.suffix).because(note, bare),
				r.cpu(work, daemon, step, daemons(p.name, p.name), 95, r.eachFile(), perFile).above(260).because(asks, bare))
		}
	}
	opens := each(min(openCloses, len(r.small.Objects)))
	const openClose = "bare passthrough mount, open and close"
	return append(all,
		r.ratio("stat, kernel's caches dropped", "the local disk", 0.45, "mount, warm, stat", "disk, stat").
			because("Names come from the mount's memory, by listings; the rest is the round trip through the kernel.", "bare passthrough mount, stat"),
		r.cpu("open and close of a cached file", daemon, "mount, warm, open and close", daemons("ssd", "ssd"), 95, opens, perFile).
			because(asks, openClose),
		r.cpu("open and close of a cached file, no-open", daemon, "mount, no-open, open and close", daemons("no-open", "ssd"), 50, opens, perFile).
			because("Only the lookup of the name reaches the mount.", openClose))
}

func (r *report) coldTargets() []target {
	const (
		bareBig, bareFiles    = "S3 client, 1 object in 8 ranges at once", "S3 client, small objects"
		coldFiles, coldBig    = "mount, cold, small files", "mount, cold, sequential"
		loadBig, loadFiles    = "load job, large", "load job, small"
		best                  = "the S3 client"
		shared                = "S3 server, worker, mount and reader share these processors, and the client throws the bytes away."
		everyByte             = "Each byte is received, checked, written to the cache and copied through FUSE; the bare copying mount shows what the last alone costs."
		everyFile             = "Each file is a GET, a new backing file and its record, a descriptor and an open; the client beside it makes the GET alone. " + shared
		bareCopy              = "bare copying mount, sequential"
		coldRandom, diskWrite = "mount, cold, random 4 KiB", "disk, write"
	)
	return []target{
		r.ratio("cold, 100 KiB files, 8 readers", best, 0.55, coldFiles, bareFiles).above(0.35).because(everyFile),
		most("cold, 100 KiB files, 8 readers", "GETs for an object", 1, "", r.of(coldFiles, func(s sample) float64 { return float64(s.Gets) / s.Work }), coldFiles).
			because("An object was asked for again, as after an error of the S3 server or a canceled read."),
		most("cold, 100 KiB files, 8 readers", "HEADs for an object", 0, "", r.of(coldFiles, func(s sample) float64 { return float64(s.Heads) / s.Work }), coldFiles).
			because("Names that are opened before a listing has shown their directory cost a HEAD: the first two of each directory."),
		r.ratio("cold, sequential", best, 0.45, coldBig, bareBig).above(0.3).because(everyByte+" "+shared, bareCopy),
		r.cpu("cold, sequential", daemon, coldBig, daemons("cold", "cold"), 1.6, r.inGiB(), perGiB).above(2.4).because(everyByte, bareCopy, bareBig),
		most("cold, sequential", "bytes from S3 for a byte", 1.02, "", r.of(coldBig, func(s sample) float64 { return s.Fetched / (s.Work * (1 << 20)) }), coldBig).
			because("Bytes came twice, as after an error of the S3 server."),
		most("cold, 4 KiB random", "pages from S3 for a read", 1, "", r.of(coldRandom, func(s sample) float64 { return s.Fetched / (s.Work * (256 << 10)) }), coldRandom).
			because("More was fetched than the pages that were asked for: reads that happen to follow each other look sequential."),
		target{
			work: "load job, large objects", what: "x the S3 client or a disk write", least: true, want: 0.6, unit: "x",
			figure: r.loadRatio, steps: []string{loadBig, bareBig, diskWrite},
		}.because("Getting and writing are done at the same time by the same processors, which each of the two has for itself beside it."),
		r.cpu("load job, large objects", "CPU of the worker", loadBig, of("cold-worker"), 1, r.inGiB(), perGiB).
			because("Each byte is received, checked and written to the disk.", bareBig, diskWrite),
		r.ratio("load job, 100 KiB objects", best, 0.7, loadFiles, bareFiles).because("Each object is a GET, a new backing file and its record. " + shared),
		{
			work: "shuffled epochs over twice the cache", what: "hit ratio, by replay", least: true, want: 0.45, figure: r.replay,
			note: "The optimum is 0.50, with foresight.",
		},
	}
}

func (r *report) wireTargets() []target {
	const (
		ends    = "CPU of the bare server and its client is told as the reader's, and so is that of our client; our client compares checksums, which the bare one does not."
		another = "worker to another host"
	)
	bound := func(work, what, bare, place string) target {
		return most(work, what, 1.2, "x", r.wireRatio(bare, place), wireWorker+place, bare+place)
	}
	return []target{
		bound(another, "x the CPU of sendfile and read", wireBare, "").because(ends, wireSummed),
		bound(another, "x the same with a checksum", wireSummed, "").because(ends, wireBare),
		bound(another+betweenNetworks, "x the CPU of sendfile and read", wireBare, betweenNetworks).because(ends, wireSummed+betweenNetworks),
		r.cpu(another+", 4 KiB pipelined", "CPU of both ends", wirePages, of("ssd-worker", reader), 12, each(wireReads), perFile).above(20).
			because("A frame to and fro and two system calls at each end, shared by what is under way together."),
	}
}

// missing are targets that are not held against anything here.
func (r *report) missing() []string {
	var all []string
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

// ratioOf returns by how much faster one step was than another in a run.
func (r *report) ratioOf(step, to string) func(int) (float64, bool) {
	return func(run int) (float64, bool) {
		a, ok := r.sample(step, run)
		b, also := r.sample(to, run)
		if !ok || !also {
			return 0, false
		}
		return a.rate() / b.rate(), true
	}
}

// cpuOf returns the CPU time of some processes in a step, by its amount.
func (r *report) cpuOf(step string, amount float64, whose func(string) bool) func(int) (float64, bool) {
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
