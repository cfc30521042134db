package cachemaster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
)

// fakeWorker answers for a worker and remembers what it was asked to load.
type fakeWorker struct {
	api.UnimplementedWorkerServiceServer

	id      string
	address string
	silent  bool // it beats once

	mu      sync.Mutex
	cached  map[string]int64 // path/first block -> bytes
	loads   map[string]int   // path/first block -> times
	breaks  int              // tasks that break off after their first result
	fail    map[string]errs.Kind
	once    bool          // fail each only once
	hold    chan struct{} // items wait for it, if set
	held    int           // items that wait
	dropped []string
	dropErr error
}

func newFakeWorker(t testing.TB, id string) *fakeWorker {
	t.Helper()
	w := &fakeWorker{id: id, cached: map[string]int64{}, loads: map[string]int{}, fail: map[string]errs.Kind{}}
	l := listen(t)
	w.address = l.Addr().String()
	s := grpc.NewServer(rpcconn.ServerOptions()...)
	api.RegisterWorkerServiceServer(s, w)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// join registers the worker and lets it be heard, from then on.
func (c *cluster) join(t testing.TB, w *fakeWorker) {
	t.Helper()
	r := registration(w.id, 1000, 8*1024)
	r.Addresses.Grpc = w.address
	if _, err := c.registry.Register(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.beat(t, w)
	if w.silent {
		return
	}
	c.beating.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.beat(t, w)
			case <-c.quiet:
				return
			}
		}
	})
}

func (c *cluster) beat(t testing.TB, w *fakeWorker) {
	t.Helper()
	_, err := c.registry.Heartbeat(context.WithoutCancel(t.Context()), &api.HeartbeatRequest{
		WorkerId: w.id, StartEpoch: 1, Addresses: &api.WorkerAddresses{Grpc: w.address, Data: "127.0.0.1:2"},
	})
	if err != nil {
		t.Error(err)
	}
}

func (w *fakeWorker) RunLoadTask(task *api.LoadTask, stream grpc.ServerStreamingServer[api.LoadResult]) error {
	for i, item := range task.GetItems() {
		ticket, err := block.ParseTicket(item.GetTicket())
		if err != nil {
			return errs.E(errs.Invalid, "parse ticket", "", err)
		}
		g := ticket.Geometry()
		e := block.Extent{Offset: int64(item.GetFirstBlock()) * g.BlockSize, Length: int64(item.GetBlockCount()) * g.BlockSize}.Intersect(g.Whole())
		if err := w.waitHold(stream.Context()); err != nil {
			return err
		}
		if err := stream.Send(w.load(item, ticket, e)); err != nil {
			return err
		}
		w.mu.Lock()
		broke := i == 0 && w.breaks > 0
		if broke {
			w.breaks--
		}
		w.mu.Unlock()
		if broke {
			return errs.E(errs.Unavailable, "", "", errors.New("the worker goes away"))
		}
	}
	return nil
}

