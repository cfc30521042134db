package fuse

import (
	"fmt"
	"sync"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/block"
)

func TestEntriesFreshness(t *testing.T) {
	c := newEntryCache(1 << 20)
	now := time.Now()
	c.put(entry("/x", "1", now.Add(time.Minute)), now, nil)
	a, ok := c.get("/x")
	if !ok || !a.fresh(now) || a.fresh(now.Add(time.Minute)) || a.entry.Tag != "1" {
		t.Fatalf("%+v %v", a, ok)
	}
	c.put(entry("/x", "0", now.Add(time.Hour)), now.Add(-1), nil)
	if a, _ := c.get("/x"); a.entry.Tag != "1" {
		t.Error("an older answer replaced a newer one")
	}
	c.putAbsent("/x", now.Add(1), now.Add(time.Minute))
	if a, _ := c.get("/x"); a.entry != nil || !a.fresh(now) {
		t.Errorf("%+v", a)
	}
	c.drop("/x")
	if _, ok := c.get("/x"); ok || c.bytes() != 0 || c.len() != 0 {
		t.Error("dropped, but there", c.bytes(), c.len())
	}
}

func TestEntriesKeepTickets(t *testing.T) {
	c := newEntryCache(1 << 20)
	now := time.Now()
	e := entry("/x", "1", now)
	e.Ticket = &block.Ticket{FileID: e.FileID}
	c.put(e, now, nil)
	c.put(entry("/x", "1", now.Add(time.Hour)), now.Add(1), nil)
	if a, _ := c.get("/x"); a.entry.Ticket == nil || !a.until.Equal(now.Add(time.Hour)) {
		t.Errorf("an answer without a ticket took the ticket away: %+v", a.entry)
	}
	c.put(entry("/x", "2", now), now.Add(2), nil)
	if a, _ := c.get("/x"); a.entry.Ticket != nil {
		t.Error("a version has the ticket of another")
	}
}

func TestEntriesAreBounded(t *testing.T) {
	const limit = 1 << 20
	c := newEntryCache(limit)
	now := time.Now()
	for i := range 200 { // what programs use
		p := fmt.Sprintf("/used/%d", i)
		c.put(entry(p, "1", now.Add(time.Hour)), now, nil)
		c.get(p) // as LOOKUP does
		c.get(p) // as OPEN does
	}
	for i := range 100_000 { // a listing and a look, and nobody comes back
		p := fmt.Sprintf("/scan/%d", i)
		c.put(entry(p, "1", now.Add(time.Hour)), now, nil)
		c.get(p)
		if c.bytes() > limit {
			t.Fatalf("%d bytes after %d entries", c.bytes(), i)
		}
	}
	for i := range 200 {
		if _, ok := c.get(fmt.Sprintf("/used/%d", i)); !ok {
			t.Errorf("/used/%d was driven out by a scan", i)
		}
	}
	if n := c.len(); n < 1000 {
		t.Errorf("only %d entries in %d bytes", n, limit)
	}
}

// TestEntriesOfAScanStay lists names and looks at each one a while later, as
// find does, which reads a part of a directory before it looks at it: nearly
// all of the cache is for that.
func TestEntriesOfAScanStay(t *testing.T) {
	const limit = 1 << 20
	c := newEntryCache(limit)
	now := time.Now()
	name := func(i int) string { return fmt.Sprintf("/scan/%d", i) }
	behind := limit / 2 / (answerOverhead + len(name(100_000)) + 1)
	missed := 0
	for i := range 30_000 {
		c.put(entry(name(i), "1", now.Add(time.Hour)), now, nil)
		if i >= behind {
			if _, ok := c.get(name(i - behind)); !ok {
				missed++
			}
		}
	}
	if missed > 0 {
		t.Errorf("%d names were forgotten before anybody looked at them", missed)
	}
}

// listAll puts a listing of a directory of n files.
func listAll(c *entryCache, dir string, n int, asked, until time.Time) *listing {
	l := c.whole.begin(dir)
	for i := range n {
		c.put(entry(fmt.Sprintf("%s/%d", dir, i), "1", until), asked, l)
	}
	c.whole.end(l, until, until)
	return l
}

