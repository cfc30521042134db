package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/loadjob"
)

// jobRun is one job on the leader: the planner adds items, each item waits
// for its owner, and tasks of many items stream to the workers.
//
// Items wait in one list until a worker is chosen for them, then in the queue
// of that worker, of which up to Config.TasksPerWorker tasks are taken at a
// time: a task grows by what comes while the tasks before it run. An item of
// a task that breaks off goes back to the list. The tracker's window bounds
// all of this.
type jobRun struct {
	s       *scheduler
	job     fsm.Job
	tracker *loadjob.Tracker
	cancel  context.CancelFunc // ends the run; set by the scheduler
	wake    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	waiting []*work
	workers map[string]*jobWorker // by worker ID
	task    uint64                // number of the last task
	last    loadjob.Progress      // as committed
}

// errLost is why a task on a lost worker is broken off.
var errLost = errors.New("the worker is lost")

// work is an item on its way.
type work struct {
	item      *loadjob.Item
	attempts  int       // that failed
	notBefore time.Time // of the next one
	loaded    int64     // bytes that failed attempts fetched
}

// jobWorker is what a run has on one worker.
type jobWorker struct {
	queue []*work
	tasks map[uint64]context.CancelCauseFunc
	avoid time.Time // it broke off: not before this
}

func newJobRun(s *scheduler, job fsm.Job) *jobRun {
	r := &jobRun{s: s, job: job, wake: make(chan struct{}, 1), workers: make(map[string]*jobWorker)}
	j, _ := jobOf(job) // a state that is unknown runs as one that is not final
	r.tracker = loadjob.NewTracker(j, s.cfg.Job)
	return r
}

// run moves the job on until it is final or the run is canceled.
func (r *jobRun) run(ctx context.Context) {
	defer r.wg.Wait()
	defer r.cancel()
	r.wg.Go(func() {
		job, err := jobOf(r.job)
		if err == nil {
			err = loadjob.Plan(ctx, job, jobSource{r.s.m}, func(item *loadjob.Item) error { return r.add(ctx, item) })
		}
		if ctx.Err() == nil {
			r.tracker.Planned(err)
		}
		poke(r.wake)
	})
	commit := time.NewTicker(r.s.cfg.JobCommitInterval.Std())
	defer commit.Stop()
	for {
		changed := r.s.m.members.change.next()
		retry := r.dispatch(ctx)
		if p, ok := r.tracker.Finished(); ok {
			r.finish(ctx, p)
			return
		}
		if !r.await(ctx, retry, changed, commit.C) {
			return
		}
	}
}

// await waits until there may be something to do; false ends the run.
func (r *jobRun) await(ctx context.Context, retry time.Duration, changed <-chan struct{}, commit <-chan time.Time) bool {
	var later <-chan time.Time
	if retry > 0 {
		var stop func()
		later, stop = r.s.m.clock.After(retry)
		defer stop()
	}
	select {
	case <-r.wake:
	case <-later:
	case <-changed:
	case <-commit:
		return r.commit(ctx)
	case <-ctx.Done():
		return false
	}
	return true
}

// add takes an item from the planner.
func (r *jobRun) add(ctx context.Context, item *loadjob.Item) error {
	if err := r.tracker.Wait(ctx); err != nil {
		return err
	}
	r.tracker.Add(item)
	r.mu.Lock()
	r.waiting = append(r.waiting, &work{item: item})
	r.mu.Unlock()
	poke(r.wake)
	return nil
}

// commit commits the job's progress, if there is any; false ends the run.
func (r *jobRun) commit(ctx context.Context) bool {
	p := r.tracker.Snapshot()
	if p == r.last {
		return true
	}
	_, err := r.s.m.raft.apply(ctx, progressCommand(r.job.ID, p))
	switch {
	case err == nil:
		r.last = p
	case final(err), errors.Is(err, errs.NotLeader):
		return false
	case ctx.Err() == nil:
		r.s.m.log.Warn("progress of a load job was not committed", "job", r.job.ID, "error", err)
	}
	return true
}

