package cacheworker

import (
	"context"
	"math/rand/v2"
	"sync/atomic"

	"millrace/block"
	"millrace/internal/errs"
)

// pass reads e, of what cannot be kept here, through the file's owner and
// passes it to write in order. It returns how many bytes it has passed; what
// is left is to come from the under-store. The error is write's.
func (p *peers) pass(ctx context.Context, t *block.Ticket, e block.Extent, u urgency, write func([]byte) error) (n int64, err error) {
	key := block.Key{File: t.FileID, Index: uint32(t.Geometry().BlockOf(e.Offset))}
	_, owner := p.find(ctx, key, p.placed.owner(t, e.Offset))
	if owner == nil {
		return 0, nil
	}
	var urgent atomic.Int32
	urgent.Store(int32(u))
	n, _ = p.copyFrom(ctx, &reading{p: p, from: owner, t: t, urgent: &urgent, through: true}, e, func(b []byte) error {
		err = write(b)
		return err
	})
	return n, err
}

// borrow returns a buffer of chunkBuffers that begins with e, of what cannot be
// kept here, from a worker that caches it; nil if there is none. What is of
// several blocks is left to the under-store.
func (p *peers) borrow(ctx context.Context, t *block.Ticket, e block.Extent, urgent *atomic.Int32) *[chunkSize]byte {
	g := t.Geometry()
	index := g.BlockOf(e.Offset)
	if e.Intersect(g.Block(index)) != e {
		return nil
	}
	holders, _ := p.find(ctx, block.Key{File: t.FileID, Index: uint32(index)}, "")
	if len(holders) == 0 || p.gate.enter(ctx, p.share, e.Length, urgent) != nil {
		return nil
	}
	defer p.gate.leave(p.share, e.Length)
	b, ok := chunkBuffers.Get().(*[chunkSize]byte)
	if !ok {
		return nil
	}
	rand.Shuffle(len(holders), func(i, j int) { holders[i], holders[j] = holders[j], holders[i] })
	for _, holder := range holders[:min(len(holders), peerTries)] {
		rest := b[:]
		_, err := p.copyFrom(ctx, &reading{p: p, from: holder, t: t, urgent: urgent}, e, func(part []byte) error {
			rest = rest[copy(rest, part):]
			return nil
		})
		if err == nil {
			return b
		}
		if ctx.Err() != nil || errs.KindOf(err) == errs.Timeout { // one wait is enough
			break
		}
	}
	chunkBuffers.Put(b)
	return nil
}

// copyFrom passes e, in order, from one worker to write, whose error ends it.
// It returns how many bytes were passed.
func (p *peers) copyFrom(ctx context.Context, read *reading, e block.Extent, write func([]byte) error) (n int64, err error) {
	t, from := read.t, read.from
	first, end := t.Geometry().PageRange(e)
	_, err = p.receive(ctx, read, first, end, func(page int64, data []byte) error {
		whole := t.Geometry().Page(page)
		part := whole.Intersect(e)
		if err := write(data[part.Offset-whole.Offset : part.End()-whole.Offset]); err != nil {
			return err
		}
		n += part.Length
		return nil
	})
	p.count(from, t, n, err)
	return n, err
}