func TestWholeListingsKnowWhatIsNotThere(t *testing.T) {
	now := time.Now()
	until := now.Add(time.Minute)
	missing := func(c *entryCache, p string) bool {
		_, ok := c.absent(p, now)
		return ok
	}
	for name, tc := range map[string]struct {
		do   func(c *entryCache)
		want bool
	}{
		"whole":      {func(c *entryCache) { listAll(c, "/d", 10, now, until) }, true},
		"no listing": {func(*entryCache) {}, false},
		"under way": {func(c *entryCache) {
			l := c.whole.begin("/d")
			c.put(entry("/d/1", "1", until), now, l)
		}, false},
		"broken off": {func(c *entryCache) { c.whole.end(c.whole.begin("/d"), time.Time{}, time.Time{}) }, false},
		"not fresh":  {func(c *entryCache) { listAll(c, "/d", 10, now, now) }, false},
		"another began": {func(c *entryCache) {
			listAll(c, "/d", 10, now, until)
			c.whole.begin("/d")
		}, false},
		"a name came": {func(c *entryCache) {
			listAll(c, "/d", 10, now, until)
			c.put(entry("/d/new", "1", until), now.Add(1), nil)
		}, false},
		"a name came while it was under way": {func(c *entryCache) {
			l := c.whole.begin("/d")
			c.put(entry("/d/new", "1", until), now.Add(1), nil)
			c.whole.end(l, until, until)
		}, false},
		"a version came": {func(c *entryCache) {
			listAll(c, "/d", 10, now, until)
			c.put(entry("/d/3", "2", until), now.Add(1), nil)
		}, true},
		"a name is doubted": {func(c *entryCache) {
			listAll(c, "/d", 10, now, until)
			c.drop("/d/3")
		}, false},
		"names were evicted": {func(c *entryCache) {
			listAll(c, "/d", 10, now, until)
			listAll(c, "/e", 10_000, now, until)
		}, false},
		"it is larger than the cache": {func(c *entryCache) { listAll(c, "/d", 10_000, now, until) }, false},
	} {
		c := newEntryCache(1 << 20)
		tc.do(c)
		if got := missing(c, "/d/none"); got != tc.want {
			t.Errorf("%s: absent = %v, want %v", name, got, tc.want)
		}
		if missing(c, "/d/3") && tc.want {
			t.Errorf("%s: a name of the listing is absent", name)
		}
		if missing(c, "/other/none") {
			t.Errorf("%s: a name of another directory is absent", name)
		}
	}
}

// TestEntriesTogether has the race detector look, and checks that a name
// which is always there is never absent.
func TestEntriesTogether(t *testing.T) {
	c := newEntryCache(1 << 20)
	now := time.Now()
	until := now.Add(time.Hour)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				listAll(c, "/d", 20, now.Add(time.Duration(i)), until)
				if g == 0 {
					listAll(c, fmt.Sprintf("/many%d", i), 100, now, until)
				}
				if g == 1 {
					c.drop(fmt.Sprintf("/d/%d", i%20))
				}
			}
		})
		wg.Go(func() {
			for i := range 3000 {
				p := fmt.Sprintf("/d/%d", i%20)
				c.get(p)
				if _, ok := c.absent(p, now); ok {
					t.Errorf("%s is absent", p)
				}
			}
		})
	}
	wg.Wait()
}

// A LOOKUP of what is known and there costs what the name costs: the path that
// is put together, and nothing for the answer.
func TestLookupAllocatesLittle(t *testing.T) {
	c := newFake(time.Hour)
	c.put("/a", 1, "v1")
	f := newTestFsys(t, c)
	f.lookup(t, rootID, "a")
	var out gofuse.EntryOut
	in := &gofuse.InHeader{NodeId: rootID}
	if n := testing.AllocsPerRun(500, func() { f.Lookup(nil, in, "a", &out) }); n > 1 {
		t.Errorf("%v allocations for each LOOKUP", n)
	}
	if n := c.stats.Load(); n != 1 {
		t.Errorf("a master was asked %d times", n)
	}
}
