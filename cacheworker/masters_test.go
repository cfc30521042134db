package cacheworker

import (
	"maps"
	"testing"

	"millrace/api"
)

// leaves reports whether the master has heard that the worker leaves.
func (m *fakeMaster) leaves() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lastBeat.GetLeaving()
}

// TestFurtherMasters: a master that joined the group hears of the worker and of
// its blocks, though the worker was not configured with it.
func TestFurtherMasters(t *testing.T) {
	known, further := newFakeMaster(), newFakeMaster()
	known.id, further.id = "m1", "m2"
	known.mounts, further.mounts = testMounts(2), testMounts(2)
	addr := startMaster(t, known)
	group := []*api.MasterAddress{{Id: "m1", Grpc: "the same by another name:1"}, {Id: "m2", Grpc: startMaster(t, further)}}
	further.group = group
	r := newRig(t, rigOptions{masters: []string{addr}})
	tk := r.store.put("f", "v1", 3*mib)
	r.mustRead(tk, tk.Geometry().Whole())
	known.set(func() { known.group = group })
	want := told(r.tier.Blocks())
	for _, m := range []*fakeMaster{known, further} {
		eventually(t, "the block map", func() bool { return maps.Equal(want, m.blockMap()) })
	}
	if n := len(r.w.masters.links()); n != 2 {
		t.Errorf("reporting to %d masters, want 2", n)
	}
	r.stop()
	if !known.leaves() || !further.leaves() {
		t.Error("a master was not told that the worker leaves")
	}
}

// TestFurtherMastersAreKept: a worker that starts when the masters that it was
// configured with have left finds those that it learned of.
func TestFurtherMastersAreKept(t *testing.T) {
	known, further := newFakeMaster(), newFakeMaster()
	known.id, further.id = "m1", "m2"
	known.mounts, further.mounts = testMounts(2), testMounts(2)
	known.group = []*api.MasterAddress{{Id: "m1", Grpc: startMaster(t, known)}, {Id: "m2", Grpc: startMaster(t, further)}}
	configured := known.group[0].GetGrpc()
	r := newRig(t, rigOptions{masters: []string{configured}})
	eventually(t, "contact", func() bool { return further.count(&further.beats) > 0 })
	known.set(func() { known.down = true })
	r.stop()
	before := further.count(&further.beats)
	r = newRig(t, rigOptions{old: r, masters: []string{configured}})
	eventually(t, "contact after a restart", func() bool { return further.count(&further.beats) > before })
	if n := len(r.w.masters.links()); n != 2 {
		t.Errorf("%d masters, want 2", n)
	}
}

// TestMastersThatLeftAreForgotten: one that was learned of counts no more when
// it has left, so that a majority of the others is one.
func TestMastersThatLeftAreForgotten(t *testing.T) {
	known, gone := newFakeMaster(), newFakeMaster()
	known.id, gone.id = "m1", "m2"
	known.mounts, gone.mounts = testMounts(2), testMounts(2)
	known.group = []*api.MasterAddress{{Id: "m1", Grpc: startMaster(t, known)}, {Id: "m2", Grpc: startMaster(t, gone)}}
	r := newRig(t, rigOptions{masters: []string{known.group[0].GetGrpc()}})
	eventually(t, "contact", func() bool { return gone.count(&gone.beats) > 0 })
	gone.set(func() { gone.down = true })
	known.set(func() { known.group = known.group[:1] })
	r.stop()
	r = newRig(t, rigOptions{old: r, masters: []string{known.group[0].GetGrpc()}})
	eventually(t, "one master", func() bool { return len(r.w.masters.links()) == 1 })
	if err := r.w.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOneMasterByTwoAddresses is reported to once, so that its reports have one
// order.
func TestOneMasterByTwoAddresses(t *testing.T) {
	m := newFakeMaster()
	m.id, m.mounts = "m1", testMounts(2)
	r := newRig(t, rigOptions{masters: []string{startMaster(t, m), startMaster(t, m)}})
	eventually(t, "one of them", func() bool { return len(r.w.masters.links()) == 1 })
	eventually(t, "its full report", func() bool { return r.w.masters.links()[0].reporter.changes.fulls() > 0 })
	before := m.count(&m.fulls)
	tk := r.store.put("f", "v1", 5*mib)
	r.mustRead(tk, tk.Geometry().Whole())
	eventually(t, "the block map", func() bool { return maps.Equal(told(r.tier.Blocks()), m.blockMap()) })
	if n := m.count(&m.fulls); n != before {
		t.Errorf("%d full reports, want no further one", n)
	}
	if m.leaves() {
		t.Error("the master was told that the worker leaves")
	}
}

// TestMasterMoves: a master that is at another address, while the one that the
// worker knows does not answer, is reported to there; and again at the first
// one, should it come back.
func TestMasterMoves(t *testing.T) {
	other, here, there := newFakeMaster(), newFakeMaster(), newFakeMaster()
	other.id, here.id, there.id = "m1", "m2", "m2"
	addr := startMaster(t, there)
	r := newRig(t, rigOptions{masters: []string{startMaster(t, other), startMaster(t, here)}})
	eventually(t, "contact", func() bool { return here.count(&here.beats) > 0 && other.count(&other.beats) > 0 })
	here.set(func() { here.down = true })
	other.set(func() { other.group = []*api.MasterAddress{{Id: "m1", Grpc: "x:1"}, {Id: "m2", Grpc: addr}} })
	eventually(t, "contact at the new address", func() bool { return there.count(&there.beats) > 0 })
	here.set(func() { here.down = false })
	eventually(t, "one link to each master", func() bool { return len(r.w.masters.links()) == 2 })
	before := here.count(&here.beats)
	eventually(t, "contact at the first address", func() bool { return here.count(&here.beats) > before })
}
