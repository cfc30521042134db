package tier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
)

// fakeAdviser does as its functions say; without them it knows all that it
// was told of.
type fakeAdviser struct {
	mu      sync.Mutex
	known   map[*unit]bool
	hits    int
	bytes   int64
	onAdmit func(u *unit) bool
	closed  bool
}

func (f *fakeAdviser) admit(u *unit, _ int64) bool {
	if f.onAdmit != nil && !f.onAdmit(u) {
		return true // it says so, and forgets it
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[u] = true
	return true
}

func (f *fakeAdviser) hit(*unit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("used after close")
	}
	f.hits++
}

func (f *fakeAdviser) forget(u *unit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, u)
}

func (f *fakeAdviser) knows(u *unit) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[u]
}

func (f *fakeAdviser) resize(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes = n
}

func (f *fakeAdviser) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

func (f *fakeAdviser) told() (hits int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits, f.bytes
}

// startAdvised runs a policy with a fake until the test ends.
func startAdvised(t *testing.T, f *fakeAdviser) *advised {
	t.Helper()
	f.known = map[*unit]bool{}
	a := newAdvised(func(bytes int64, _ func(*unit)) (adviser, error) {
		f.resize(bytes)
		return f, nil
	}, func() int64 { return 1000 }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return a
}

// giveUp takes victims out until there is none, and names them by their place
// in all.
func giveUp(a policy, all []*unit) (order []int) {
	at := map[*unit]int{}
	for i, u := range all {
		at[u] = i
	}
	for u := a.victim(); u != nil; u = a.victim() {
		order = append(order, at[u])
		a.remove(u)
	}
	return order
}

func TestAdvice(t *testing.T) {
	for _, tc := range []struct {
		name string
		fake func(a func() *advised, all []*unit) *fakeAdviser
		do   func(a *advised, all []*unit)
		want []int
	}{
		{
			name: "no advice: the young one, then the order of arrival",
			want: []int{5, 0, 1, 2, 3, 4},
		},
		{
			name: "it names some: they go first",
			do: func(a *advised, all []*unit) {
				a.name(all[4])
				a.name(all[2])
				a.name(all[4])
			},
			want: []int{4, 2, 5, 0, 1, 3},
		},
		{
			name: "it lost some: they go before those that it named",
			fake: func(_ func() *advised, all []*unit) *fakeAdviser {
				return &fakeAdviser{onAdmit: func(u *unit) bool { return u != all[3] && u != all[5] }}
			},
			do: func(a *advised, all []*unit) {
				a.name(all[4])
				time.Sleep(3 * sweepInterval)
			},
			want: []int{3, 5, 4, 0, 1, 2},
		},
		{
			name: "what it may only not have read yet is not lost",
			fake: func(_ func() *advised, all []*unit) *fakeAdviser {
				return &fakeAdviser{onAdmit: func(u *unit) bool { return u != all[3] }}
			},
			do:   func(a *advised, _ []*unit) { time.Sleep(sweepInterval + time.Millisecond) },
			want: []int{5, 0, 1, 2, 3, 4},
		},
		{
			name: "named, pinned: not now",
			do: func(a *advised, all []*unit) {
				a.name(all[4])
				all[4].pins.Add(1)
			},
			want: []int{5, 0, 1, 2, 3},
		},
		{
			name: "named, gone",
			do: func(a *advised, all []*unit) {
				a.name(all[4])
				a.remove(all[4])
			},
			want: []int{5, 0, 1, 2, 3},
		},
		{
			name: "named, hit since: another chance",
			do: func(a *advised, all []*unit) {
				a.touch(all[4]) // before: no reason
				a.touch(all[2])
				a.name(all[4])
				a.name(all[2])
				a.touch(all[2])
			},
			want: []int{4, 5, 0, 1, 2, 3},
		},
		{
			name: "it names what it was never told of",
			do:   func(a *advised, _ []*unit) { a.name(someUnits(1)[0]) },
			want: []int{5, 0, 1, 2, 3, 4},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := someUnits(6)
				fake := &fakeAdviser{}
				if tc.fake != nil {
					fake = tc.fake(nil, all)
				}
				a := startAdvised(t, fake)
				for _, u := range all {
					a.add(u)
				}
				synctest.Wait()
				if tc.do != nil {
					tc.do(a, all)
				}
				if diff := cmp.Diff(tc.want, giveUp(a, all)); diff != "" {
					t.Fatal(diff)
				}
				synctest.Wait()
				for _, u := range all {
					if fake.knows(u) && u.pins.Load() == 0 {
						t.Fatal("the adviser was not told that a unit is gone")
					}
				}
			})
		})
	}
}

// TestAdviserIsTold: of what there was before it, of hits, of the room.
func TestAdviserIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeAdviser{known: map[*unit]bool{}}
		var limit atomic.Int64
		limit.Store(1000)
		a := newAdvised(func(bytes int64, _ func(*unit)) (adviser, error) {
			fake.resize(bytes)
			return fake, nil
		}, limit.Load, slog.New(slog.DiscardHandler))
		all := someUnits(3 * maxAdvice) // more than the events hold
		for _, u := range all {
			a.add(u)
		}
		a.touch(all[0]) // there is nobody to tell
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.run(ctx) })
		synctest.Wait()
		for _, u := range all {
			if !fake.knows(u) {
				t.Fatal("it was not told of what there was")
			}
		}
		a.touch(all[0])
		if hits, bytes := fake.told(); hits != 1 || bytes != 900 {
			t.Fatalf("%d hits, %d bytes", hits, bytes)
		}
		limit.Store(500)
		time.Sleep(2 * sweepInterval)
		synctest.Wait()
		if _, bytes := fake.told(); bytes != 450 {
			t.Fatalf("%d bytes", bytes)
		}
		cancel()
		wg.Wait()
		if !fake.closed {
			t.Fatal("it was not closed")
		}
		a.touch(all[0]) // panics if it still reaches the adviser
	})
}

