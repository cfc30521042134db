package cacheworker

import (
	"context"
	"errors"
	"sync/atomic"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/tier"
)

// throughPatience is how many times longer than for what it has cached the
// owner of a file is waited for, as it may have to ask the under-store. One that
// is frozen costs as much.
const throughPatience = 2

// placementOf converts what a master said.
func placementOf(p *api.Placement) *block.Placement {
	out := &block.Placement{Epoch: p.GetEpoch(), WholeFileLimit: p.GetWholeFileLimit()}
	for _, w := range p.GetWorkers() {
		out.Workers = append(out.Workers, block.PlacedWorker{ID: block.WorkerID(w.GetId()), Weight: w.GetWeight()})
	}
	return out
}

// ownership says who owns what by the placement that it holds; nil: none is
// known yet.
type ownership struct {
	atomic.Pointer[block.Placement]

	self block.WorkerID
}

// unit returns what the byte of a file at off is placed by.
func (o *ownership) unit(t *block.Ticket, off int64) block.Key {
	k := block.Key{File: t.FileID, Index: uint32(t.Geometry().BlockOf(off))}
	if p := o.Load(); p != nil {
		k = p.Unit(k, t.Length)
	}
	return k
}

// owner returns the worker that owns the byte of a file at off; "" if it is
// not known.
func (o *ownership) owner(t *block.Ticket, off int64) block.WorkerID {
	p := o.Load()
	if p == nil {
		return ""
	}
	owners := p.Owners(o.unit(t, off), t.Length, 1)
	if len(owners) == 0 {
		return ""
	}
	return owners[0]
}

// asReplica reports whether what a request brings is to be kept as a replica:
// the client wants it here, and another worker owns it.
func (o *ownership) asReplica(t *block.Ticket, req blockio.ReadRequest) bool {
	if !req.Replica || t.Unsettled {
		return false
	}
	owner := o.owner(t, req.Extent.Offset)
	return owner != "" && owner != o.self
}

// fileOf returns the file that a ticket grants, as it is to be kept.
func (o *ownership) fileOf(t *block.Ticket, replica bool) tier.File {
	f := tier.FileOf(t)
	f.Replica = replica
	if p := o.Load(); replica && p != nil {
		f.Piecewise = !p.PlacesWhole(t.Length)
	}
	return f
}

// forWorker reports whether another worker asks: what it serves of it, it
// counts itself, and what it wants next it knows.
func forWorker(req blockio.ReadRequest) bool { return req.CachedOnly || req.ReadThrough }

// find returns live workers that should have all of a block, without owner;
// and that one, if it is another worker than this one and has an address.
func (p *peers) find(ctx context.Context, key block.Key, owner block.WorkerID) (holders []*api.Holder, owning *api.Holder) {
	if owner == p.locator.self {
		owner = ""
	}
	holders, owning = p.locator.find(ctx, key, p.epoch(), owner)
	if owning == nil && owner != "" {
		owning = p.remembered(owner)
	}
	return holders, owning
}

// remembered returns a worker at the address that it last had; nil if it is not
// known. No master has to answer for that.
func (p *peers) remembered(id block.WorkerID) *api.Holder {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.known[id]; x != nil {
		return &api.Holder{Id: string(id), Addresses: &api.WorkerAddresses{Data: x.address}}
	}
	return nil
}

// count notes how a request to another worker ended that brought n bytes.
func (p *peers) count(from *api.Holder, t *block.Ticket, n int64, err error) {
	p.counters.peerBytes.Add(n)
	switch {
	case err == nil:
		p.counters.peerServed.Add(1)
	case errors.Is(err, errs.NotCached):
		p.counters.peerMissing.Add(1)
	default:
		p.counters.peerFailed.Add(1)
		p.log.Debug("having pages from another worker", "worker", from.GetId(), "path", t.Path, "err", err)
	}
}
