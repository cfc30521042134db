package fuse

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a mount counts.
type metrics struct {
	readBytes prometheus.Counter
	passed    prometheus.Counter
	copied    map[reason]prometheus.Counter // constant
	all       []prometheus.Collector
}

func newMetrics() *metrics {
	opens := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_fuse_opens_total",
		Help: "Opened files, by how they are read (passthrough or copy) and why so.",
	}, []string{"mode", "reason"})
	m := &metrics{
		readBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_fuse_read_bytes_total",
			Help: "File bytes given to the kernel; it does not tell what it reads by passthrough.",
		}),
		passed: opens.WithLabelValues("passthrough", string(passedOn)),
		copied: make(map[reason]prometheus.Counter),
	}
	for _, r := range reasons() {
		m.copied[r] = opens.WithLabelValues("copy", string(r))
	}
	m.all = []prometheus.Collector{m.readBytes, opens}
	return m
}

// open counts an opened file.
func (m *metrics) open(passthrough bool, why reason) {
	if passthrough {
		m.passed.Inc()
		return
	}
	m.copied[why].Inc()
}

// watch adds gauges of what fs holds.
func (m *metrics) watch(fs *fsys) {
	gauge := func(name, help string, value func() int) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	gauge("millrace_fuse_nodes", "Files and directories that the kernel refers to.", fs.table.len)
	gauge("millrace_fuse_known_entries", "Answers of the masters that are kept.", fs.entries.len)
	gauge("millrace_fuse_known_entry_bytes", "Memory that they take, about.", fs.entries.bytes)
	gauge("millrace_fuse_open_files", "Open file descriptors.", fs.files.len)
	gauge("millrace_fuse_open_dirs", "Open directories.", fs.dirs.len)
}

// register adds all to reg, which may be nil, and returns how to undo it.
func (m *metrics) register(reg prometheus.Registerer) (undo func(), err error) {
	var done []prometheus.Collector
	undo = func() {
		for _, c := range done {
			reg.Unregister(c)
		}
	}
	if reg == nil {
		return undo, nil
	}
	for _, c := range m.all {
		if err := reg.Register(c); err != nil {
			undo()
			return nil, err
		}
		done = append(done, c)
	}
	return undo, nil
}
