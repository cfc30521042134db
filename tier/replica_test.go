package tier

import (
	"errors"
	"fmt"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
)

func testReplica(path string, length int64) File {
	f := testFile(path, "1", length)
	f.Replica = true
	return f
}

func withShare(share float64) opener { return func(_ *Options, c *Config) { c.ReplicaShare = share } }

// cachedOf counts the files of which all is cached.
func cachedOf(s *Store, files []File) int {
	n := 0
	for _, f := range files {
		if _, bytes := s.Cached(f.ID); bytes == f.Length {
			n++
		}
	}
	return n
}

// TestReplicasTakeTheirShare fills more replicas than their share holds while
// there is room in the directory: the share is never passed, and what is owned
// stays.
func TestReplicasTakeTheirShare(t *testing.T) {
	const capacity = 16 * mib
	s := openStore(t, t.TempDir(), capacity, withFS(quick()), withShare(0.25))
	owned := testFile("owned", "1", mib)
	fill(t, s, owned)
	var files []File
	for i := range 20 {
		f := testReplica(fmt.Sprintf("r%d", i), mib/2)
		fill(t, s, f)
		files = append(files, f)
		if st := s.Status()[0]; st.Replicas > capacity/4 {
			t.Fatalf("replicas take %d bytes of %d", st.Replicas, capacity)
		}
		mustRead(t, s, f, 2)
	}
	checkLedger(t, s)
	if files, bytes := s.Usage(1, ""); files != 1 || bytes != mib {
		t.Errorf("%d files of %d bytes count, want the one that is owned", files, bytes)
	}
	if n := cachedOf(s, files); n != 8 {
		t.Fatalf("%d replicas are cached, the share holds 8", n)
	}
	mustRead(t, s, owned, 4)
}

// TestReplicasGoFirst fills a directory with replicas and then with files that
// it owns: all of the replicas go before any of these.
func TestReplicasGoFirst(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, withFS(quick()))
	var replicas, owned []File
	for i := range 10 {
		f := testReplica(fmt.Sprintf("r%d", i), mib/2)
		fill(t, s, f)
		for range 3 { // whatever their hits
			mustRead(t, s, f, 2)
		}
		replicas = append(replicas, f)
	}
	for i := 0; cachedOf(s, replicas) > 0; i++ {
		if i == 40 {
			t.Fatal("replicas stay in a directory that is full")
		}
		f := testFile(fmt.Sprintf("o%d", i), "1", mib/2)
		fill(t, s, f)
		owned = append(owned, f)
		if n := cachedOf(s, owned); n != len(owned) {
			t.Fatalf("%d of %d owned files are cached, beside %d replicas", n, len(owned), cachedOf(s, replicas))
		}
	}
	if st := s.Status()[0]; st.Replicas != 0 {
		t.Fatalf("%d bytes are charged for replicas that are gone", st.Replicas)
	}
	checkLedger(t, s)
}

// TestReplicaInUseIsRefused pins all that the share holds.
func TestReplicaInUseIsRefused(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, withFS(quick()), withShare(0.25))
	f := testReplica("pinned", 3*mib)
	fill(t, s, f)
	h, err := s.Acquire(f, block.Extent{Length: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []File{testReplica("second", 2*mib), testReplica("larger than the share", 5*mib)} {
		if err := fillRange(s, g, g.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
			t.Fatalf("%s: %v", g.Path, err)
		}
	}
	if st := s.Status()[0]; st.Replicas != 3*mib {
		t.Fatalf("%d bytes are charged for replicas", st.Replicas)
	}
	h.Release()
	fill(t, s, testReplica("third", 2*mib))
	checkLedger(t, s)
}

// TestReplicasSurviveRestart: a store that was closed, killed, or compacted its
// index before, still knows which of its files are replicas.
func TestReplicasSurviveRestart(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, s *Store){
		"close": func(t *testing.T, s *Store) {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"kill": func(t *testing.T, s *Store) { t.Helper(); abandon(t, s) },
		"compact": func(t *testing.T, s *Store) {
			t.Helper()
			if err := s.dirs[0].compact(true); err != nil {
				t.Fatal(err)
			}
			abandon(t, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, 16*mib)
			replica, owned := testReplica("replica", mib), testFile("owned", "1", mib)
			fill(t, s, replica)
			fill(t, s, owned)
			leave(t, s)

			s = openStore(t, dir, 16*mib)
			for _, c := range []struct {
				f    File
				want bool
			}{{replica, true}, {owned, false}} {
				h, err := s.Acquire(c.f, c.f.Geometry().Whole())
				if err != nil {
					t.Fatal(err)
				}
				if got := h.p.isReplica(); got != c.want {
					t.Errorf("%s is a replica: %v", c.f.Path, got)
				}
				h.Release()
				mustRead(t, s, c.f, 4)
			}
			if st := s.Status()[0]; st.Replicas != mib {
				t.Errorf("%d bytes are charged for replicas", st.Replicas)
			}
			if _, _, err := s.Drop(1, "replica"); err != nil {
				t.Fatal(err)
			}
			if st := s.Status()[0]; st.Replicas != 0 {
				t.Errorf("%d bytes are charged for a replica that was dropped", st.Replicas)
			}
		})
	}
}

// TestLargeReplicaGoesAsAWhole: it would be of no use without some blocks.
func TestLargeReplicaGoesAsAWhole(t *testing.T) {
	const capacity = 160 * mib
	s := openStore(t, t.TempDir(), capacity, withFS(quick()), withShare(0.5))
	large := testReplica("large", wholeLimit+mib)
	fill(t, s, large)
	fill(t, s, testReplica("small", 20*mib))
	if _, n := s.Cached(large.ID); n != 0 {
		t.Fatalf("%d bytes of the large replica are left", n)
	}
	if st := s.Status()[0]; st.Replicas != 20*mib {
		t.Fatalf("%d bytes are charged for replicas", st.Replicas)
	}
	checkLedger(t, s)
}

// TestPiecewiseReplica: where other blocks of a file may be owned here, all of
// it is kept as owned.
func TestPiecewiseReplica(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, withFS(quick()), withShare(0))
	f := testReplica("f", mib)
	if err := fillRange(s, f, f.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Fatalf("without a share for replicas: %v", err)
	}
	f.Piecewise = true
	fill(t, s, f)
	if st := s.Status()[0]; st.Replicas != 0 {
		t.Errorf("%d bytes are charged for replicas", st.Replicas)
	}
	if files, bytes := s.Usage(1, ""); files != 1 || bytes != mib {
		t.Errorf("%d files of %d bytes count as owned", files, bytes)
	}
	mustRead(t, s, f, 4)
}
