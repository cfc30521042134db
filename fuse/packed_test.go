package fuse

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/client"
)

// ticketed is a file of the under-store mount at /mnt.
func ticketed(p string, change func(*block.Ticket)) *client.Entry {
	t := &block.Ticket{
		MountID: 7, Path: p, Tag: "etag", Length: 12, BlockSize: block.DefaultBlockSize,
		Expiry: time.UnixMilli(1_900_000_000_123).UTC(),
	}
	t.FileID = t.Derive()
	if change != nil {
		change(t)
	}
	return &client.Entry{
		Path: "/mnt/" + p, Size: 12, MTime: time.Unix(1_600_000_000, 5), Tag: "etag", FileID: t.FileID,
		BlockSize: block.DefaultBlockSize, MountID: 7, Ticket: t, Spread: true,
	}
}

func TestPackedSaysTheSame(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		entry *client.Entry
		until time.Time
		plain bool
	}{
		"file":              {ticketed("d/f", nil), now.Add(time.Minute), true},
		"not to be kept":    {ticketed("d/f", nil), time.Time{}, true},
		"long ago":          {ticketed("d/f", nil), now.Add(-time.Hour), true},
		"without a ticket":  {entry("/x", "1", now), now, false},
		"for ever":          {ticketed("f", func(t *block.Ticket) { t.Expiry = time.Time{} }), now, true},
		"unsettled":         {ticketed("f", func(t *block.Ticket) { t.Unsettled = true }), now, true},
		"signed":            {ticketed("f", func(t *block.Ticket) { t.KeyID, t.Signature, t.Identity = 1, []byte("s"), "me" }), now, false},
		"of another length": {ticketed("f", func(t *block.Ticket) { t.Length++ }), now, false},
		"of another path":   {ticketed("f", func(t *block.Ticket) { t.Path = "g" }), now, false},
		"directory":         {&client.Entry{Path: "/d", Dir: true}, now, false},
		"nothing":           {nil, now, false},
	} {
		want := answer{entry: tc.entry, asked: now, until: tc.until}
		if tc.entry != nil {
			tc.entry.ValidUntil = tc.until
		}
		e := epoch{now.Add(-time.Hour)}
		x := e.pack("/nothing", &want)
		got := e.unpack(&x)
		if !got.asked.Equal(want.asked) || !got.until.Equal(want.until) || got.until.IsZero() != want.until.IsZero() {
			t.Errorf("%s: asked %v until %v, want %v and %v", name, got.asked, got.until, want.asked, want.until)
		}
		if d := cmp.Diff(want.entry, got.entry); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
		if x.plainTicket != tc.plain {
			t.Errorf("%s: plain ticket = %v, want %v", name, x.plainTicket, tc.plain)
		}
	}
}

// TestPackedTimesAreMonotonic: what is kept is fresh as long as it should be,
// also when somebody sets the clock.
func TestPackedTimesAreMonotonic(t *testing.T) {
	t.Parallel()
	e := epoch{time.Now()}
	if got := e.time(e.moment(time.Now())); !strings.Contains(got.String(), " m=") {
		t.Errorf("%v has no monotonic reading", got)
	}
}

// heap returns the bytes that live objects take.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkMemory states what a name takes, beside its own text where that is
// shared with the other table: in the cache of answers, and in the table of
// nodes.
func BenchmarkMemory(b *testing.B) {
	const names = 100_000
	now := time.Now()
	listed := func(i int) *client.Entry {
		e := ticketed(fmt.Sprintf("dataset/part-00042/image-%08d.jpeg", i), nil)
		e.Tag = fmt.Sprintf("%032x", i)
		e.Ticket.Tag = e.Tag
		e.Ticket.FileID = e.Ticket.Derive()
		e.FileID = e.Ticket.FileID
		return e
	}
	b.Run("entry", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			c := newEntryCache(1 << 30)
			for i := range names {
				c.put(listed(i), now, nil)
			}
			b.ReportMetric(float64(heap()-before)/names, "B/name")
			b.ReportMetric(float64(c.bytes())/names, "accounted-B/name")
			runtime.KeepAlive(c)
		}
	})
	b.Run("node", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			t := newTable(&client.Entry{Path: "/", Dir: true})
			for i := range names {
				t.refer(listed(i), now)
			}
			b.ReportMetric(float64(heap()-before)/names, "B/name")
			runtime.KeepAlive(t)
		}
	})
}

// BenchmarkEntries is what the cache does for a listed name, and for a lookup
// that the kernel makes of it.
func BenchmarkEntries(b *testing.B) {
	now := time.Now()
	const names = 4096
	listed := make([]*client.Entry, names)
	for i := range listed {
		listed[i] = ticketed(fmt.Sprintf("dataset/part-00042/image-%08d.jpeg", i), nil)
	}
	c := newEntryCache(1 << 30)
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			c.put(listed[i%names], now, nil)
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := c.get(listed[i%names].Path); !ok {
				b.Fatal("not there")
			}
		}
	})
}
