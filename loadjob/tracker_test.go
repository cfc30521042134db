package loadjob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"millrace/internal/errs"
)

// collect plans the job into the tracker and returns the items.
func collect(t *testing.T, tr *Tracker, job Job, src Source) []*Item {
	t.Helper()
	var all []*Item
	tr.Planned(Plan(t.Context(), job, src, func(i *Item) error {
		tr.Add(i)
		all = append(all, i)
		return nil
	}))
	return all
}

func TestTrackerPassesFilesInOrder(t *testing.T) {
	const b = testBlock
	job := Job{Paths: []string{"/"}, State: Planning}
	tr := NewTracker(job, DefaultConfig())
	all := collect(t, tr, job, listing{files: []FileEntry{
		{"/a", ticket("/a", 2*b)}, {"/b", ticket("/b", 5)}, {"/c", ticket("/c", 0)}, {"/d", ticket("/d", b+1)},
	}})
	step := func(r Result, cursor string, files, bytes, liveFiles, liveBytes Sums) {
		t.Helper()
		if !tr.Done(r) {
			t.Fatalf("result %+v was not waited for", r)
		}
		if tr.Done(r) {
			t.Fatalf("result %+v counted twice", r)
		}
		type both struct{ Cursor, Files, Bytes, LiveFiles, LiveBytes any }
		s, l := tr.Snapshot(), tr.Live()
		if d := cmp.Diff(both{cursor, files, bytes, liveFiles, liveBytes}, both{s.Cursor.After, s.Files, s.Bytes, l.Files, l.Bytes}); d != "" {
			t.Errorf("after %+v: %s", r, d)
		}
	}
	if n := len(all); n != 6 {
		t.Fatalf("planned %d items", n)
	}
	step(Result{Number: 3, Loaded: 2, Cached: 3}, "", Sums{}, Sums{},
		Sums{Listed: 4, Loaded: 1}, Sums{Listed: 3*b + 6, Loaded: 2, AlreadyCached: 3})
	step(Result{Number: 1, Cached: b}, "", Sums{}, Sums{},
		Sums{Listed: 4, Loaded: 1}, Sums{Listed: 3*b + 6, Loaded: 2, AlreadyCached: b + 3})
	step(Result{Number: 2, Cached: b}, "/b", Sums{Listed: 2, Loaded: 1, AlreadyCached: 1}, Sums{Listed: 2*b + 5, Loaded: 2, AlreadyCached: 2*b + 3},
		Sums{Listed: 4, Loaded: 1, AlreadyCached: 1}, Sums{Listed: 3*b + 6, Loaded: 2, AlreadyCached: 2*b + 3})
	step(Result{Number: 6, Err: errs.Stale}, "/b", Sums{Listed: 2, Loaded: 1, AlreadyCached: 1}, Sums{Listed: 2*b + 5, Loaded: 2, AlreadyCached: 2*b + 3},
		Sums{Listed: 4, Loaded: 1, AlreadyCached: 1}, Sums{Listed: 3*b + 6, Loaded: 2, AlreadyCached: 2*b + 3})
	if _, ok := tr.Finished(); ok {
		t.Fatal("finished with an item open")
	}
	step(Result{Number: 4}, "/c", Sums{Listed: 3, Loaded: 1, AlreadyCached: 2}, Sums{Listed: 2*b + 5, Loaded: 2, AlreadyCached: 2*b + 3},
		Sums{Listed: 4, Loaded: 1, AlreadyCached: 2}, Sums{Listed: 3*b + 6, Loaded: 2, AlreadyCached: 2*b + 3})
	step(Result{Number: 5, Loaded: b}, "/d", Sums{Listed: 4, Loaded: 1, AlreadyCached: 2, Gone: 1}, Sums{Listed: 3*b + 6, Loaded: b + 2, AlreadyCached: 2*b + 3, Gone: 1},
		Sums{Listed: 4, Loaded: 1, AlreadyCached: 2, Gone: 1}, Sums{Listed: 3*b + 6, Loaded: b + 2, AlreadyCached: 2*b + 3, Gone: 1})
	p, ok := tr.Finished()
	if !ok || p.State != Succeeded || p.Cursor != (Cursor{PathIndex: 1}) {
		t.Errorf("finished: %v, %+v", ok, p)
	}
}

