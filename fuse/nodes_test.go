package fuse

import (
	"fmt"
	"testing"
	"time"

	"millrace/block"
	"millrace/client"
)

func entry(p, tag string, valid time.Time) *client.Entry {
	e := &client.Entry{Path: p, Size: 3, MTime: born, Tag: tag, ValidUntil: valid}
	e.FileID = block.DeriveFileID(1, p, tag, 3, block.DefaultBlockSize)
	return e
}

func TestNodesOfVersions(t *testing.T) {
	tb := newTable(&client.Entry{Path: "/", Dir: true})
	t0 := time.Now()
	a := tb.refer(entry("/x", "1", t0), t0)
	if again := tb.refer(entry("/x", "1", t0), t0.Add(1)); again != a {
		t.Fatal("one version got two nodes")
	}
	if a.id == rootID || a.ino() == rootID || a.lookups != 2 {
		t.Fatalf("node %+v", a)
	}
	b := tb.refer(entry("/x", "2", t0), t0.Add(2))
	switch {
	case b == a || b.id == a.id:
		t.Fatal("a new version must be a new node")
	case b.ino() != a.ino():
		t.Error("the inode number of a path must stay")
	case !a.superseded.Load() || b.superseded.Load():
		t.Error("the old version alone must be superseded")
	}
	// An answer from before b's does not bring a back.
	if n := tb.refer(entry("/x", "1", t0), t0.Add(1)); n != b {
		t.Error("an older answer replaced a newer one")
	}
	if n := tb.refresh(entry("/x", "3", t0), t0.Add(3)); n != nil {
		t.Error("refresh found a version that the kernel does not have")
	}
	if !b.superseded.Load() {
		t.Error("refresh must supersede")
	}
	c := tb.refer(entry("/x", "1", t0), t0.Add(4))
	if c == a || c.id <= b.id {
		t.Error("a version that came back must be a new node, node IDs are used once")
	}
}

func TestNodeKinds(t *testing.T) {
	tb := newTable(&client.Entry{Path: "/", Dir: true})
	now := time.Now()
	dir := &client.Entry{Path: "/d", Dir: true}
	d := tb.refer(dir, now)
	if d2 := tb.refer(&client.Entry{Path: "/d", Dir: true}, now.Add(1)); d2 != d {
		t.Error("a directory has one node")
	}
	f := tb.refer(entry("/d", "1", now), now.Add(2))
	if f == d || !d.superseded.Load() {
		t.Error("a file in the place of a directory is another node")
	}
}

func TestForget(t *testing.T) {
	tb := newTable(&client.Entry{Path: "/", Dir: true})
	now := time.Now()
	a := tb.refer(entry("/x", "1", now), now)
	tb.refer(entry("/x", "1", now), now)
	b := tb.refer(entry("/x", "2", now), now.Add(1))
	tb.forget(a.id, 1)
	if tb.get(a.id) != a {
		t.Fatal("forgotten with a reference left")
	}
	tb.forget(a.id, 1)
	if tb.get(a.id) != nil {
		t.Fatal("not forgotten")
	}
	if n := tb.refresh(entry("/x", "2", now), now.Add(1)); n != b {
		t.Fatal("forgetting an old version lost the current one")
	}
	tb.forget(b.id, 100) // more than there are
	tb.forget(b.id, 1)
	tb.forget(rootID, 1<<40)
	if n := tb.refresh(entry("/x", "2", now), now.Add(1)); n != nil || tb.get(rootID) == nil || tb.len() != 1 {
		t.Fatal("wrong nodes are left")
	}
}

func TestInode(t *testing.T) {
	// Vectors: st_ino is the xxHash64 of the path, on every host and for ever.
	for p, want := range map[string]uint64{"/a": 851085478269189764, "/small/000/001.jpg": 5985860739059049685} {
		if got := inode(p); got != want {
			t.Errorf("inode(%q) = %d, want %d", p, got, want)
		}
	}
}

func TestForgetInBulk(t *testing.T) {
	tb := newTable(&client.Entry{Path: "/", Dir: true})
	now := time.Now()
	const many = 100_000
	ids := make([]uint64, 0, many)
	for i := range many {
		ids = append(ids, tb.refer(entry(fmt.Sprintf("/d/%d", i), "1", now), now).id)
	}
	if tb.len() != many+1 {
		t.Fatal(tb.len())
	}
	for _, id := range ids {
		tb.forget(id, 1)
	}
	if tb.len() != 1 {
		t.Fatalf("%d nodes are left when the kernel forgot all", tb.len())
	}
	for i := range tb.shards {
		if s := &tb.shards[i]; len(s.byID) != 0 || len(s.byPath) > 1 {
			t.Fatalf("shard %d keeps %d nodes and %d paths", i, len(s.byID), len(s.byPath))
		}
	}
}
