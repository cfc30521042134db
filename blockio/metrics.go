package blockio

import "github.com/prometheus/client_golang/prometheus"

type serverMetrics struct {
	connections prometheus.Gauge
	refused     prometheus.Counter
	broken      prometheus.Counter
	sentBytes   prometheus.Counter
	readBytes   prometheus.Counter
	requests    map[bool]map[op]prometheus.Counter // by failed
}

func newServerMetrics(reg prometheus.Registerer) *serverMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "blockio", Name: name, Help: help})
	}
	m := &serverMetrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "millrace", Subsystem: "blockio", Name: "connections", Help: "Data connections that are open.",
		}),
		refused:   counter("connections_refused_total", "Data connections refused because there were too many."),
		broken:    counter("connections_broken_total", "Data connections that ended by an error."),
		sentBytes: counter("sent_bytes_total", "Bytes sent on data connections, with frame headers."),
		readBytes: counter("read_bytes_total", "Bytes of files served to reads."),
		requests:  map[bool]map[op]prometheus.Counter{false: {}, true: {}},
	}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "millrace", Subsystem: "blockio", Name: "requests_total", Help: "Requests that were answered.",
	}, []string{"op", "outcome"})
	for failed, outcome := range map[bool]string{false: "ok", true: "error"} {
		for o, name := range map[op]string{
			opOpen: "open", opRead: "read", opReadV: "readv", opOpenRead: "open_read", opFD: "fd", opTouch: "touch",
			opRecalls: "recalls",
		} {
			m.requests[failed][o] = requests.WithLabelValues(name, outcome)
		}
	}
	if reg != nil {
		reg.MustRegister(m.connections, m.refused, m.broken, m.sentBytes, m.readBytes, requests)
	}
	return m
}

func (m *serverMetrics) sent(n int64) { m.sentBytes.Add(float64(n)) }

// ended counts one request; ops that are not offered are not counted.
func (m *serverMetrics) ended(h *header, failed bool, bytes int64) {
	if c := m.requests[failed][h.Op]; c != nil {
		c.Inc()
	}
	if bytes > 0 {
		m.readBytes.Add(float64(bytes))
	}
}