func (w *fakeWorker) waitHold(ctx context.Context) error {
	w.mu.Lock()
	hold := w.hold
	w.held++
	w.mu.Unlock()
	if hold == nil {
		return nil
	}
	select {
	case <-hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *fakeWorker) load(item *api.LoadItem, t *block.Ticket, e block.Extent) *api.LoadResult {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := fmt.Sprintf("%s/%d", t.Path, item.GetFirstBlock())
	r := &api.LoadResult{Number: item.GetNumber()}
	w.loads[key]++
	switch kind, ok := w.fail[t.Path]; {
	case ok:
		if w.once {
			delete(w.fail, t.Path)
		}
		r.ErrorKind, r.Error = uint32(kind), "it was told to fail"
	case w.cached[key] == e.Length && e.Length > 0:
		r.CachedBytes = e.Length
	default:
		r.LoadedBytes = e.Length
		w.cached[key] = e.Length
	}
	return r
}

func (w *fakeWorker) Drop(_ context.Context, r *api.DropRequest) (*api.DropReply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropped = append(w.dropped, fmt.Sprintf("%d:%s", r.GetMountId(), r.GetPath()))
	return &api.DropReply{Files: 1, Bytes: 10}, w.dropErr
}

func (w *fakeWorker) CachedUsage(context.Context, *api.CachedUsageRequest) (*api.CachedUsageReply, error) {
	return &api.CachedUsageReply{Files: 1, Bytes: 7}, nil
}

func (w *fakeWorker) Cached(_ context.Context, r *api.CachedRequest) (*api.CachedReply, error) {
	reply := &api.CachedReply{}
	for range r.GetFileIds() {
		reply.Files = append(reply.Files, &api.CachedFile{Bytes: 1, Blocks: []*api.CachedBlock{{Index: 0, Bytes: 1}}})
	}
	return reply, nil
}

// submit submits a job and follows it to its end.
func (c *cluster) submit(t testing.TB, paths ...string) string {
	t.Helper()
	r := &api.SubmitLoadRequest{IdempotencyKey: t.Name() + strings.Join(paths, ",")}
	for _, p := range paths {
		r.Paths = append(r.Paths, []byte(p))
	}
	reply, err := c.jobs.SubmitLoad(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.jobs.SubmitLoad(t.Context(), r)
	if err != nil || again.GetId() != reply.GetId() {
		t.Errorf("submitted again: %v, %v, want %s", again, err, reply.GetId())
	}
	return reply.GetId()
}

func (c *cluster) await(t testing.TB, id string) *api.Job {
	t.Helper()
	stream, err := c.jobs.WatchJob(t.Context(), &api.WatchJobRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	var last *api.Job
	for {
		j, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = j
	}
}

// tree makes files of the given sizes named f000, f001, ...
func tree(sizes ...int) map[string]string {
	files := map[string]string{}
	for i, n := range sizes {
		files[fmt.Sprintf("d/f%03d", i)] = strings.Repeat("x", n)
	}
	return files
}

func wantJob(t *testing.T, j *api.Job, state api.JobState, files, bytes *api.JobSums) {
	t.Helper()
	if j.GetState() != state {
		t.Errorf("job is %v: %s", j.GetState(), j.GetError())
	}
	if d := cmp.Diff(files, j.GetFiles(), protocmp.Transform()); d != "" {
		t.Errorf("files: (-want +got)\n%s", d)
	}
	if d := cmp.Diff(bytes, j.GetBytes(), protocmp.Transform()); d != "" {
		t.Errorf("bytes: (-want +got)\n%s", d)
	}
}

// big is a length of several blocks, in the tests' block size, whose tag
// stays within its bound: the content is the tag.
const many = 40

func TestJob(t *testing.T) {
	t.Parallel()
	sizes := make([]int, many)
	total := int64(0)
	for i := range sizes {
		sizes[i] = i * 7
		total += int64(sizes[i])
	}
	s := newMemStore(tree(sizes...))
	c := start(t, t.TempDir(), map[string]*memStore{"s": s}, testConfig())
	c.mount(t, "/", "mem://s", nil)
	id := c.submit(t, "/d")
	// No worker: the job waits.
	eventually(t, "the job waits", func() bool {
		j, err := c.jobs.GetJob(t.Context(), &api.GetJobRequest{Id: id})
		return err == nil && j.GetState() == api.JobState_JOB_STATE_RUNNING && j.GetFiles().GetListed() == many
	})
	w1, w2 := newFakeWorker(t, "w1"), newFakeWorker(t, "w2")
	w1.breaks, w2.breaks = 1, 1
	w1.fail["d/f003"], w2.fail["d/f003"] = errs.Unavailable, errs.Unavailable
	w1.once, w2.once = true, true
	c.join(t, w1)
	c.join(t, w2)
	wantJob(t, c.await(t, id), api.JobState_JOB_STATE_SUCCEEDED,
		&api.JobSums{Listed: many, Loaded: many - 1, AlreadyCached: 1}, &api.JobSums{Listed: total, Loaded: total})

	second := c.submit(t, "/d/f001", "/d")
	if second <= id {
		t.Errorf("job %s after %s", second, id)
	}
	wantJob(t, c.await(t, second), api.JobState_JOB_STATE_SUCCEEDED,
		&api.JobSums{Listed: many, AlreadyCached: many}, &api.JobSums{Listed: total, AlreadyCached: total})
	list, err := c.jobs.ListJobs(t.Context(), &api.ListJobsRequest{})
	if err != nil || len(list.GetJobs()) != 2 || list.GetJobs()[0].GetId() != second {
		t.Errorf("jobs = %v, %v", list, err)
	}
}

func TestJobFailures(t *testing.T) {
	t.Parallel()
	s := newMemStore(tree(10, 20, 30, 40))
	c := start(t, t.TempDir(), map[string]*memStore{"s": s}, testConfig())
	c.mount(t, "/", "mem://s", nil)
	w := newFakeWorker(t, "w1")
	w.fail["d/f001"], w.fail["d/f002"] = errs.NoSpace, errs.NotFound
	c.join(t, w)
	j := c.await(t, c.submit(t, "/d"))
	wantJob(t, j, api.JobState_JOB_STATE_FAILED,
		&api.JobSums{Listed: 4, Loaded: 2, Failed: 1, Gone: 1}, &api.JobSums{Listed: 100, Loaded: 50, Failed: 20, Gone: 30})
	for _, want := range []string{"1 of 4 files failed", "/d/f001", "told to fail"} {
		if !strings.Contains(j.GetError(), want) {
			t.Errorf("error %q does not say %q", j.GetError(), want)
		}
	}

	j = c.await(t, c.submit(t, "/nope"))
	if j.GetState() != api.JobState_JOB_STATE_FAILED || !strings.Contains(j.GetError(), "/nope: not found") {
		t.Errorf("job over nothing: %v: %q", j.GetState(), j.GetError())
	}

	// A listing that breaks off goes on behind its last file.
	s.listFail[2] = errs.E(errs.Unavailable, "list", "d", errors.New("slow down"))
	delete(w.fail, "d/f001")
	delete(w.fail, "d/f002")
	wantJob(t, c.await(t, c.submit(t, "/d", "/d/f000")), api.JobState_JOB_STATE_SUCCEEDED,
		&api.JobSums{Listed: 4, Loaded: 2, AlreadyCached: 2}, &api.JobSums{Listed: 100, Loaded: 50, AlreadyCached: 50})

	_, err := c.jobs.SubmitLoad(t.Context(), &api.SubmitLoadRequest{})
	wantKind(t, "no paths", err, errs.Invalid)
	_, err = c.jobs.SubmitLoad(t.Context(), &api.SubmitLoadRequest{Paths: [][]byte{[]byte("d")}})
	wantKind(t, "relative path", err, errs.Invalid)
	_, err = c.jobs.GetJob(t.Context(), &api.GetJobRequest{Id: "none"})
	wantKind(t, "unknown job", err, errs.NotFound)
	_, err = c.jobs.CancelJob(t.Context(), &api.CancelJobRequest{Id: j.GetId()})
	wantKind(t, "cancel what has ended", err, errs.Invalid)
}

// TestJobRetries has a worker fail in passing until the job gives up, which
// takes half a minute of the job's time.
func TestJobRetries(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	c := start(t, t.TempDir(), map[string]*memStore{"s": newMemStore(tree(10, 20))}, cfg)
	c.mount(t, "/", "mem://s", nil)
	w := newFakeWorker(t, "w1")
	w.fail["d/f001"] = errs.Throttled
	c.join(t, w)
	began := c.clock.Now()
	id := c.submit(t, "/d")
	eventually(t, "the job has ended", func() bool {
		c.clock.skip()
		j, err := c.jobs.GetJob(t.Context(), &api.GetJobRequest{Id: id})
		return err == nil && j.GetFinishedMs() != 0
	})
	wantJob(t, c.await(t, id), api.JobState_JOB_STATE_FAILED,
		&api.JobSums{Listed: 2, Loaded: 1, Failed: 1}, &api.JobSums{Listed: 30, Loaded: 10, Failed: 20})
	if n := w.loads["d/f001/0"]; n != cfg.ItemAttempts {
		t.Errorf("%d attempts, want %d", n, cfg.ItemAttempts)
	}
	if took := c.clock.Now().Sub(began); took < 20*time.Second {
		t.Errorf("the waits between attempts took %v", took)
	}
}

func TestJobCancel(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"s": newMemStore(tree(10, 20, 30, 40))}, testConfig())
	c.mount(t, "/", "mem://s", nil)
	w := newFakeWorker(t, "w1")
	w.hold = make(chan struct{})
	c.join(t, w)
	id := c.submit(t, "/d")
	eventually(t, "the worker has a task", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.held > 0 })
	j, err := c.jobs.CancelJob(t.Context(), &api.CancelJobRequest{Id: id})
	if err != nil || j.GetState() != api.JobState_JOB_STATE_CANCELED || j.GetFinishedMs() == 0 {
		t.Errorf("canceled: %v, %v", j, err)
	}
	if j := c.await(t, id); j.GetState() != api.JobState_JOB_STATE_CANCELED {
		t.Errorf("watched: %v", j)
	}
	eventually(t, "the run has ended", func() bool { return c.m.jobs.live(id) == nil })
	if _, err := c.jobs.CancelJob(t.Context(), &api.CancelJobRequest{Id: id}); err != nil {
		t.Errorf("cancel again: %v", err)
	}
	close(w.hold)
}

