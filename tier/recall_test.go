package tier

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

// isRecalled reports whether the descriptors of f are wanted back, from a
// position on.
func isRecalled(s *Store, since uint64, f File) bool {
	r := s.Recalls(since)
	return r.Idle == 0 || slices.Contains(r.Files, f.ID)
}

// TestRecalls checks that whatever ends the hand-out of a file recalls its
// descriptors, and those of no other file.
func TestRecalls(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(*testing.T, *Store, File)
		want  bool
		rest  bool // the other file is recalled too
	}{
		"nothing": {func(*testing.T, *Store, File) {}, false, false},
		"a read":  {func(t *testing.T, s *Store, f File) { t.Helper(); mustRead(t, s, f, 8) }, false, false},
		"dropped": {func(t *testing.T, s *Store, f File) {
			t.Helper()
			if n, _, err := s.Drop(f.MountID, f.Path); err != nil || n != 1 {
				t.Fatal(n, err)
			}
		}, true, false},
		"dropped while it is read": {func(t *testing.T, s *Store, f File) {
			t.Helper()
			h := acquire(t, s, f, f.Geometry().Whole())
			if n, _, err := s.Drop(f.MountID, f.Path); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			h.Release()
		}, true, false},
		"in the way of an eviction": {func(t *testing.T, s *Store, f File) {
			t.Helper()
			s.Touch(testFile("other", "1", 2*mib).ID, 1)
			d := s.dirs[0]
			if d.evict(s.lookup(f.ID).each1()) {
				t.Fatal("it was evicted")
			}
		}, true, false},
		"a damaged page that is read": {func(t *testing.T, s *Store, f File) {
			t.Helper()
			flip(t, s, f, 3)
			h := acquire(t, s, f, f.Geometry().Whole())
			defer h.Release()
			h.VerifyAlways()
			if _, err := h.ReadAt(make([]byte, page), 3*page); err == nil {
				t.Fatal("a damaged page was read")
			}
		}, true, false},
		"a damaged page that the scrubber finds": {func(t *testing.T, s *Store, f File) {
			t.Helper()
			flip(t, s, f, 3)
			pass(t, s)
		}, true, false},
		"its directory fails": {func(_ *testing.T, s *Store, _ File) {
			s.dirs[0].fail(errs.E(errs.Unavailable, "", "", nil))
			s.takeOut(s.dirs[0])
		}, true, true},
		"a failed sync": {func(_ *testing.T, s *Store, _ File) { s.dirs[0].unverifyAll() }, true, true},
		"everything":    {func(_ *testing.T, s *Store, _ File) { s.RecallAll() }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStoreWithLeases(t, 64*mib)
			f, other := testFile("f", "1", 2*mib), testFile("other", "1", 2*mib)
			fill(t, s, f)
			fill(t, s, other)
			mustHandOut(t, s, f)
			mustHandOut(t, s, other)
			since := s.Recalls(0).Position
			tc.event(t, s, f)
			if got := isRecalled(s, since, f); got != tc.want {
				t.Errorf("recalled: %v", got)
			}
			if got := isRecalled(s, since, other); got != tc.rest {
				t.Errorf("the other one is recalled: %v", got)
			}
		})
	}
}

// each1 returns the unit of a part that is one.
func (p *part) each1() (one *unit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all(func(u *unit) { one = u })
	return one
}

// TestRecallsOfWhatNobodyHas checks that evictions and drops of files that
// nobody has open recall nothing.
func TestRecallsOfWhatNobodyHas(t *testing.T) {
	s := openStoreWithLeases(t, 16*mib)
	f := testFile("f", "1", mib)
	fill(t, s, f)
	since := s.Recalls(0).Position
	for i := range 40 {
		fill(t, s, testFile(fmt.Sprint("x", i), "1", mib))
	}
	if s.Stats().EvictedFiles == 0 {
		t.Fatal("nothing was evicted")
	}
	if _, _, err := s.Drop(f.MountID, ""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Recalls{Position: since, Idle: AnyTime}, s.Recalls(since)); diff != "" {
		t.Error(diff)
	}
}

// TestRecallPositions checks what is told from which position.
func TestRecallPositions(t *testing.T) {
	now := time.Unix(1, 0)
	var r recalls
	r.init(now)
	id := func(i int) block.FileID { return block.FileID{byte(i >> 8), byte(i)} }
	start := r.since(0, now)
	if start.Idle != 0 || start.Files != nil {
		t.Fatalf("the first time: %+v", start)
	}
	r.file(id(1))
	r.file(id(2))
	got := r.since(start.Position, now)
	if diff := cmp.Diff(Recalls{Position: start.Position + 2, Idle: AnyTime, Files: []block.FileID{id(1), id(2)}}, got); diff != "" {
		t.Error(diff)
	}
	if again := r.since(got.Position, now); again.Files != nil || again.Idle != AnyTime {
		t.Errorf("told twice: %+v", again)
	}
	if r.since(got.Position+1, now).Idle != 0 || r.since(start.Position-1, now).Idle != 0 {
		t.Error("a position that was never told is believed")
	}
	r.all()
	if r.since(got.Position, now).Idle != 0 {
		t.Error("not all is wanted back")
	}
	from := r.since(0, now).Position
	for i := range maxRecalls {
		r.file(id(i))
	}
	if full := r.since(from, now); len(full.Files) != maxRecalls || full.Files[7] != id(7) || full.Idle != AnyTime {
		t.Errorf("%d files, idle %v", len(full.Files), full.Idle)
	}
	r.file(id(1))
	if over := r.since(from, now); over.Idle != 0 {
		t.Error("who is too far behind is told a part")
	}
	var next recalls // of the next run
	next.init(now.Add(time.Second))
	if next.since(r.since(0, now).Position, now).Idle != 0 {
		t.Error("the position of an earlier run is believed")
	}
}

// TestIdleInNeed checks that descriptors which nobody uses may stay for a short
// time alone while they are in the way of many victims, and no longer.
func TestIdleInNeed(t *testing.T) {
	for name, tc := range map[string]struct {
		given, refused int
		want           time.Duration
	}{
		"no evictions":           {0, 0, AnyTime},
		"few refused":            {0, refusedLeast - 1, AnyTime},
		"many refused":           {0, refusedLeast, idleInNeed},
		"a small part is":        {10 * refusedLeast, refusedLeast, AnyTime},
		"a large part is":        {2 * refusedLeast, refusedLeast, idleInNeed},
		"evictions go their way": {1000, 0, AnyTime},
	} {
		t.Run(name, func(t *testing.T) {
			var r recalls
			r.init(time.Now())
			for range tc.refused {
				r.victim(block.FileID{1}, true)
			}
			for range tc.given {
				r.victim(block.FileID{2}, false)
			}
			at := r.since(0, time.Now()).Position
			if got := r.since(at, time.Now()).Idle; got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
			if got := r.since(at, time.Now().Add(recallWindow)).Idle; got != tc.want {
				t.Errorf("%v in the next window, want %v", got, tc.want)
			}
			if got := r.since(at, time.Now().Add(3*recallWindow)).Idle; got != AnyTime {
				t.Errorf("%v long after", got)
			}
		})
	}
}
