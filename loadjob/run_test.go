package loadjob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"millrace/block"
	"millrace/internal/errs"
)

type loaderFunc func(ctx context.Context, t *block.Ticket, e block.Extent) (int64, int64, error)

func (f loaderFunc) Load(ctx context.Context, t *block.Ticket, e block.Extent) (int64, int64, error) {
	return f(ctx, t, e)
}

func items(n int) []Item {
	all := make([]Item, n)
	for i := range all {
		all[i] = Item{Number: uint64(i + 1), Ticket: ticket(fmt.Sprintf("/%d", i), int64(i)), BlockCount: 1}
	}
	return all
}

func TestRunTask(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var running, most int
		l := loaderFunc(func(_ context.Context, tk *block.Ticket, e block.Extent) (int64, int64, error) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() { mu.Lock(); defer mu.Unlock(); running-- }()
			time.Sleep(time.Second)
			if tk.Length == 3 {
				return 1, 0, errs.E(errs.NoSpace, "keep", tk.Path, nil)
			}
			return e.Length, 0, nil
		})
		got := make(map[uint64]Result)
		err := RunTask(t.Context(), items(20), l, 4, func(r Result) error { got[r.Number] = r; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if most != 4 {
			t.Errorf("%d items ran at a time, want 4", most)
		}
		for i := range 20 {
			r, ok := got[uint64(i+1)]
			switch {
			case !ok:
				t.Errorf("item %d was not reported", i+1)
			case i == 3 && (!errors.Is(r.Err, errs.NoSpace) || r.Loaded != 1):
				t.Errorf("item 4 ended with %+v", r)
			case i != 3 && (r.Err != nil || r.Loaded != int64(i)):
				t.Errorf("item %d ended with %+v", i+1, r)
			}
		}
	})
}

func TestRunTaskEndsEarly(t *testing.T) {
	defer goleak.VerifyNone(t)
	l := loaderFunc(func(ctx context.Context, tk *block.Ticket, e block.Extent) (int64, int64, error) {
		if tk.Length == 0 {
			return 0, 0, nil
		}
		<-ctx.Done()
		return 0, 0, ctx.Err()
	})
	boom := errors.New("stream is broken")
	if err := RunTask(t.Context(), items(20), l, 4, func(Result) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want the report's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reports := 0
	err := RunTask(ctx, items(20), l, 4, func(Result) error { reports++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || reports != 1 {
		t.Errorf("got %v after %d reports, want context.Canceled after 1", err, reports)
	}
}
