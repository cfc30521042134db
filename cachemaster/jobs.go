package cachemaster

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/loadjob"
)

// scheduler runs the load jobs while this master leads: it takes each from
// its committed cursor and moves it on until it is final. It is safe for
// concurrent use.
type scheduler struct {
	cfg    Config
	m      *Master
	change *broadcast    // a job changed, committed or live
	ended  *broadcast    // a job came to its end
	wake   chan struct{} // holds one token when the table of jobs changed
	// watchEvery is the time between two messages of WatchJob.
	watchEvery time.Duration

	mu   sync.Mutex
	runs map[string]*jobRun // by job ID
}

func newScheduler(cfg Config, m *Master) *scheduler {
	return &scheduler{
		cfg: cfg, m: m, change: newBroadcast(), ended: newBroadcast(), wake: make(chan struct{}, 1),
		watchEvery: watchInterval, runs: make(map[string]*jobRun),
	}
}

// poke leaves a token in a channel that holds one.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// changed is told of each new state.
func (s *scheduler) changed(old, next *fsm.State) {
	if old.JobsIndex == next.JobsIndex {
		return
	}
	s.mu.Lock()
	for id, r := range s.runs {
		if j, ok := next.Jobs[id]; !ok || j.Final() {
			r.cancel()
		}
	}
	s.mu.Unlock()
	poke(s.wake)
	s.change.notify()
	for id, j := range next.Jobs {
		if before, ok := old.Jobs[id]; j.Final() && (!ok || !before.Final()) {
			s.ended.notify()
			return
		}
	}
}

// run starts the jobs that are not final, the oldest first, a bounded number
// at a time, until ctx ends; then it waits for them to stop where they are.
func (s *scheduler) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, job := range s.startable() {
			r, ctx := s.begin(ctx, job)
			wg.Go(func() {
				r.run(ctx)
				s.mu.Lock()
				delete(s.runs, job.ID)
				s.mu.Unlock()
				poke(s.wake)
				s.change.notify()
			})
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// startable returns the jobs that should run now and do not yet.
func (s *scheduler) startable() []fsm.Job {
	st := s.m.store.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	var jobs []fsm.Job
	for id, j := range st.Jobs {
		if s.runs[id] == nil && !j.Final() {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, newestFirst)
	slices.Reverse(jobs)
	return jobs[:min(len(jobs), max(s.cfg.Jobs-len(s.runs), 0))]
}

// begin enters a run, and returns it with the context that its cancel ends.
func (s *scheduler) begin(ctx context.Context, job fsm.Job) (*jobRun, context.Context) {
	r := newJobRun(s, job)
	ctx, r.cancel = context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[job.ID] = r
	// A change that came between would have found no run to cancel.
	if j, ok := s.m.store.State().Jobs[job.ID]; !ok || j.Final() {
		r.cancel()
	}
	return r, ctx
}

// live returns the run of a job, if this master has one.
func (s *scheduler) live(id string) *jobRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[id]
}

// jobOf makes a job of its record.
func jobOf(j fsm.Job) (loadjob.Job, error) {
	out := loadjob.Job{
		ID: j.ID, Cursor: loadjob.Cursor{PathIndex: j.Cursor.PathIndex, After: string(j.Cursor.After)},
		Files: loadjob.Sums(j.Files), Bytes: loadjob.Sums(j.Bytes), Error: j.Error,
		Started: ofMillis(j.StartedMillis), Finished: ofMillis(j.FinishedMillis),
	}
	for _, p := range j.Paths {
		out.Paths = append(out.Paths, string(p))
	}
	err := out.State.UnmarshalText([]byte(j.State))
	return out, err
}

// progressCommand makes the command that moves a job on.
func progressCommand(id string, p loadjob.Progress) fsm.Command {
	return fsm.Command{ProgressJob: &fsm.ProgressJob{
		ID: id, State: p.State.String(), Cursor: fsm.Cursor{PathIndex: p.Cursor.PathIndex, After: fsm.Path(p.Cursor.After)},
		Files: fsm.Sums(p.Files), Bytes: fsm.Sums(p.Bytes), Error: p.Error, FinishedMillis: millis(p.Finished),
	}}
}

// The waits between attempts.
const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// backoff returns the wait before attempt n, from 1: it doubles, up to a
// bound, and is spread by a quarter either way.
func backoff(n int) time.Duration {
	d := min(firstBackoff<<min(n-1, 10), maxBackoff)
	return d*3/4 + rand.N(d/2)
}

// passing reports whether what failed may succeed a little later.
func passing(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Throttled, errs.Timeout, errs.Canceled, errs.Busy:
		return true
	default:
		return false
	}
}

// listTries is how often a listing is taken up again without progress.
const listTries = 5

// jobSource lists the namespace for the planner.
type jobSource struct{ m *Master }

var (
	_ loadjob.Source = jobSource{}
	_ loadjob.Looker = jobSource{}
)

// List implements loadjob.Source. A listing that breaks off is taken up
// behind its last file.
func (s jobSource) List(ctx context.Context, p, after string) iter.Seq2[loadjob.FileEntry, error] {
	return func(yield func(loadjob.FileEntry, error) bool) {
		for try := 1; ; try++ {
			var failed error
			for f, err := range s.m.filesAt(ctx, p, after, true) {
				if err != nil {
					failed = err
					break
				}
				e, err := s.entry(&f)
				if err != nil {
					yield(e, err)
					return
				}
				if !yield(e, nil) {
					return
				}
				after, try = f.path, 1
			}
			if failed == nil {
				return
			}
			if ctx.Err() != nil || !passing(failed) || try >= listTries || sleep(ctx, s.m.clock, backoff(try)) != nil {
				yield(loadjob.FileEntry{}, failed)
				return
			}
		}
	}
}

// Look implements loadjob.Looker.
func (s jobSource) Look(ctx context.Context, p string) (loadjob.FileEntry, error) {
	f, err := s.m.ns.stat(ctx, p, true)
	if err != nil {
		return loadjob.FileEntry{}, err
	}
	return s.entry(&f)
}

func (s jobSource) entry(f *file) (loadjob.FileEntry, error) {
	t := s.m.ns.ticket(f)
	if err := t.Validate(); err != nil {
		return loadjob.FileEntry{}, errs.E(errs.Invalid, "issue ticket", f.path, err)
	}
	return loadjob.FileEntry{Path: f.path, Ticket: t}, nil
}

// final reports whether a commit failed because the job needs no more.
func final(err error) bool { return errors.Is(err, errs.Stale) || errors.Is(err, errs.NotFound) }
