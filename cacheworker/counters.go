package cacheworker

import (
	"maps"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/api"
	"millrace/internal/errs"
)

// ufsOps are the requests that under-stores count.
const (
	opGet = iota
	opHead
	opList
	opOther
	opCount
)

// opName names the requests in metrics and in the counters of the cluster.
func opName(op int) string { return [opCount]string{"get", "head", "list", "other"}[op] }

// counters are the sums since the worker started. They are the ufs.Observer
// of its under-stores.
type counters struct {
	bytesServed  atomic.Int64
	bytesPlaced  atomic.Int64 // of those served, the ones that clients were told of
	pageHits     atomic.Int64
	pageMisses   atomic.Int64
	unkeptBytes  atomic.Int64
	handedOut    atomic.Int64
	peerBytes    atomic.Int64
	peerSent     atomic.Int64
	peerServed   atomic.Int64 // requests of a flight to another worker, by how they ended
	peerMissing  atomic.Int64
	peerFailed   atomic.Int64
	ufsBytes     atomic.Int64
	ufsListBytes atomic.Int64
	ufsRequests  [opCount]atomic.Int64
}

// Request implements ufs.Observer.
func (c *counters) Request(op string) {
	switch op {
	case "get":
		c.ufsRequests[opGet].Add(1)
	case "head":
		c.ufsRequests[opHead].Add(1)
	case "list":
		c.ufsRequests[opList].Add(1)
	default:
		c.ufsRequests[opOther].Add(1)
	}
}

// FileBytes implements ufs.Observer.
func (c *counters) FileBytes(n int64) { c.ufsBytes.Add(n) }

// ListBytes implements ufs.Observer.
func (c *counters) ListBytes(n int64) { c.ufsListBytes.Add(n) }

// tierCounts are the sums that the tier keeps.
type tierCounts struct{ checksumErrors, evictedBytes int64 }

func (c *counters) proto(t tierCounts) *api.Counters {
	requests := make(map[string]int64, opCount)
	for op := range opCount {
		requests[opName(op)] = c.ufsRequests[op].Load()
	}
	maps.DeleteFunc(requests, func(_ string, n int64) bool { return n == 0 })
	return &api.Counters{
		BytesServed:    c.bytesServed.Load(),
		UfsBytesRead:   c.ufsBytes.Load(),
		UfsListBytes:   c.ufsListBytes.Load(),
		UfsRequests:    requests,
		PageHits:       c.pageHits.Load(),
		PageMisses:     c.pageMisses.Load(),
		ChecksumErrors: t.checksumErrors,
		EvictedBytes:   t.evictedBytes,
	}
}

const peerRequestsHelp = "Runs of pages asked of another worker that should have them: served, missing there, or failed."

// register makes the counters metrics. The tier has metrics of its own.
func (c *counters) register(reg prometheus.Registerer) error {
	all := []prometheus.Collector{
		counterOf("bytes_served_total", "Bytes of files sent to clients, or read by them in place.", nil, &c.bytesServed),
		counterOf("in_place_bytes_total", "Bytes of files that clients on this host read where they are, as they came.", nil, &c.bytesPlaced),
		counterOf("page_hits_total", "Pages that reads found in the cache.", nil, &c.pageHits),
		counterOf("page_misses_total", "Pages that reads did not find in the cache.", nil, &c.pageMisses),
		counterOf("unkept_bytes_total", "Bytes served that could not be kept.", nil, &c.unkeptBytes),
		counterOf("descriptors_total", "Descriptors of cached files handed to programs on this host.", nil, &c.handedOut),
		counterOf("peer_read_bytes_total", "Bytes of files had from other workers.", nil, &c.peerBytes),
		counterOf("peer_sent_bytes_total", "Bytes of files sent to other workers.", nil, &c.peerSent),
		counterOf("peer_requests_total", peerRequestsHelp, prometheus.Labels{"result": "served"}, &c.peerServed),
		counterOf("peer_requests_total", peerRequestsHelp, prometheus.Labels{"result": "missing"}, &c.peerMissing),
		counterOf("peer_requests_total", peerRequestsHelp, prometheus.Labels{"result": "failed"}, &c.peerFailed),
		counterOf("ufs_read_bytes_total", "Bytes of files received from under-stores, retries included.", nil, &c.ufsBytes),
		counterOf("ufs_list_bytes_total", "Bytes of listings received from under-stores.", nil, &c.ufsListBytes),
	}
	for op := range opCount {
		all = append(all, counterOf("ufs_requests_total", "Requests to under-stores, each attempt.", prometheus.Labels{"op": opName(op)}, &c.ufsRequests[op]))
	}
	for _, m := range all {
		if err := reg.Register(m); err != nil {
			return errs.Wrap(err, "register worker metrics", "")
		}
	}
	return nil
}

func counterOf(name, help string, labels prometheus.Labels, v *atomic.Int64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "millrace", Subsystem: "worker", Name: name, Help: help, ConstLabels: labels,
	}, func() float64 { return float64(v.Load()) })
}