// finish commits the final state; without success another leader, or this
// one, comes to the same end later.
func (r *jobRun) finish(ctx context.Context, p loadjob.Progress) {
	p.Finished = r.s.m.now()
	for try := 1; ; try++ {
		_, err := r.s.m.raft.apply(ctx, progressCommand(r.job.ID, p))
		if err == nil {
			r.s.m.log.Info("load job ended", "job", r.job.ID, "state", p.State, "files", p.Files.Listed, "bytes", p.Bytes.Listed)
			return
		}
		if final(err) || errors.Is(err, errs.NotLeader) || ctx.Err() != nil {
			return
		}
		r.s.m.log.Warn("end of a load job was not committed", "job", r.job.ID, "error", err)
		if sleep(ctx, r.s.m.clock, backoff(try)) != nil {
			return
		}
	}
}

// dispatch gives items to live workers and starts tasks. It returns after
// what time an item or worker that was put off may be tried; 0 if none was.
func (r *jobRun) dispatch(ctx context.Context) (retry time.Duration) {
	live := make(map[string]peer)
	for _, p := range r.s.m.members.reachable(true) {
		live[p.id] = p
	}
	slow := make(map[string]bool)
	for _, p := range r.s.m.members.reachable(false) {
		slow[p.id] = true
	}
	placement := r.s.m.store.State().Placement()
	now := r.s.m.now()

	r.mu.Lock()
	defer r.mu.Unlock()
	for id, w := range r.workers {
		if _, ok := live[id]; !ok || w.avoid.After(now) {
			r.waiting = append(r.waiting, w.queue...)
			w.queue = nil
		}
		if !slow[id] {
			for _, cancel := range w.tasks {
				cancel(errLost) // what it does is done elsewhere
			}
		}
	}
	later := func(t time.Time) {
		if d := max(t.Sub(now), time.Millisecond); retry == 0 || d < retry {
			retry = d
		}
	}
	// The oldest first, since the cursor waits for them.
	slices.SortFunc(r.waiting, byNumber)
	kept := r.waiting[:0]
	for _, w := range r.waiting {
		if w.notBefore.After(now) {
			later(w.notBefore)
			kept = append(kept, w)
			continue
		}
		id, until := r.owner(w, placement, live, now)
		if id == "" {
			if !until.IsZero() {
				later(until)
			}
			kept = append(kept, w)
			continue
		}
		r.worker(id).queue = append(r.worker(id).queue, w)
	}
	clear(r.waiting[len(kept):])
	r.waiting = kept
	for id, w := range r.workers {
		slices.SortFunc(w.queue, byNumber)
		for len(w.queue) > 0 && len(w.tasks) < r.s.cfg.TasksPerWorker {
			r.start(ctx, live[id], w, placement.Epoch)
		}
	}
	return retry
}

// byNumber orders items as they were planned.
func byNumber(a, b *work) int { return cmp.Compare(a.item.Number, b.item.Number) }

// worker returns what the run has on a worker. The lock is held.
func (r *jobRun) worker(id string) *jobWorker {
	w := r.workers[id]
	if w == nil {
		w = &jobWorker{tasks: make(map[uint64]context.CancelCauseFunc)}
		r.workers[id] = w
	}
	return w
}

// ownerPatience is how often an item is tried on its owner while that is live,
// before another worker is: reads look for the bytes at the owner.
const ownerPatience = 3

// owner returns the best live worker for an item, or when one that is avoided
// may be tried. The lock is held.
func (r *jobRun) owner(w *work, p block.Placement, live map[string]peer, now time.Time) (id string, until time.Time) {
	key := block.Key{File: w.item.Ticket.FileID, Index: w.item.FirstBlock}
	for _, owner := range p.Owners(key, w.item.Ticket.Length, len(p.Workers)) {
		if _, ok := live[string(owner)]; !ok {
			continue
		}
		if avoid := r.worker(string(owner)).avoid; avoid.After(now) {
			if until.IsZero() || avoid.Before(until) {
				until = avoid
			}
			if w.attempts < ownerPatience {
				return "", until
			}
			continue
		}
		return string(owner), time.Time{}
	}
	return "", until
}

