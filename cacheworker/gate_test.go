package cacheworker

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func urgent(u urgency) *atomic.Int32 {
	var a atomic.Int32
	a.Store(int32(u))
	return &a
}

func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(10)
		if err := g.enter(t.Context(), 10, urgent(urgentLoad)); err != nil {
			t.Fatal(err)
		}
		var order []string
		enter := func(name string, n int64, u *atomic.Int32) {
			go func() {
				if err := g.enter(t.Context(), n, u); err != nil {
					t.Error(err)
				}
				order = append(order, name)
				g.leave(n)
			}()
			synctest.Wait()
		}
		hurried := urgent(urgentLoad)
		enter("load", 10, urgent(urgentLoad))
		enter("hurried", 10, hurried)
		enter("ahead", 10, urgent(urgentAhead))
		enter("read", 10, urgent(urgentRead))
		enter("later read", 25, urgent(urgentRead)) // more than the gate is all of it
		hurried.Store(int32(urgentAhead))
		g.leave(10)
		synctest.Wait()
		want := []string{"read", "later read", "hurried", "ahead", "load"}
		if len(order) != len(want) {
			t.Fatalf("passed: %v", order)
		}
		for i := range want {
			if order[i] != want[i] {
				t.Fatalf("passed: %v, want %v", order, want)
			}
		}
		if g.free != 10 {
			t.Errorf("%d are free at the end", g.free)
		}
	})
}

func TestGateCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(10)
		if err := g.enter(t.Context(), 8, urgent(urgentRead)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		big := make(chan error, 1)
		go func() { big <- g.enter(ctx, 5, urgent(urgentRead)) }()
		synctest.Wait()
		small := make(chan error, 1)
		go func() { small <- g.enter(t.Context(), 2, urgent(urgentRead)) }()
		synctest.Wait()
		if len(small) != 0 {
			t.Fatal("a small one passed before the big one that waits")
		}
		cancel()
		if err := <-big; !errors.Is(err, context.Canceled) {
			t.Errorf("the big one got %v", err)
		}
		if err := <-small; err != nil {
			t.Errorf("the small one got %v", err)
		}
		if err := g.enter(ctx, 1, urgent(urgentRead)); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended context got %v", err)
		}
		g.leave(8)
		g.leave(2)
		if g.free != 10 {
			t.Errorf("%d are free at the end", g.free)
		}
	})
}
