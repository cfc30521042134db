package cacheworker

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

// place makes a placement of both workers known to both, in which other owns
// everything.
func (p *pair) place(own *rig) { p.placeAbove(own, 1<<40) }

// placeAbove places files longer than limit by their blocks.
func (p *pair) placeAbove(own *rig, limit int64) {
	placement := &api.Placement{Epoch: 1, WholeFileLimit: limit, Workers: []*api.PlacedWorker{{Id: string(own.w.ID()), Weight: 1}}}
	for _, r := range []*rig{p.rig, p.other} {
		r.w.placed.Store(placementOf(placement))
	}
}

// readReplica reads the whole file as a client of the worker's host does.
func (p *pair) readReplica(tk *block.Ticket) {
	p.t.Helper()
	got := make([]byte, tk.Length)
	if err := p.readWith(p.rig, tk, got, blockio.ReadOptions{Replica: true}); err != nil {
		p.t.Fatalf("read %s: %v", tk.Path, err)
	}
	if !slices.Equal(got, p.store.data(tk.Path)) {
		p.t.Fatalf("%s: wrong bytes", tk.Path)
	}
}

func (p *pair) readWith(r *rig, tk *block.Ticket, b []byte, o blockio.ReadOptions) error {
	h, err := r.conn.Open(p.t.Context(), tk)
	if err != nil {
		return err
	}
	defer r.conn.CloseHandle(h)
	_, err = r.conn.ReadAt(p.t.Context(), h, b, 0, o)
	return err
}

// TestReplicaComesFromOwner: the owner asks the under-store, once, and both
// keep the file; what is there is read again without anybody else.
func TestReplicaComesFromOwner(t *testing.T) {
	for _, length := range []int64{1, block.PageSize, 3*mib + 777, 12 * mib} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			p := newPair(t)
			p.place(p.other)
			tk := p.put("f", length)
			p.readReplica(tk)
			p.fetched(0, 0)
			if _, n := p.other.store.fetched(); n != length {
				t.Errorf("the owner fetched %d bytes, want %d", n, length)
			}
			if _, n := p.tier.Cached(tk.FileID); n != length || p.tier.Status()[0].Replicas < length {
				t.Errorf("%d bytes are kept, %d as replicas, want %d", n, p.tier.Status()[0].Replicas, length)
			}
			if n := p.other.tier.Status()[0].Replicas; n != 0 {
				t.Errorf("the owner has %d bytes of replicas", n)
			}
			sent := p.other.w.counters.peerSent.Load()
			p.readReplica(tk)
			if again := p.other.w.counters.peerSent.Load(); sent != length || again != sent {
				t.Errorf("the owner sent %d bytes, and %d when it was read again", sent, again-sent)
			}
		})
	}
}

// TestReplicaOfABlock: of a file that is placed by its blocks, a block that is
// read here too comes from its owner, though that has only part of it, and is
// kept beside those that are owned here, as they are.
func TestReplicaOfABlock(t *testing.T) {
	p := newPair(t)
	p.placeAbove(p.other, 0)
	tk := p.put("f", 3*mib)
	p.other.mustRead(tk, block.Extent{Length: mib})
	p.readReplica(tk)
	p.fetched(0, 0)
	if _, n := p.other.store.fetched(); n < tk.Length {
		t.Errorf("the owner fetched %d bytes, want %d", n, tk.Length)
	}
	if _, n := p.tier.Cached(tk.FileID); n != tk.Length || p.tier.Status()[0].Replicas != 0 {
		t.Errorf("%d bytes are kept, %d of them as replicas, want %d and none", n, p.tier.Status()[0].Replicas, tk.Length)
	}
}

// TestReplicaWithoutOwner: where it does not answer, the under-store is asked.
func TestReplicaWithoutOwner(t *testing.T) {
	p := newPair(t)
	p.place(p.other)
	tk := p.put("f", 3*mib)
	p.other.stop()
	p.readReplica(tk)
	p.fetched(1, tk.Length)
	p.had(0, 0, 1)
}

// TestOwnFileIsNoReplica, whatever the client believes.
func TestOwnFileIsNoReplica(t *testing.T) {
	p := newPair(t)
	p.master.set(func() { p.master.holders = nil })
	p.place(p.rig)
	tk := p.put("f", mib)
	p.readReplica(tk)
	p.fetched(1, tk.Length)
	if n := p.tier.Status()[0].Replicas; n != 0 {
		t.Errorf("%d bytes of replicas", n)
	}
}

// TestReadThroughIsOneHop: who does not own the file has nothing to give but
// what it caches.
func TestReadThroughIsOneHop(t *testing.T) {
	p := newPair(t)
	p.place(p.rig)
	tk := p.put("f", mib)
	got := make([]byte, tk.Length)
	if err := p.readWith(p.other, tk, got, blockio.ReadOptions{ReadThrough: true}); !errors.Is(err, errs.NotCached) {
		t.Fatalf("%v", err)
	}
	p.other.fetched(0, 0)
	p.other.mustRead(tk, tk.Geometry().Whole())
	if err := p.readWith(p.other, tk, got, blockio.ReadOptions{ReadThrough: true}); err != nil {
		t.Fatal(err)
	}
}

// TestReplicaThatIsNotKept goes through the owner, too.
func TestReplicaThatIsNotKept(t *testing.T) {
	p := newPairWith(t, time.Minute)
	p.place(p.other)
	tk := p.put("f", p.tier.Status()[0].Capacity*3/4) // more than the share
	p.readReplica(tk)
	p.fetched(0, 0)
	if _, n := p.tier.Cached(tk.FileID); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
}