// start takes a task off a worker's queue and runs it. The lock is held.
func (r *jobRun) start(ctx context.Context, to peer, w *jobWorker, epoch uint64) {
	var batch []*work
	var bytes int64
	for len(w.queue) > 0 && len(batch) < r.s.cfg.TaskItems && (len(batch) == 0 || bytes < int64(r.s.cfg.TaskBytes)) {
		batch = append(batch, w.queue[0])
		bytes += w.queue[0].item.Extent().Length
		w.queue[0] = nil
		w.queue = w.queue[1:]
	}
	r.task++
	number := r.task
	ctx, cancel := context.WithCancelCause(ctx)
	w.tasks[number] = cancel
	r.wg.Go(func() {
		defer cancel(nil)
		err := r.runTask(ctx, to, number, epoch, batch)
		r.mu.Lock()
		delete(w.tasks, number)
		if err != nil {
			w.avoid = r.s.m.now().Add(backoff(1))
		}
		r.mu.Unlock()
		poke(r.wake)
	})
}

// runTask sends a task to a worker and takes its results in. An error says
// that the worker broke off; its items were put back.
func (r *jobRun) runTask(ctx context.Context, to peer, number, epoch uint64, batch []*work) error {
	left := make(map[uint64]*work, len(batch))
	task := &api.LoadTask{JobId: r.job.ID, TaskId: number, PlacementEpoch: epoch}
	expiry := r.s.m.now().Add(r.s.cfg.TicketTTL.Std()).UTC().Truncate(time.Millisecond)
	for _, w := range batch {
		t := *w.item.Ticket
		t.Expiry = expiry // it may have waited for long
		b, err := t.AppendBinary(nil)
		if err != nil {
			r.done(w, loadjob.Result{Err: err})
			continue
		}
		left[w.item.Number] = w
		task.Items = append(task.Items, &api.LoadItem{
			Number: w.item.Number, Ticket: b, FirstBlock: w.item.FirstBlock, BlockCount: w.item.BlockCount,
		})
	}
	err := r.follow(ctx, to, task, left)
	if err == nil && len(left) > 0 {
		err = errs.E(errs.Unavailable, "", "", fmt.Errorf("the task ended with %d items open", len(left)))
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errLost) {
		return nil // the run ends; what was not done is planned again
	}
	for _, w := range left {
		r.failed(w, loadjob.Result{Err: errs.E(errs.Unavailable, "load on worker", to.id, err)})
	}
	if err != nil {
		r.s.m.log.Warn("a load task broke off", "job", r.job.ID, "worker", to.id, "items", len(left), "error", err)
	}
	return err
}

// follow runs a task to its end and takes off left what has its result.
func (r *jobRun) follow(ctx context.Context, to peer, task *api.LoadTask, left map[uint64]*work) error {
	if len(left) == 0 {
		return nil
	}
	client, err := r.s.m.peers.client(to)
	if err != nil {
		return err
	}
	stream, err := client.RunLoadTask(ctx, task)
	if err != nil {
		return err
	}
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w := left[res.GetNumber()]
		if w == nil {
			continue
		}
		delete(left, res.GetNumber())
		result := loadjob.Result{Loaded: res.GetLoadedBytes(), Cached: res.GetCachedBytes()}
		if res.GetErrorKind() != 0 || res.GetError() != "" {
			kind := errs.Kind(min(res.GetErrorKind(), 1<<16-1))
			result.Err = errs.E(kind, "", "", errors.New(res.GetError()))
		}
		if result.Err != nil && passing(result.Err) {
			r.failed(w, result)
		} else {
			r.done(w, result)
		}
	}
}

// failed puts an item back for another attempt, or gives up.
func (r *jobRun) failed(w *work, result loadjob.Result) {
	w.attempts++
	if w.attempts >= r.s.cfg.ItemAttempts {
		r.done(w, result)
		return
	}
	w.loaded = max(w.loaded, result.Loaded)
	w.notBefore = r.s.m.now().Add(backoff(w.attempts))
	r.mu.Lock()
	r.waiting = append(r.waiting, w)
	r.mu.Unlock()
}

// done ends an item. What an earlier attempt fetched is found in the cache by
// a later one, and was loaded by the job all the same.
func (r *jobRun) done(w *work, result loadjob.Result) {
	carried := min(w.loaded, result.Cached)
	result.Number = w.item.Number
	result.Loaded += carried
	result.Cached -= carried
	r.tracker.Done(result)
	r.s.change.notify()
	poke(r.wake)
}
