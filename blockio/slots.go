package blockio

import (
	"context"

	"millrace/internal/errs"
)

// slots bounds the requests in flight on a client's connection. Requests of
// loads and repairs have half of them at most, so that a read, for which a
// program waits, finds one; whoever waits for one is served in turn, so that
// reads do not starve loads either.
type slots struct {
	all        chan struct{} // one element per request in flight
	background chan struct{} // one per request in flight that is no read
}

func newSlots(n int) slots {
	return slots{make(chan struct{}, n), make(chan struct{}, max(n/2, 1))}
}

// takeSlot waits for a slot, until ctx or the connection ends.
func (c *Conn) takeSlot(ctx context.Context, op string, p Priority) error {
	if err := ctx.Err(); err != nil {
		return errs.E(errs.KindOf(err), op, c.addr, err)
	}
	if p != PriorityRead {
		if err := c.enter(ctx, op, c.slots.background); err != nil {
			return err
		}
	}
	err := c.enter(ctx, op, c.slots.all)
	if err != nil && p != PriorityRead {
		<-c.slots.background
	}
	return err
}

func (c *Conn) enter(ctx context.Context, op string, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errs.E(errs.KindOf(ctx.Err()), op, c.addr, ctx.Err())
	case <-c.done:
		return c.over()
	}
}

// give ends what takeSlot began.
func (s *slots) give(p Priority) {
	<-s.all
	if p != PriorityRead {
		<-s.background
	}
}

// busy reports whether more than one request is in flight.
func (s *slots) busy() bool { return len(s.all) > 1 }
