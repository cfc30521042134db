package hdfsfs

import (
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// avoidFor is how long a DataNode that failed is tried after all others.
const avoidFor = 30 * time.Second

// replicas orders DataNodes for a read: those on this host first, the others
// at random, so that the readers of a block do not all ask the same; those that
// failed of late last, so that a frozen one costs one deadline and not one per
// read. It is safe for concurrent use.
type replicas struct {
	own map[string]bool // the IPs of this host

	mu     sync.Mutex
	failed map[string]time.Time
}

func newReplicas() *replicas {
	r := &replicas{own: make(map[string]bool), failed: make(map[string]time.Time)}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return r // no DataNode is known to be near
	}
	for _, a := range all {
		if own, ok := a.(*net.IPNet); ok {
			r.own[own.IP.String()] = true
		}
	}
	return r
}

// order returns the addresses in the order in which to try them.
func (r *replicas) order(addresses []string) []string {
	out := slices.Clone(addresses)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	r.mu.Lock()
	defer r.mu.Unlock()
	rank := func(address string) int {
		host, _, err := net.SplitHostPort(address)
		switch at, failed := r.failed[address]; {
		case failed && time.Since(at) < avoidFor:
			return 2
		case err == nil && r.own[host]:
			return 0
		default:
			return 1
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return rank(a) - rank(b) })
	return out
}

// avoid notes that a DataNode failed. Those that failed long ago are forgotten.
func (r *replicas) avoid(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, at := range r.failed {
		if time.Since(at) >= avoidFor {
			delete(r.failed, a)
		}
	}
	r.failed[address] = time.Now()
}
