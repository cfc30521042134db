package block_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"millrace/block"
)

func TestTicketRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &block.Ticket{
			MountID:   rapid.Uint64().Draw(t, "mount"),
			Path:      string(rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "path")),
			Tag:       string(rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "tag")),
			BlockSize: rapid.Int64Range(1, 4096).Draw(t, "pages in a block") * block.PageSize,
			Unsettled: rapid.Bool().Draw(t, "unsettled"),
			KeyID:     rapid.Uint32().Draw(t, "key"),
			Identity:  rapid.StringN(0, 50, 200).Draw(t, "identity"),
		}
		want.Length = rapid.Int64Range(0, min(block.MaxFileLength, want.BlockSize<<31)).Draw(t, "length")
		if s := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "signature"); len(s) > 0 {
			want.Signature = s
		}
		if ms := rapid.Int64Range(0, 1<<53).Draw(t, "expiry"); ms > 0 {
			want.Expiry = time.UnixMilli(ms).UTC()
		}
		want.FileID = want.Derive()
		prefix := []byte("before")
		b, err := want.AppendBinary(bytes.Clone(prefix))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b, prefix) {
			t.Fatal("AppendBinary changed what it appends to")
		}
		got, err := block.ParseTicket(b[len(prefix):])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
		if !bytes.HasPrefix(b[len(prefix):], want.AppendUnsigned(nil)) {
			t.Fatal("what is signed is not the front of the encoding")
		}
	})
}

func TestTicketBounds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*block.Ticket)
		ok     bool
	}{
		{"longest path", func(k *block.Ticket) { k.Path = strings.Repeat("x", block.MaxPathLength) }, true},
		{"path too long", func(k *block.Ticket) { k.Path = strings.Repeat("x", block.MaxPathLength+1) }, false},
		{"longest tag", func(k *block.Ticket) { k.Tag = strings.Repeat("x", block.MaxTagLength) }, true},
		{"tag too long", func(k *block.Ticket) { k.Tag = strings.Repeat("x", block.MaxTagLength+1) }, false},
		{"identity too long", func(k *block.Ticket) { k.Identity = strings.Repeat("x", 1025) }, false},
		{"signature too long", func(k *block.Ticket) { k.Signature = make([]byte, 1025) }, false},
		{"negative length", func(k *block.Ticket) { k.Length = -1 }, false},
		{"no block size", func(k *block.Ticket) { k.BlockSize = 0 }, false},
		{"expires at the epoch, which would read as never", func(k *block.Ticket) { k.Expiry = time.UnixMilli(0) }, false},
		{"expired before the epoch", func(k *block.Ticket) { k.Expiry = time.UnixMilli(-1) }, false},
		{"expires too late", func(k *block.Ticket) { k.Expiry = time.UnixMilli(1<<53 + 1) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := *goodTickets()["1 plain, never expires"]
			tc.change(&v)
			v.FileID = v.Derive()
			if err := v.Validate(); (err == nil) != tc.ok {
				t.Errorf("Validate: %v, want ok %v", err, tc.ok)
			}
			b, err := v.AppendBinary(nil)
			if (err == nil) != tc.ok {
				t.Errorf("AppendBinary: %v, want ok %v", err, tc.ok)
			}
			if _, err := block.ParseTicket(b); (err == nil) != tc.ok {
				t.Errorf("ParseTicket: %v, want ok %v", err, tc.ok)
			}
			if len(b) > block.MaxTicketSize {
				t.Errorf("%d bytes, MaxTicketSize is %d", len(b), block.MaxTicketSize)
			}
		})
	}
}

func TestTicketIsBoundToItsFile(t *testing.T) {
	for name, change := range map[string]func(*block.Ticket){
		"mount":      func(k *block.Ticket) { k.MountID++ },
		"path":       func(k *block.Ticket) { k.Path += "x" },
		"tag":        func(k *block.Ticket) { k.Tag += "x" },
		"length":     func(k *block.Ticket) { k.Length++ },
		"block size": func(k *block.Ticket) { k.BlockSize *= 2 },
		"no file ID": func(k *block.Ticket) { k.FileID = block.FileID{} },
	} {
		v := *goodTickets()["1 plain, never expires"]
		change(&v)
		if err := v.Validate(); err == nil {
			t.Errorf("a ticket with another %s is taken", name)
		}
	}
	minted := goodTickets()["9 minted file"]
	if err := minted.Validate(); err != nil {
		t.Errorf("a minted file's ticket: %v", err)
	}
}

func TestTicketExpiry(t *testing.T) {
	at := time.UnixMilli(1_900_000_000_000).UTC()
	v := block.Ticket{Expiry: at}
	for _, tc := range []struct {
		now  time.Time
		want bool
	}{
		{at.Add(-time.Hour), false},
		{at, false},
		{at.Add(block.ClockSkew), false},
		{at.Add(block.ClockSkew + time.Millisecond), true},
	} {
		if got := v.ExpiredAt(tc.now); got != tc.want {
			t.Errorf("expired at %v: %v, want %v", tc.now, got, tc.want)
		}
	}
	if (&block.Ticket{}).ExpiredAt(at.AddDate(1000, 0, 0)) {
		t.Error("a ticket without an expiry expires")
	}
}

// TestParsedTicketKeepsNothing checks that a ticket does not hold on to the
// buffer it was read from.
func TestParsedTicketKeepsNothing(t *testing.T) {
	b := encode(t, goodTickets()["4 signed"])
	got, err := block.ParseTicket(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if d := cmp.Diff(goodTickets()["4 signed"], got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func FuzzParseTicket(f *testing.F) {
	for _, v := range goodTickets() {
		b, err := v.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := block.ParseTicket(b)
		if err != nil {
			return
		}
		again, err := v.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is taken, and written as %x, %v", b, again, err)
		}
		if err := v.Validate(); err != nil {
			t.Fatalf("ParseTicket took what Validate refuses: %v", err)
		}
		g := v.Geometry()
		if n := g.Blocks(); n > 0 && g.Block(n-1).End() != g.Length {
			t.Fatalf("%d blocks do not end at %d", n, g.Length)
		}
	})
}

func FuzzParseFileID(f *testing.F) {
	f.Add("000102030405060708090a0b0c0d0e0f")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := block.ParseFileID(s)
		if err == nil && id.String() != strings.ToLower(s) {
			t.Fatalf("%q is taken as %v", s, id)
		}
	})
}
