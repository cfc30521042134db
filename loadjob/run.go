package loadjob

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"millrace/block"
)

// Loader brings ranges of files into the cache.
type Loader interface {
	// Load makes all pages of e present, and returns how many bytes of e it
	// fetched and how many were there; without an error they sum up to e's
	// length. Bytes that cannot be kept are an error.
	Load(ctx context.Context, t *block.Ticket, e block.Extent) (loaded, cached int64, err error)
}

// RunTask loads the items, at most concurrency at a time, and reports the end
// of each, one report at a time, in the order in which they end. An item that
// fails is reported and does not end the task; an error of report, or the end
// of ctx, does. It returns when all that it started has ended.
func RunTask(ctx context.Context, items []Item, l Loader, concurrency int, report func(Result) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(concurrency, 1))
	var reporting sync.Mutex
	for i := range items {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			item := &items[i]
			loaded, cached, err := l.Load(gctx, item.Ticket, item.Extent())
			if gctx.Err() != nil {
				return gctx.Err() // the task was abandoned; nothing is known of the item
			}
			reporting.Lock()
			defer reporting.Unlock()
			return report(Result{Number: item.Number, Loaded: loaded, Cached: cached, Err: err})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
