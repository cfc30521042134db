package fuse

import (
	"math"
	"strings"
	"time"

	"millrace/block"
	"millrace/client"
)

// packed is an answer in the form in which many of them are kept: without
// what can be told from the rest, and without a text twice.
type packed struct {
	path         string
	tag          string
	fileID       block.FileID
	asked, until moment
	size         int64
	mtime        int64 // Unix ns; 0: unknown
	blockSize    int64
	mountID      uint64
	expiry       int64         // of a ticket that the rest tells, Unix ms; 0: never
	ticket       *block.Ticket // that the rest does not tell
	ticketAt     uint32        // where in path the ticket's begins
	kind         packedKind
	plainTicket  bool // there is a ticket, and the rest tells it
	unsettled    bool // of that ticket
	spread       bool
}

type packedKind uint8

const (
	packedAbsent packedKind = iota
	packedFile
	packedDir
)

// moment is a time as the ns since an epoch, so that it keeps its monotonic
// reading in eight bytes.
type moment int64

const noMoment moment = math.MinInt64

// epoch is the moment from which others are counted.
type epoch struct{ time.Time }

func (o epoch) moment(t time.Time) moment {
	if t.IsZero() {
		return noMoment
	}
	return moment(t.Sub(o.Time))
}

func (o epoch) time(m moment) time.Time {
	if m == noMoment {
		return time.Time{}
	}
	return o.Add(time.Duration(m))
}

// pack returns the answer about a path.
func (o epoch) pack(p string, a *answer) packed {
	x := packed{path: p, asked: o.moment(a.asked), until: o.moment(a.until)}
	e := a.entry
	switch {
	case e == nil:
		return x
	case e.Dir:
		x.kind = packedDir
	default:
		x.kind = packedFile
	}
	x.path, x.tag, x.fileID, x.size, x.blockSize, x.mountID = e.Path, e.Tag, e.FileID, e.Size, e.BlockSize, e.MountID
	x.spread = e.Spread
	if !e.MTime.IsZero() {
		x.mtime = e.MTime.UnixNano()
	}
	if t := e.Ticket; t != nil {
		x.packTicket(t)
	}
	return x
}

func (x *packed) packTicket(t *block.Ticket) {
	at := len(x.path) - len(t.Path)
	x.plainTicket = at >= 0 && strings.HasSuffix(x.path, t.Path) && uint64(at) <= math.MaxUint32 &&
		t.MountID == x.mountID && t.Tag == x.tag && t.Length == x.size && t.BlockSize == x.blockSize && t.FileID == x.fileID &&
		t.KeyID == 0 && t.Identity == "" && len(t.Signature) == 0
	if !x.plainTicket {
		x.ticket = t
		return
	}
	x.ticketAt, x.unsettled = uint32(at), t.Unsettled
	if !t.Expiry.IsZero() {
		x.expiry = t.Expiry.UnixMilli()
	}
}

// hasTicket reports whether the answer has a ticket.
func (x *packed) hasTicket() bool { return x.plainTicket || x.ticket != nil }

// takeTicket makes the ticket of another answer about the same version this
// one's.
func (x *packed) takeTicket(from *packed) {
	x.ticket, x.plainTicket, x.ticketAt, x.unsettled, x.expiry = from.ticket, from.plainTicket, from.ticketAt, from.unsettled, from.expiry
	// What a ticket is told from comes with it.
	x.path, x.tag, x.size, x.blockSize, x.mountID = from.path, from.tag, from.size, from.blockSize, from.mountID
}

// unpack is the reverse of pack.
func (o epoch) unpack(x *packed) answer {
	a := answer{asked: o.time(x.asked), until: o.time(x.until)}
	if x.kind == packedAbsent {
		return a
	}
	// One piece of memory for both.
	both := &struct {
		entry  client.Entry
		ticket block.Ticket
	}{entry: o.entry(x)}
	if x.plainTicket {
		both.ticket = block.Ticket{
			MountID: x.mountID, Path: x.path[x.ticketAt:], Tag: x.tag, Length: x.size, BlockSize: x.blockSize,
			FileID: x.fileID, Unsettled: x.unsettled,
		}
		if x.expiry != 0 {
			both.ticket.Expiry = time.UnixMilli(x.expiry).UTC()
		}
		both.entry.Ticket = &both.ticket
	}
	a.entry = &both.entry
	return a
}

// entry returns the entry of an answer that something is there, without a
// ticket that the rest tells.
func (o epoch) entry(x *packed) client.Entry {
	e := client.Entry{
		Path: x.path, Dir: x.kind == packedDir, Size: x.size, Tag: x.tag, FileID: x.fileID,
		BlockSize: x.blockSize, MountID: x.mountID, Ticket: x.ticket, Spread: x.spread, ValidUntil: o.time(x.until),
	}
	if x.mtime != 0 {
		e.MTime = time.Unix(0, x.mtime)
	}
	return e
}

// texts returns the bytes that the answer's texts take.
func (x *packed) texts() int {
	n := len(x.path) + len(x.tag)
	if t := x.ticket; t != nil {
		n += ticketOverhead + len(t.Path) + len(t.Tag) + len(t.Identity) + len(t.Signature)
	}
	return n
}

// ticketOverhead is what a ticket takes beside its texts, in bytes.
const ticketOverhead = 160