// TestJobEndIsTold: a job's end is told at once, however long there is to be
// between messages.
func TestJobEndIsTold(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"s": newMemStore(tree(10, 20, 30, 40))}, testConfig())
	c.m.jobs.watchEvery = time.Hour
	c.mount(t, "/", "mem://s", nil)
	w := newFakeWorker(t, "w1")
	w.hold = make(chan struct{})
	c.join(t, w)
	other, id := c.submit(t, "/d/f000"), c.submit(t, "/d")
	stream, err := c.jobs.WatchJob(t.Context(), &api.WatchJobRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	if j, err := stream.Recv(); err != nil || j.GetFinishedMs() != 0 {
		t.Fatal(j, err)
	}
	close(w.hold)
	if j, err := stream.Recv(); err != nil || j.GetState() != api.JobState_JOB_STATE_SUCCEEDED {
		t.Errorf("%v, %v", j, err)
	}
	c.await(t, other)
}

// TestJobResume kills the master in the middle of a job and goes on with
// another one on a copy of its disk: the sums are exact, and what the cursor
// had passed is not sent again.
func TestJobResume(t *testing.T) {
	t.Parallel()
	sizes := make([]int, many)
	total := int64(0)
	for i := range sizes {
		sizes[i] = i + 1
		total += int64(sizes[i])
	}
	dir := t.TempDir()
	stores := map[string]*memStore{"s": newMemStore(tree(sizes...))}
	cfg := testConfig()
	cfg.TaskItems, cfg.TasksPerWorker = 1, 1 // in order, so that the cursor follows
	c := start(t, dir, stores, cfg)
	c.mount(t, "/", "mem://s", nil)
	w := newFakeWorker(t, "w1")
	hold := make(chan struct{}, many)
	w.hold = hold
	for range many / 2 {
		hold <- struct{}{}
	}
	c.join(t, w)
	id := c.submit(t, "/d")
	committed := func(m *Master) int64 { return m.store.State().Jobs[id].Files.Listed }
	eventually(t, "half of the job is committed", func() bool { return committed(c.m) == many/2 })
	killed := copyDir(t, dir)
	c.stop()
	close(hold)

	c = start(t, killed, stores, cfg)
	passed := committed(c.m)
	c.join(t, w)
	j := c.await(t, id)
	if j.GetState() != api.JobState_JOB_STATE_SUCCEEDED {
		t.Fatalf("job is %v: %s", j.GetState(), j.GetError())
	}
	f, b := j.GetFiles(), j.GetBytes()
	if f.GetListed() != many || f.GetLoaded()+f.GetAlreadyCached() != many {
		t.Errorf("files = %v", f)
	}
	if b.GetListed() != total || b.GetLoaded()+b.GetAlreadyCached() != total {
		t.Errorf("bytes = %v", b)
	}
	twice := 0
	for _, n := range w.loads {
		if n > 1 {
			twice++
		}
	}
	if twice > many-int(passed) {
		t.Errorf("%d files were sent twice, though the cursor had passed %d", twice, passed)
	}
}

