package tier

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the store's counters when it is scraped.
type collector struct {
	s       *Store
	gauges  []metric
	totals  []metric
	perDirs []dirMetric
}

type metric struct {
	desc  *prometheus.Desc
	value func(Stats) int64
}

type dirMetric struct {
	desc  *prometheus.Desc
	value func(DirStatus) int64
}

func newCollector(s *Store) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_tier_"+name, help, labels, nil)
	}
	perDir := []string{"medium", "dir"}
	return &collector{
		s: s,
		gauges: []metric{
			{desc("cached_bytes", "File bytes in the cache."), func(s Stats) int64 { return s.CachedBytes }},
			{desc("cached_files", "Files in the cache, in part or whole."), func(s Stats) int64 { return s.CachedFiles }},
		},
		totals: []metric{
			{desc("filled_pages_total", "Pages put into the cache."), func(s Stats) int64 { return s.FilledPages }},
			{desc("filled_bytes_total", "Bytes put into the cache."), func(s Stats) int64 { return s.FilledBytes }},
			{desc("evicted_bytes_total", "Cached bytes given up for others."), func(s Stats) int64 { return s.EvictedBytes }},
			{desc("evicted_files_total", "Cached files given up for others."), func(s Stats) int64 { return s.EvictedFiles }},
			{desc("checksum_errors_total", "Pages that did not match their checksum or could not be read."), func(s Stats) int64 { return s.ChecksumErrors }},
			{desc("scrubbed_pages_total", "Pages that the scrubber compared with their checksum."), func(s Stats) int64 { return s.ScrubbedPages }},
			{desc("scrubbed_bytes_total", "Bytes that the scrubber compared with their checksum."), func(s Stats) int64 { return s.ScrubbedBytes }},
			{desc("repaired_pages_total", "Damaged pages that the scrubber wrote again in place."), func(s Stats) int64 { return s.RepairedPages }},
			{desc("scrub_dropped_pages_total", "Damaged pages that the scrubber dropped, as they could not be repaired."), func(s Stats) int64 { return s.ScrubDropped }},
			{desc("no_space_total", "Reservations refused because no room could be made."), func(s Stats) int64 { return s.NoSpace }},
			{desc("promoted_files_total", "Files moved into a faster tier."), func(s Stats) int64 { return s.PromotedFiles }},
			{desc("promoted_bytes_total", "Bytes moved into a faster tier."), func(s Stats) int64 { return s.PromotedBytes }},
			{desc("demoted_files_total", "Files moved into a slower tier in place of being evicted."), func(s Stats) int64 { return s.DemotedFiles }},
			{desc("demoted_bytes_total", "Bytes moved into a slower tier in place of being evicted."), func(s Stats) int64 { return s.DemotedBytes }},
			{desc("moves_dropped_total", "Promotions not done because too many were waiting."), func(s Stats) int64 { return s.MovesDropped }},
			{desc("io_errors_total", "Failed operations on the cache directories."), func(s Stats) int64 { return s.IOErrors }},
		},
		perDirs: []dirMetric{
			{desc("capacity_bytes", "Bytes that a directory may take.", perDir...), func(d DirStatus) int64 { return d.Capacity }},
			{desc("used_bytes", "Bytes charged to a directory.", perDir...), func(d DirStatus) int64 { return d.Used }},
			{desc("directory_up", "1 if a directory is in service, 0 if it failed.", perDir...), func(d DirStatus) int64 {
				if d.State == StateFailed {
					return 0
				}
				return 1
			}},
			{desc("held_bytes", "Bytes of files out of the cache that others may have open.", perDir...), func(d DirStatus) int64 { return d.Held }},
			{desc("replica_bytes", "Lengths of the files that are kept beside their owner, for programs of this host.", perDir...), func(d DirStatus) int64 { return d.Replicas }},
		},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range append(append([]metric(nil), c.gauges...), c.totals...) {
		ch <- m.desc
	}
	for _, m := range c.perDirs {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Stats()
	for _, m := range c.gauges {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(m.value(st)))
	}
	for _, m := range c.totals {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(m.value(st)))
	}
	for _, d := range c.s.Status() {
		for _, m := range c.perDirs {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(m.value(d)), string(d.Medium), d.Dir)
		}
	}
}

// register makes the store's metrics known; the function ends that.
func register(s *Store, reg prometheus.Registerer) (func(), error) {
	if reg == nil {
		return func() {}, nil
	}
	c := newCollector(s)
	if err := reg.Register(c); err != nil {
		return nil, fmt.Errorf("register tier metrics: %w", err)
	}
	return func() { reg.Unregister(c) }, nil
}
