package main

import (
	"context"
	"fmt"
	"time"

	"millrace/bench/rig"
)

// sample is what one measurement cost, once.
type sample struct {
	Wall float64            `json:"seconds"`
	Work float64            `json:"work"` // in the step's unit
	CPU  map[string]float64 `json:"cpu_seconds"`
	// What reached the S3 server, and the bytes of files that the worker of
	// the cold cluster got from it.
	Gets    int64   `json:"s3_gets"`
	Heads   int64   `json:"s3_heads"`
	Others  int64   `json:"s3_others"`
	Fetched float64 `json:"s3_bytes"`
}

// rate is the work done in a second.
func (s sample) rate() float64 { return s.Work / s.Wall }

// reader is the name of this process's CPU time.
const reader = "reader"

// step is one thing that is measured in every run.
type step struct {
	name string
	work float64 // how much it is, in unit
	unit string
	// before is done first, and not measured.
	before func(ctx context.Context) error
	// ready leaves in the kernel's caches what before brought there.
	ready bool
	do    func(ctx context.Context) error
}

// measureAll does all steps one after the other, and that as often as there
// are runs: a machine that gets slower does so for all of them.
func (r *report) measureAll(ctx context.Context) error {
	for i := range r.runs {
		r.say("run %d of %d", i+1, r.runs)
		for _, s := range r.steps(uint64(i)) {
			got, err := r.measure(ctx, s)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			r.samples[s.name] = append(r.samples[s.name], got)
		}
	}
	for _, p := range r.procs {
		n, err := rig.PeakRSS(p.pid)
		if err != nil {
			return err
		}
		r.peak[p.name] = n
	}
	return nil
}

// measure does one step, with the kernel's caches dropped unless it says
// otherwise.
func (r *report) measure(ctx context.Context, s step) (sample, error) {
	if s.before != nil {
		if err := s.before(ctx); err != nil {
			return sample{}, err
		}
	}
	if !s.ready {
		if err := rig.DropCaches(); err != nil {
			return sample{}, err
		}
	}
	before, err := r.counts(ctx)
	if err != nil {
		return sample{}, err
	}
	cpuBefore, err := r.cpuTimes()
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	if err := s.do(ctx); err != nil {
		return sample{}, err
	}
	wall := time.Since(start)
	cpuAfter, err := r.cpuTimes() // before the counts, which cost some
	if err != nil {
		return sample{}, err
	}
	after, err := r.counts(ctx)
	if err != nil {
		return sample{}, err
	}
	requests := after.requests.Sub(before.requests)
	out := sample{
		Wall: wall.Seconds(), Work: s.work, CPU: map[string]float64{},
		Gets: requests.Gets, Heads: requests.Heads, Others: requests.Others,
		Fetched: after.fetched - before.fetched,
	}
	for name, d := range cpuAfter {
		if used := d - cpuBefore[name]; used > 0 {
			out.CPU[name] = used.Seconds()
		}
	}
	return out, nil
}

// counts are what reached the S3 server so far.
type counts struct {
	requests rig.Requests
	fetched  float64
}

func (r *report) counts(ctx context.Context) (c counts, err error) {
	if c.requests, err = r.server.Requests(); err != nil {
		return c, err
	}
	c.fetched, err = r.cold.Worker.Metric(ctx, "millrace_worker_ufs_read_bytes_total")
	return c, err
}

// cpuTimes returns the CPU time of every process so far.
func (r *report) cpuTimes() (map[string]time.Duration, error) {
	out := map[string]time.Duration{reader: rig.SelfCPU()}
	for _, p := range r.procs {
		t, err := rig.CPU(p.pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		out[p.name] = t
	}
	return out, nil
}