// TestNobodyWaitsForTheAdviser: it hangs, and all goes on.
func TestNobodyWaitsForTheAdviser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		fake := &fakeAdviser{onAdmit: func(*unit) bool { <-hang; return true }}
		a := startAdvised(t, fake)
		all := someUnits(3 * maxAdvice)
		for _, u := range all {
			a.add(u)
			a.touch(u)
		}
		synctest.Wait() // its goroutine hangs by now
		for i := range all {
			a.name(all[i])
		}
		if n := len(a.named.list); n != maxAdvice {
			t.Fatalf("%d victims are remembered", n)
		}
		if n := len(giveUp(a, all)); n != len(all) {
			t.Fatalf("%d of %d units were given up", n, len(all))
		}
		close(hang)
	})
}

// TestRefusedAdvice: a file in memory that somebody has open stays, and stays
// charged, although the adviser has struck it off; it is the first victim when
// it is free.
func TestRefusedAdvice(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"mem", Memory, 6 * mib}}, withAdvice)
	d := s.dirs[0]
	if !d.canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	a, ok := d.queue.(*advised)
	if !ok {
		t.Fatalf("the policy of memory is %T", d.queue)
	}
	fake := &fakeAdviser{known: map[*unit]bool{}}
	var files []File
	for i := range 7 {
		f := testFile(fmt.Sprint(i), "1", 3*page)
		fill(t, s, f)
		files = append(files, f)
		fake.known[&s.lookup(f.ID).unit] = true
	}
	open := files[3]
	reader, err := os.Open(d.partName(open.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	delete(fake.known, &s.lookup(open.ID).unit)
	a.name(&s.lookup(open.ID).unit)
	fill(t, s, testFile("more", "1", 3*page))
	wantAt(t, s, open, "mem")
	wantAt(t, s, files[6], "") // the young one
	checkLedger(t, s)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	a.sweep(fake, a.units())
	a.sweep(fake, a.units())
	fill(t, s, testFile("more still", "1", 3*page))
	wantAt(t, s, open, "")
	wantAt(t, s, files[1], "mem")
	checkLedger(t, s)
}

// TestRistretto runs the real one: it names what is over the room, not what
// is read all the time, and takes its goroutines with it.
func TestRistretto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = 100
		a := newAdvised(newRistretto, func() int64 { return room*page*10/9 + 10 }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.run(ctx) })
		synctest.Wait()
		all := someUnits(3 * room)
		hot := all[:room/4]
		for _, u := range all {
			a.add(u)
			synctest.Wait()
			for _, h := range hot {
				a.touch(h)
			}
			synctest.Wait()
		}
		a.listsMu.Lock()
		named := slices.Clone(a.named.list)
		a.listsMu.Unlock()
		if n := len(named); n != len(all)-room {
			t.Fatalf("%d units are named, %d are over the room", n, len(all)-room)
		}
		n := 0
		for _, u := range named {
			if slices.Contains(hot, u) {
				n++
			}
		}
		// Of the others, it is two thirds and more. The race detector makes
		// sync.Pool, and with it ristretto, forget nearly all hits.
		if n > len(hot)/3 && !raceEnabled {
			t.Fatalf("%d of %d units that are read all the time are named", n, len(hot))
		}
		for range named { // the kernel refuses all of them; what was hit since is admitted again
			a.victim()
		}
		time.Sleep(4 * sweepInterval)
		synctest.Wait()
		if n := len(a.lost.list) + len(a.named.list); n != len(named) {
			t.Fatalf("the sweep found %d of %d that ristretto struck off and the store has", n, len(named))
		}
		cancel()
		wg.Wait()
	})
}

// withAdvice switches ristretto's advice on.
func withAdvice(_ *Options, c *Config) { c.Advice = RistrettoAdvice }

// TestAdviceIsAskedFor: for memory, and for no other medium.
func TestAdviceIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		medium Medium
		advice Advice
		ok     bool
	}{
		{Memory, NoAdvice, true},
		{Memory, RistrettoAdvice, true},
		{SSD, NoAdvice, true},
		{SSD, RistrettoAdvice, false},
		{HDD, RistrettoAdvice, false},
		{Memory, "luck", false},
	} {
		cfg := testConfig(t.TempDir(), 16*mib)
		cfg.Medium, cfg.Advice = c.medium, c.advice
		if err := cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%s for %s: %v", c.advice, c.medium, err)
		}
		if !c.ok {
			continue
		}
		d := newDir(cfg, 0, &Store{log: slog.New(slog.DiscardHandler)})
		if _, advised := d.queue.(runner); advised != (c.advice == RistrettoAdvice) {
			t.Errorf("with advice %q the policy of %s is %T", c.advice, c.medium, d.queue)
		}
	}
}

// TestHitOfMemoryDoesNotAllocate: also with the adviser at work.
func TestHitOfMemoryDoesNotAllocate(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"mem", Memory, 6 * mib}}, withAdvice)
	f := testFile("f", "1", page)
	fill(t, s, f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	buf := make([]byte, 4096)
	allocs := testing.AllocsPerRun(5000, func() {
		h, err := s.Acquire(f, block.Extent{Length: 4096})
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := h.ReadAt(buf, 0); err != nil {
			t.Error(err)
		}
		h.Release()
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if allocs > 1 { // the handle
		t.Fatalf("%v allocations", allocs)
	}
	if !bytes.Equal(buf, pageBytes(f, 0)[:4096]) {
		t.Fatal(errors.New("wrong bytes"))
	}
}