func TestTrackerFailures(t *testing.T) {
	entry := FileEntry{"/a", ticket("/a", 10)}
	tests := []struct {
		name   string
		result Result
		list   error
		state  State
		files  Sums
		bytes  Sums
		err    string
	}{
		{
			"failed",
			Result{Loaded: 4, Err: errs.E(errs.NoSpace, "keep", "", nil)},
			nil, Failed,
			Sums{Listed: 1, Failed: 1},
			Sums{Listed: 10, Loaded: 4, Failed: 6},
			"1 of 1 files failed; the first: /a: keep: no space left",
		},
		{"gone", Result{Err: errs.NotFound}, nil, Succeeded, Sums{Listed: 1, Gone: 1}, Sums{Listed: 10, Gone: 10}, ""},
		{
			"short",
			Result{Loaded: 4},
			nil, Failed,
			Sums{Listed: 1, Failed: 1},
			Sums{Listed: 10, Failed: 10},
			"1 of 1 files failed; the first: /a: load: 4 bytes loaded and 0 found of 10",
		},
		{
			"long",
			Result{Loaded: 4, Cached: 7},
			nil, Failed,
			Sums{Listed: 1, Failed: 1},
			Sums{Listed: 10, Failed: 10},
			"1 of 1 files failed; the first: /a: load: 4 bytes loaded and 7 found of 10",
		},
		{"listing", Result{Loaded: 10}, errs.Unavailable, Failed, Sums{Listed: 1, Loaded: 1}, Sums{Listed: 10, Loaded: 10}, "list /: unavailable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := Job{Paths: []string{"/"}}
			tr := NewTracker(job, DefaultConfig())
			collect(t, tr, job, listing{files: []FileEntry{entry}, err: tt.list})
			tt.result.Number = 1
			tr.Done(tt.result)
			p, ok := tr.Finished()
			if !ok {
				t.Fatal("not finished")
			}
			if d := cmp.Diff([]any{tt.state, tt.files, tt.bytes, tt.err}, []any{p.State, p.Files, p.Bytes, p.Error}); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTrackerCanceled(t *testing.T) {
	job := Job{Paths: []string{"/"}}
	tr := NewTracker(job, DefaultConfig())
	collect(t, tr, job, listing{files: []FileEntry{{"/a", ticket("/a", 10)}, {"/b", ticket("/b", 10)}}})
	tr.Done(Result{Number: 2, Loaded: 10})
	p := tr.Canceled()
	if p.State != Canceled || p.Files != (Sums{Listed: 2, Loaded: 1}) || p.Bytes != (Sums{Listed: 20, Loaded: 10}) {
		t.Errorf("got %+v", p)
	}
}

func TestTrackerWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window = 8
		var files []FileEntry
		for i := range 100 {
			p := fmt.Sprintf("/%03d", i)
			files = append(files, FileEntry{p, ticket(p, int64(i%3)*testBlock)})
		}
		job := Job{Paths: []string{"/"}}
		tr := NewTracker(job, Config{Window: window})
		queue := make(chan *Item, 1000)
		go func() {
			tr.Planned(Plan(t.Context(), job, listing{files: files}, func(i *Item) error {
				if err := tr.Wait(t.Context()); err != nil {
					return err
				}
				tr.Add(i)
				queue <- i
				return nil
			}))
			close(queue)
		}()
		synctest.Wait()
		if items, files := tr.Outstanding(); items+files < window || items+files > window+1 {
			t.Errorf("%d items and %d files are held, the window is %d", items, files, window)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := tr.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait on a full window: %v", err)
		}
		for i := range queue {
			tr.Done(Result{Number: i.Number, Loaded: i.Extent().Length})
		}
		synctest.Wait()
		p, ok := tr.Finished()
		if !ok || !p.Files.Exact() || p.Files.Listed != 100 {
			t.Errorf("finished %v: %+v", ok, p)
		}
	})
}

// modelFile is a file of the random listing, and what becomes of it.
type modelFile struct {
	entry FileEntry
	fate  error // of its items; nil loads them
}

