package tier

import (
	"fmt"
	"sync"

	"millrace/internal/errs"
)

// replicas are the parts of a directory that another worker owns and that are
// kept for the programs of this host as well. They are the first victims after
// older versions, and take a share of the directory at most. Each is given up
// as a whole, and counts with the whole length of its file from its first
// reservation on.
type replicas struct {
	paced

	shareMu sync.Mutex
	charged int64
}

// take charges n bytes, if limit allows it.
func (r *replicas) take(n, limit int64) bool {
	r.shareMu.Lock()
	defer r.shareMu.Unlock()
	if r.charged+n > limit {
		return false
	}
	r.charged += n
	return true
}

// charge charges n bytes, which may be negative, whatever the limit.
func (r *replicas) charge(n int64) {
	r.shareMu.Lock()
	defer r.shareMu.Unlock()
	r.charged += n
}

func (r *replicas) bytes() int64 {
	r.shareMu.Lock()
	defer r.shareMu.Unlock()
	return r.charged
}

// isReplica reports whether p is kept as a replica, which it is or is not for
// all its life. No lock is needed.
func (p *part) isReplica() bool { return p.state.Load()&unitReplica != 0 }

// kind returns what the records of p say that it is.
func (p *part) kind() kind {
	if p.isReplica() {
		return kindReplica
	}
	return kindCached
}

// orderOf returns the order of victims that the units of p are in.
func (d *dir) orderOf(p *part) policy {
	if p.isReplica() {
		return &d.replicas
	}
	return d.queue
}

// units returns all units in the order in which a later run is to add them.
func (d *dir) units() []*unit { return append(d.replicas.units(), d.queue.units()...) }

// victim returns the next unit to give up; nil if all are pinned. Replicas
// come first, but not for ever where so many victims were refused in a row
// since somebody has them open.
func (d *dir) victim(refused int) *unit {
	if refused < maxRefused/2 {
		if u := d.replicas.victim(); u != nil {
			return u
		}
	}
	return d.queue.victim()
}

// replicaCharge is what p counts of the replicas' share.
func (d *dir) replicaCharge(p *part) int64 { return roundUp(p.length, d.block) }

func (d *dir) replicaLimit() int64 {
	return int64(float64(d.ledger.state().limit) * d.cfg.ReplicaShare)
}

// fitsShare reports whether p, if it is a replica, needs no other one to go.
func (d *dir) fitsShare(p *part) bool {
	return !p.isReplica() || d.replicas.bytes()+d.replicaCharge(p) <= d.replicaLimit()
}

// takeShare charges a replica to the replicas' share, and gives others up
// until it fits. The error is of kind NoSpace if it cannot.
func (d *dir) takeShare(p *part) error {
	n, limit := d.replicaCharge(p), d.replicaLimit()
	if d.replicas.take(n, limit) {
		return nil
	}
	if n > limit {
		return fmt.Errorf("%w: a replica of %d bytes, %d may be taken by all of them", errs.NoSpace, n, limit)
	}
	d.roomMu.Lock()
	defer d.roomMu.Unlock()
	for refused := 0; !d.replicas.take(n, limit); {
		if err := d.failure(); err != nil {
			return err
		}
		u := d.replicas.victim()
		if u == nil {
			return fmt.Errorf("%w: all replicas are in use", errs.NoSpace)
		}
		if !d.evict(u) {
			if refused++; refused > maxRefused {
				return fmt.Errorf("%w: others have the replicas open", errs.NoSpace)
			}
		}
	}
	return nil
}

// leaveShare undoes takeShare. p is a replica, or nothing happens.
func (d *dir) leaveShare(p *part) {
	if p.isReplica() {
		d.replicas.charge(-d.replicaCharge(p))
	}
}

// Replica reports whether the file was acquired as a replica. It is kept as what
// it was first acquired as.
func (h *Handle) Replica() bool { return h.replica }
