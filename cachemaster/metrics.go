package cachemaster

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/api"
	"millrace/ufs"
)

// ufsCounters counts what this master asks of under-stores.
type ufsCounters struct {
	fileBytes, listBytes atomic.Int64

	mu       sync.Mutex
	requests map[string]int64
}

var _ ufs.Observer = (*ufsCounters)(nil)

func newUFSCounters() *ufsCounters { return &ufsCounters{requests: make(map[string]int64)} }

// Request implements ufs.Observer.
func (c *ufsCounters) Request(op string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[op]++
}

// FileBytes implements ufs.Observer.
func (c *ufsCounters) FileBytes(n int64) { c.fileBytes.Add(n) }

// ListBytes implements ufs.Observer.
func (c *ufsCounters) ListBytes(n int64) { c.listBytes.Add(n) }

func (c *ufsCounters) counters() *api.Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &api.Counters{
		UfsBytesRead: c.fileBytes.Load(), UfsListBytes: c.listBytes.Load(), UfsRequests: maps.Clone(c.requests),
	}
}

// metrics is what a master tells Prometheus. Everything is read when it is
// asked for.
type metrics struct {
	m *Master

	leader, applied, workers            *prometheus.Desc
	blocks, hot                         *prometheus.Desc
	cacheEntries, cacheBytes            *prometheus.Desc
	cacheHits, cacheMisses              *prometheus.Desc
	ufsRequests, ufsListBytes, ufsBytes *prometheus.Desc
	jobs                                *prometheus.Desc
}

var _ prometheus.Collector = (*metrics)(nil)

func newMetrics(m *Master, reg prometheus.Registerer) (*metrics, error) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_master_"+name, help, labels, nil)
	}
	c := &metrics{
		m:            m,
		leader:       desc("leader", "1 if this master leads."),
		applied:      desc("applied_index", "Index of the last log entry that the state machine applied."),
		workers:      desc("workers", "Registered workers by state.", "state"),
		hot:          desc("hot_blocks", "Blocks that more workers than their owner serve."),
		blocks:       desc("block_locations", "Locations in the block map."),
		cacheEntries: desc("metadata_cache_entries", "Stats and listings in the metadata cache."),
		cacheBytes:   desc("metadata_cache_bytes", "Memory that the metadata cache takes."),
		cacheHits:    desc("metadata_cache_hits_total", "Questions that the metadata cache answered."),
		cacheMisses:  desc("metadata_cache_misses_total", "Questions that went to an under-store."),
		ufsRequests:  desc("ufs_requests_total", "Requests to under-stores, each attempt.", "op"),
		ufsListBytes: desc("ufs_list_bytes_total", "Bytes of listings received from under-stores."),
		ufsBytes:     desc("ufs_file_bytes_total", "Bytes of files received from under-stores."),
		jobs:         desc("jobs", "Load jobs that are kept, by state.", "state"),
	}
	if reg == nil {
		return c, nil
	}
	if err := reg.Register(c); err != nil {
		return nil, errors.Join(errors.New("register the master's metrics"), err)
	}
	return c, nil
}

// Describe implements prometheus.Collector.
func (c *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	st := c.m.store.State()
	leads := 0.0
	if c.m.leading.Load() {
		leads = 1
	}
	gauge(c.leader, leads)
	gauge(c.applied, float64(st.Index))
	for state, n := range c.m.members.countByState() {
		gauge(c.workers, float64(n), state)
	}
	gauge(c.hot, float64(c.m.members.hot.len()))
	gauge(c.blocks, float64(c.m.blocks.Len()))
	entries, bytes := c.m.ns.cache.size()
	gauge(c.cacheEntries, float64(entries))
	gauge(c.cacheBytes, float64(bytes))
	counter(c.cacheHits, c.m.ns.hits.Load())
	counter(c.cacheMisses, c.m.ns.misses.Load())
	own := c.m.ufs.counters()
	for op, n := range own.GetUfsRequests() {
		counter(c.ufsRequests, n, op)
	}
	counter(c.ufsListBytes, own.GetUfsListBytes())
	counter(c.ufsBytes, own.GetUfsBytesRead())
	states := make(map[string]int)
	for _, j := range st.Jobs {
		states[j.State]++
	}
	for state, n := range states {
		gauge(c.jobs, float64(n), state)
	}
}
