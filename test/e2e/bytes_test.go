package e2e_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace/bench/rig"
)

const readers = 8

// randomReads reads n pieces of random files at random offsets and lengths
// and compares every byte. Files stay open between reads, a few at a time.
func randomReads(root string, objects map[string]int64, seed uint64, n int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	keys := slices.Sorted(maps.Keys(objects))
	const longest = 1 << 20
	buf, scratch := make([]byte, longest), make([]byte, longest)
	open := map[string]*os.File{}
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	for i := range n {
		key := keys[rng.IntN(len(keys))]
		size := objects[key]
		f := open[key]
		if f == nil {
			var err error
			if f, err = os.Open(filepath.Join(root, key)); err != nil {
				return fmt.Errorf("seed %d, read %d: %w", seed, i, err)
			}
			open[key] = f
		}
		off := rng.Int64N(size)
		p := buf[:1+rng.Int64N(min(size-off, longest))]
		// The kernel gives up its pages of the file, or it would answer alone.
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("seed %d, read %d of %s: %w", seed, i, key, err)
		}
		if _, err := f.ReadAt(p, off); err != nil {
			return fmt.Errorf("seed %d, read %d of %s at %d, %d bytes: %w", seed, i, key, off, len(p), err)
		}
		if err := rig.NewContent(key, size).Check(p, off, scratch); err != nil {
			return fmt.Errorf("seed %d, read %d of %s at %d, %d bytes: %w", seed, i, key, off, len(p), err)
		}
		if len(open) > 16 {
			f.Close()
			delete(open, key)
		}
	}
	return nil
}

func readConcurrently(t *testing.T, root string, objects map[string]int64, n int) {
	t.Helper()
	var g errgroup.Group
	for range readers {
		seed := rand.Uint64()
		g.Go(func() error { return randomReads(root, objects, seed, n) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A cache of a quarter of the data, random offsets and lengths, 8 readers:
// every byte is right while the worker evicts, and the cache keeps its bound.
func TestBytesWhileEvicting(t *testing.T) {
	s := newStore(t)
	s.fill(t, "large", 20<<20, 9<<20+1, 5<<20-3)
	var small []int64
	for i := range 60 {
		small = append(small, int64(1+i*i*97%(300<<10)))
	}
	s.fill(t, "small", small...)
	quarter := s.bytes() / 4
	u := newUp(t, s, true)
	u.args = []string{u.cacheOption(fmt.Sprint(quarter))}
	u.start()

	readConcurrently(t, u.mountPoint, s.objects, 60)
	u.readAll(s)
	readConcurrently(t, u.mountPoint, s.objects, 60)

	st := u.status()
	if st.Counters.EvictedBytes == 0 {
		t.Error("nothing was evicted: the test did not test eviction")
	}
	for _, w := range st.Workers {
		for _, tier := range w.Tiers {
			if tier.UsedBytes > quarter || tier.UsedBytes == 0 {
				t.Errorf("the cache uses %d bytes of %d", tier.UsedBytes, quarter)
			}
		}
	}
	u.stop()
	if _, err := os.ReadDir(u.mountPoint); err != nil {
		t.Errorf("the mount point after SIGTERM: %v", err)
	}
}

// S3 is asked once for a cold file, however many read it, and not at all for
// a warm one.
func TestRequestsAtTheServer(t *testing.T) {
	s := newStore(t)
	s.fill(t, "f", 12<<20+5, 12<<20, 100<<10, 0)
	u := newUp(t, s, true)
	u.start()
	read := func(i int) error {
		key := fmt.Sprintf("f/%04d.bin", i)
		return compareFile(filepath.Join(u.mountPoint, key), key, s.objects[key])
	}
	size := func(i int) int64 { return s.objects[fmt.Sprintf("f/%04d.bin", i)] }

	steps := []struct {
		name  string
		read  func() error
		bytes int64 // that S3 sends
	}{
		{"cold", func() error { return read(0) }, size(0)},
		{"warm", func() error { return read(0) }, 0},
		{"cold, 8 readers at once", func() error {
			var g errgroup.Group
			for range readers {
				g.Go(func() error { return read(1) })
			}
			return g.Wait()
		}, size(1)},
		{"small, cold", func() error { return read(2) }, size(2)},
		{"small, warm", func() error { return read(2) }, 0},
		{"empty", func() error { return read(3) }, 0},
	}
	for _, step := range steps {
		dropCaches(t)
		s.proxy.Reset()
		if err := step.read(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		got := s.proxy.Snapshot()
		if got.GetBytes != step.bytes {
			t.Errorf("%s: S3 sent %d bytes of the file, want %d (%d requests)", step.name, got.GetBytes, step.bytes, got.Get)
		}
		if step.bytes == 0 && got.Get != 0 {
			t.Errorf("%s: S3 got %d GETs, want none", step.name, got.Get)
		}
	}
	if got, want := s.proxy.Snapshot(), u.status().Counters.UFSRequests; want["get"] < got.Get {
		t.Errorf("status counts %d GETs, the server saw %d since the last step alone", want["get"], got.Get)
	}
}

// `up` talks to itself over sockets: a read passes through the worker's data
// plane, wherever its bytes lie, and the master's gRPC server answers on its port.
func TestUpUsesItsOwnSockets(t *testing.T) {
	s := newStore(t)
	s.fill(t, "f", 3<<20)
	u := newUp(t, s, true)
	u.start()
	u.readAll(s)
	if err := u.worker("millrace_worker_bytes_served_total", 3<<20); err != nil {
		t.Error(err)
	}
}

func dropCaches(t *testing.T) {
	t.Helper()
	if err := rig.DropCaches(); err != nil {
		t.Fatal(err)
	}
}