// TestLostWorker takes a job's items from a worker that hangs.
func TestLostWorker(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), map[string]*memStore{"s": newMemStore(tree(10, 20, 30, 40))}, testConfig())
	c.mount(t, "/", "mem://s", nil)
	hung, well := newFakeWorker(t, "w1"), newFakeWorker(t, "w2")
	hung.hold, hung.silent = make(chan struct{}), true
	defer close(hung.hold)
	c.join(t, hung)
	id := c.submit(t, "/d")
	eventually(t, "the worker has a task", func() bool { hung.mu.Lock(); defer hung.mu.Unlock(); return hung.held > 0 })
	c.clock.advance(31 * time.Second)
	c.join(t, well)
	wantJob(t, c.await(t, id), api.JobState_JOB_STATE_SUCCEEDED,
		&api.JobSums{Listed: 4, Loaded: 4}, &api.JobSums{Listed: 100, Loaded: 100})
}

func TestWorkersAreAsked(t *testing.T) {
	t.Parallel()
	stores := map[string]*memStore{"s": newMemStore(tree(10, 20, 30)), "n": newMemStore(map[string]string{"x": "12345"})}
	c := start(t, t.TempDir(), stores, testConfig())
	c.mount(t, "/", "mem://s", nil)
	c.mount(t, "/n", "mem://n", nil)
	w1, w2 := newFakeWorker(t, "w1"), newFakeWorker(t, "w2")
	c.join(t, w1)
	c.join(t, w2)

	l, err := c.ns.Locate(t.Context(), &api.LocateRequest{Path: []byte("/d/f001")})
	if err != nil || len(l.GetBlocks()) != 1 || len(l.GetBlocks()[0].GetWorkers()) != 2 || l.GetEntry().GetCachedBytes() != 1 {
		t.Errorf("locate = %v, %v", l, err)
	}
	u, err := c.ns.Usage(t.Context(), &api.UsageRequest{Path: []byte("/")})
	if err != nil || u.GetFiles() != 4 || u.GetBytes() != 65 || u.GetCachedBytes() != 2*2*7 {
		t.Errorf("usage = %v, %v", u, err)
	}
	u, err = c.ns.Usage(t.Context(), &api.UsageRequest{Path: []byte("/d/f002")})
	if err != nil || u.GetFiles() != 1 || u.GetBytes() != 30 {
		t.Errorf("usage of a file = %v, %v", u, err)
	}
	f, err := c.ns.Free(t.Context(), &api.FreeRequest{Path: []byte("/d")})
	if err != nil || f.GetFiles() != 2 || f.GetFreedBytes() != 20 {
		t.Errorf("free = %v, %v", f, err)
	}
	if d := cmp.Diff([]string{"1:d"}, w1.dropped); d != "" {
		t.Errorf("dropped: %s", d)
	}
	w2.dropErr = errs.E(errs.Corrupt, "drop", "", errors.New("disk is gone"))
	_, err = c.ns.Free(t.Context(), &api.FreeRequest{Path: []byte("/")})
	wantKind(t, "free with a broken worker", err, errs.Corrupt)
	if err != nil && (!strings.Contains(err.Error(), "w2") || strings.Contains(err.Error(), "w1")) {
		t.Errorf("%q does not name the broken worker alone", err)
	}
}
