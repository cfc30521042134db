package cacheworker

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func urgent(u urgency) *atomic.Int32 {
	var a atomic.Int32
	a.Store(int32(u))
	return &a
}

func newShare() *share { return &share{most: 1000} }

func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(10), newShare()
		if err := g.enter(t.Context(), s, 10, urgent(urgentLoad)); err != nil {
			t.Fatal(err)
		}
		var order []string
		enter := func(name string, n int64, u *atomic.Int32) {
			go func() {
				if err := g.enter(t.Context(), s, n, u); err != nil {
					t.Error(err)
				}
				order = append(order, name)
				g.leave(s, n)
			}()
			synctest.Wait()
		}
		hurried := urgent(urgentLoad)
		enter("repair", 10, urgent(urgentRepair))
		enter("load", 10, urgent(urgentLoad))
		enter("hurried", 10, hurried)
		enter("ahead", 10, urgent(urgentAhead))
		enter("read", 10, urgent(urgentRead))
		enter("later read", 25, urgent(urgentRead)) // more than the gate is all of it
		hurried.Store(int32(urgentAhead))
		g.leave(s, 10)
		synctest.Wait()
		want := []string{"read", "later read", "hurried", "ahead", "load", "repair"}
		if !slices.Equal(order, want) {
			t.Fatalf("passed: %v, want %v", order, want)
		}
		if g.free != 10 || s.requests != 0 || s.bytes != 0 || s.waiting != 0 {
			t.Errorf("%d are free at the end, the share is %+v", g.free, s)
		}
	})
}

func TestGateCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(100), newShare()
		if err := g.enter(t.Context(), s, 60, urgent(urgentRead)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		big := make(chan error, 1)
		go func() { big <- g.enter(ctx, s, 50, urgent(urgentRead)) }()
		synctest.Wait()
		small := make(chan error, 1)
		go func() { small <- g.enter(t.Context(), s, 10, urgent(urgentRead)) }()
		synctest.Wait()
		if len(small) != 0 {
			t.Fatal("a small one passed before the big one that waits")
		}
		other := newShare()
		if err := g.enter(t.Context(), other, 10, urgent(urgentLoad)); err != nil {
			t.Fatal("a big one holds back another share's")
		}
		g.leave(other, 10)
		cancel()
		if err := <-big; !errors.Is(err, context.Canceled) {
			t.Errorf("the big one got %v", err)
		}
		if err := <-small; err != nil {
			t.Errorf("the small one got %v", err)
		}
		if err := g.enter(ctx, s, 1, urgent(urgentRead)); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended context got %v", err)
		}
		g.leave(s, 60)
		g.leave(s, 10)
		if g.free != 100 || s.waiting != 0 {
			t.Errorf("%d are free at the end, the share is %+v", g.free, s)
		}
	})
}

// TestGateShares lets mounts take what they get and never give it back.
func TestGateShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, request = 256, 4
		g := newGate(size)
		ctx, cancel := context.WithCancel(t.Context())
		for frozen := range 20 {
			s := newShare()
			for range 100 {
				go func() { _ = g.enter(ctx, s, request, urgent(urgentRead)) }()
			}
			synctest.Wait()
			if s.requests == 0 || s.bytes > size*3/4 {
				t.Fatalf("with %d frozen mounts another has %+v", frozen, s)
			}
		}
		if least := int64(-20 * request); g.free < least {
			t.Errorf("%d are free: more than one request a mount is past the bound", g.free)
		}
		cancel()
		synctest.Wait()
	})
}

func TestGateBoundsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(1000), &share{most: 2}
		for range 3 {
			go func() {
				if err := g.enter(t.Context(), s, 1, urgent(urgentRead)); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		if s.requests != 2 || s.waiting != 1 {
			t.Fatalf("%+v", s)
		}
		g.leave(s, 1)
		synctest.Wait()
		if s.requests != 2 || s.waiting != 0 {
			t.Fatalf("%+v", s)
		}
	})
}