// TestSumsAreExact loads a random listing with results in random order,
// committing at random moments, and crashes at some of them.
func TestSumsAreExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var src listing
		files := make(map[string]modelFile)
		for i := range rapid.IntRange(0, 40).Draw(rt, "files") {
			p := fmt.Sprintf("/%c/%02d", 'a'+rapid.IntRange(0, 2).Draw(rt, "dir"), i)
			m := modelFile{entry: FileEntry{p, ticket(p, rapid.Int64Range(0, 4*testBlock).Draw(rt, "length"))}}
			m.fate = rapid.SampledFrom([]error{nil, nil, nil, nil, errs.Stale, errs.NotFound, errs.NoSpace}).Draw(rt, "fate")
			files[p] = m
			src.files = append(src.files, m.entry)
		}
		slices.SortFunc(src.files, func(a, b FileEntry) int { return strings.Compare(a.Path, b.Path) })
		job := Job{Paths: []string{"/c", "/a", "/b", "/a/01"}, State: Planning}
		window := rapid.IntRange(1, 20).Draw(rt, "window")
		cached := make(map[string]bool) // extents that an earlier run loaded

		for runs := 0; !job.State.Final(); runs++ {
			crash := runs < 5 && rapid.Bool().Draw(rt, "crash")
			modelRun(rt, &job, src, files, cached, window, crash)
		}

		want := Sums{Listed: int64(len(files))}
		var wantBytes int64
		for _, m := range files {
			wantBytes += m.entry.Ticket.Length
			switch {
			case m.fate == nil:
				want.Loaded++ // or already cached: below
			case errors.Is(m.fate, errs.NoSpace):
				want.Failed++
			default:
				want.Gone++
			}
		}
		got := job.Files
		got.Loaded, got.AlreadyCached = got.Loaded+got.AlreadyCached, 0
		if got != want || !job.Files.Exact() {
			rt.Fatalf("files %+v, want %+v", job.Files, want)
		}
		if job.Bytes.Listed != wantBytes || !job.Bytes.Exact() {
			rt.Fatalf("bytes %+v, want %d listed", job.Bytes, wantBytes)
		}
		if wantState := map[bool]State{false: Succeeded, true: Failed}[want.Failed > 0]; job.State != wantState {
			rt.Fatalf("state %v, want %v", job.State, wantState)
		}
	})
}

// modelRun is one leader's term: it goes on from what is committed, and ends
// with the job or, if crash is set, anywhere.
func modelRun(rt *rapid.T, job *Job, src listing, files map[string]modelFile, cached map[string]bool, window int, crash bool) {
	tr := NewTracker(*job, Config{Window: window})
	var open []*Item
	crashed := errors.New("crashed")
	finishOne := func() {
		i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
		item := open[i]
		open = slices.Delete(open, i, i+1)
		r := Result{Number: item.Number, Err: files[item.Path()].fate}
		key := item.Path() + item.Extent().String()
		switch {
		case r.Err != nil:
			r.Loaded = rapid.Int64Range(0, item.Extent().Length).Draw(rt, "before the failure")
		case cached[key]:
			r.Cached = item.Extent().Length
		default:
			r.Cached = rapid.Int64Range(0, item.Extent().Length).Draw(rt, "found")
			r.Loaded = item.Extent().Length - r.Cached
			cached[key] = true
		}
		if !tr.Done(r) || tr.Done(r) {
			rt.Fatalf("result %+v was not counted exactly once", r)
		}
		if live := tr.Live(); live.Files.Listed < live.Files.Loaded+live.Files.AlreadyCached+live.Files.Failed+live.Files.Gone {
			rt.Fatalf("live files %+v", live.Files)
		}
		if rapid.IntRange(0, 3).Draw(rt, "commit") == 0 {
			p := tr.Snapshot()
			if !p.Files.Exact() || !p.Bytes.Exact() {
				rt.Fatalf("snapshot is not exact: %+v", p)
			}
			job.Apply(p)
		}
	}
	stop := func() bool { return crash && rapid.IntRange(0, 30).Draw(rt, "now") == 0 }
	err := Plan(context.Background(), *job, src, func(i *Item) error {
		for {
			if stop() {
				return crashed
			}
			if items, files := tr.Outstanding(); items == 0 || items+files < window {
				break
			}
			finishOne()
		}
		tr.Add(i)
		open = append(open, i)
		if items, files := tr.Outstanding(); items+files > window+1 && items > 1 {
			rt.Fatalf("%d items and %d files are held in a window of %d", items, files, window)
		}
		return nil
	})
	if errors.Is(err, crashed) {
		return
	}
	tr.Planned(err)
	for len(open) > 0 {
		if stop() {
			return
		}
		finishOne()
	}
	p, ok := tr.Finished()
	if !ok {
		rt.Fatalf("not finished: %+v", tr.Live())
	}
	job.Apply(p)
}
