package cacheworker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// gateUser asks a gate for items, and notes what began.
type gateUser struct {
	t *testing.T
	g *loadGate

	mu    sync.Mutex
	began []string
	ends  map[string]func()
}

// ask waits for an item in the background.
func (u *gateUser) ask(ctx context.Context, name string, mount uint64, bytes int64) {
	go func() {
		release, err := u.g.acquire(ctx, mount, bytes)
		if err != nil {
			return
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.began = append(u.began, name)
		u.ends[name] = release
	}()
	synctest.Wait()
}

// over ends an item.
func (u *gateUser) over(name string) {
	end := u.ends[name]
	delete(u.ends, name)
	end() // which lets others begin
	synctest.Wait()
}

// want checks what began since the last call, whatever was first.
func (u *gateUser) want(what string, names ...string) {
	u.t.Helper()
	slices.Sort(u.began)
	if !slices.Equal(names, u.began) {
		u.t.Fatalf("%s: %v began, want %v", what, u.began, names)
	}
	u.began = nil
}

func gateTest(t *testing.T, items int, bytes int64, f func(ctx context.Context, u *gateUser)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := newLoadGate(items, bytes)
		u := &gateUser{t: t, g: g, ends: map[string]func(){}}
		f(ctx, u)
		cancel()
		synctest.Wait()
		for _, end := range u.ends {
			end()
		}
		if len(g.mounts) != 0 || g.held != (loadHeld{}) {
			t.Errorf("at the end the gate holds %+v of %d mounts", g.held, len(g.mounts))
		}
	})
}

func TestLoadGateLeavesRoomForOtherMounts(t *testing.T) {
	gateTest(t, 2, 100, func(ctx context.Context, u *gateUser) {
		for _, name := range []string{"a1", "a2", "a3", "a4"} {
			u.ask(ctx, name, 1, 1)
		}
		u.want("a mount that hangs", "a1", "a2")
		u.ask(ctx, "b1", 2, 1)
		u.ask(ctx, "b2", 2, 1)
		u.ask(ctx, "b3", 2, 1)
		u.want("another mount", "b1", "b2")
		u.ask(ctx, "c1", 3, 1)
		u.want("a third one, when all is taken")
		u.over("b1")
		u.want("the mount with the fewest items is next", "c1")
		u.over("b2")
		u.want("then the one that has as few", "b3")
	})
}

func TestLoadGateBoundsBytes(t *testing.T) {
	gateTest(t, 10, 100, func(ctx context.Context, u *gateUser) {
		u.ask(ctx, "a1", 1, 60)
		u.ask(ctx, "a2", 1, 60)
		u.ask(ctx, "a3", 1, 10)
		u.want("up to the mount's bound, in order", "a1")
		u.ask(ctx, "b1", 2, 1000)
		u.want("an item that is larger than the bound", "b1")
		u.ask(ctx, "c1", 3, 60)
		u.ask(ctx, "d1", 4, 10)
		u.want("nobody passes who is next")
		u.over("a1")
		u.want("when there is room, who waits longest", "a2")
		u.over("b1")
		u.want("and more of it", "a3", "c1", "d1")
	})
}

func TestLoadGateWaitersLeave(t *testing.T) {
	gateTest(t, 1, 100, func(ctx context.Context, u *gateUser) {
		u.ask(ctx, "a1", 1, 1)
		gone, cancel := context.WithCancel(ctx)
		u.ask(gone, "a2", 1, 1)
		u.ask(ctx, "a3", 1, 1)
		cancel()
		synctest.Wait()
		u.over("a1")
		u.want("who left gets nothing", "a1", "a3")

		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := u.g.acquire(canceled, 1, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("acquire with an ended context: %v", err)
		}
	})
}
