package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/loadjob"
)

const (
	maxJobPaths      = 1000                   // of one job
	maxJobPathsBytes = 1 << 20                // of their text
	watchInterval    = 500 * time.Millisecond // between two messages of WatchJob
)

// jobService runs load jobs.
type jobService struct {
	api.UnimplementedJobServiceServer

	m *Master
}

// SubmitLoad implements api.JobServiceServer. Whether the paths exist is
// found by the planner.
func (s *jobService) SubmitLoad(ctx context.Context, r *api.SubmitLoadRequest) (*api.SubmitLoadReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	if n := len(r.GetPaths()); n == 0 || n > maxJobPaths {
		return nil, errs.E(errs.Invalid, "submit load job", "", fmt.Errorf("%d paths, want 1 to %d", n, maxJobPaths))
	}
	c := &fsm.SubmitJob{StartedMillis: s.m.now().UnixMilli()}
	size := 0
	for _, p := range r.GetPaths() {
		if err := checkPath(string(p)); err != nil {
			return nil, errs.Wrap(err, "submit load job", "")
		}
		c.Paths = append(c.Paths, fsm.Path(p))
		size += len(p)
	}
	if size > maxJobPathsBytes {
		return nil, errs.E(errs.Invalid, "submit load job", "", fmt.Errorf("%d bytes of paths, at most %d are allowed", size, maxJobPathsBytes))
	}
	var err error
	if c.ID, err = s.m.newID(); err != nil {
		return nil, err
	}
	result, err := s.m.raft.apply(ctx, fsm.Command{Key: r.GetIdempotencyKey(), SubmitJob: c})
	if err != nil {
		return nil, err
	}
	return &api.SubmitLoadReply{Id: result.JobID}, nil
}

// job describes a job: what is committed of it and, while it runs here, what
// was done since.
func (s *jobService) job(id string) (*api.Job, error) {
	r := s.m.jobs.live(id) // before the record: one that ends then is final there
	j, ok := s.m.store.State().Jobs[id]
	if !ok {
		return nil, errs.E(errs.NotFound, "look up load job", id, nil)
	}
	return jobProto(j, r), nil
}

func jobProto(j fsm.Job, r *jobRun) *api.Job {
	out := &api.Job{Id: j.ID, StartedMs: j.StartedMillis, FinishedMs: j.FinishedMillis}
	for _, p := range j.Paths {
		out.Paths = append(out.Paths, []byte(p))
	}
	files, bytes := j.Files, j.Bytes
	var state loadjob.State
	if state.UnmarshalText([]byte(j.State)) == nil {
		out.State = stateProto(state)
	}
	switch {
	case j.Final():
		out.Error = j.Error
	case r != nil:
		p := r.tracker.Live()
		files, bytes, out.State = fsm.Sums(p.Files), fsm.Sums(p.Bytes), stateProto(p.State)
	}
	out.Files, out.Bytes = sumsProto(files), sumsProto(bytes)
	return out
}

func sumsProto(s fsm.Sums) *api.JobSums {
	return &api.JobSums{Listed: s.Listed, Loaded: s.Loaded, AlreadyCached: s.AlreadyCached, Failed: s.Failed, Gone: s.Gone}
}

func stateProto(s loadjob.State) api.JobState {
	switch s {
	case loadjob.Planning:
		return api.JobState_JOB_STATE_PLANNING
	case loadjob.Running:
		return api.JobState_JOB_STATE_RUNNING
	case loadjob.Succeeded:
		return api.JobState_JOB_STATE_SUCCEEDED
	case loadjob.Failed:
		return api.JobState_JOB_STATE_FAILED
	case loadjob.Canceled:
		return api.JobState_JOB_STATE_CANCELED
	}
	return api.JobState_JOB_STATE_UNSPECIFIED
}

// newestFirst orders jobs. IDs sort by time.
func newestFirst(a, b fsm.Job) int { return cmp.Compare(b.ID, a.ID) }

// GetJob implements api.JobServiceServer.
func (s *jobService) GetJob(ctx context.Context, r *api.GetJobRequest) (*api.Job, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	return s.job(r.GetId())
}

// ListJobs implements api.JobServiceServer.
func (s *jobService) ListJobs(ctx context.Context, _ *api.ListJobsRequest) (*api.ListJobsReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	var jobs []fsm.Job
	for _, j := range s.m.store.State().Jobs {
		jobs = append(jobs, j)
	}
	slices.SortFunc(jobs, newestFirst)
	reply := &api.ListJobsReply{}
	size := 0
	for _, j := range jobs {
		r := s.m.jobs.live(j.ID)
		p := jobProto(j, r)
		for _, path := range p.GetPaths() {
			size += len(path)
		}
		if size > rpcconn.MaxMessage/2 {
			break // jobs of megabytes of paths: the newest must do
		}
		reply.Jobs = append(reply.Jobs, p)
	}
	return reply, nil
}

// WatchJob implements api.JobServiceServer.
func (s *jobService) WatchJob(r *api.WatchJobRequest, stream grpc.ServerStreamingServer[api.Job]) error {
	ctx := stream.Context()
	if _, err := s.m.begin(ctx, 0); err != nil {
		return err
	}
	for {
		changed, ended := s.m.jobs.change.next(), s.m.jobs.ended.next()
		if !s.m.leading.Load() {
			return s.m.raft.notLeader()
		}
		j, err := s.job(r.GetId())
		if err != nil {
			return err
		}
		if err := stream.Send(j); err != nil {
			return err
		}
		if j.GetFinishedMs() != 0 {
			return nil
		}
		if err := s.pause(ctx, r.GetId(), ended); err != nil {
			return err
		}
		if err := wait(ctx, s.m.stopping, changed); err != nil {
			return err
		}
	}
}

// pause waits between two messages about a job, until it has come to its end,
// which is worth a message at once. ended is of before the last look at it.
func (s *jobService) pause(ctx context.Context, id string, ended <-chan struct{}) error {
	pause := time.NewTimer(s.m.jobs.watchEvery)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
			return nil
		case <-ended:
		case <-s.m.stopping:
			return errs.E(errs.Unavailable, "watch", "", errStopping)
		case <-ctx.Done():
			return ctx.Err()
		}
		ended = s.m.jobs.ended.next()
		if j, ok := s.m.store.State().Jobs[id]; !ok || j.Final() {
			return nil
		}
	}
}

// wait waits for ch, the end of ctx, or that of the master.
func wait[T any](ctx context.Context, stopping <-chan struct{}, ch <-chan T) error {
	select {
	case <-ch:
		return nil
	case <-stopping:
		return errs.E(errs.Unavailable, "watch", "", errStopping)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CancelJob implements api.JobServiceServer.
func (s *jobService) CancelJob(ctx context.Context, r *api.CancelJobRequest) (*api.Job, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	run := s.m.jobs.live(r.GetId())
	rec, ok := s.m.store.State().Jobs[r.GetId()]
	if !ok {
		return nil, errs.E(errs.NotFound, "cancel load job", r.GetId(), nil)
	}
	job, err := jobOf(rec)
	if err != nil {
		return nil, err
	}
	p := loadjob.Progress{Cursor: job.Cursor, Files: job.Files, Bytes: job.Bytes}
	if run != nil {
		p = run.tracker.Canceled()
	}
	p.State, p.Finished, p.Error = loadjob.Canceled, s.m.now(), ""
	_, err = s.m.raft.apply(ctx, progressCommand(job.ID, p))
	if err != nil && !final(err) {
		return nil, err
	}
	out, lookErr := s.job(r.GetId())
	if lookErr != nil {
		return nil, lookErr
	}
	if out.GetState() != api.JobState_JOB_STATE_CANCELED {
		return nil, errs.E(errs.Invalid, "cancel load job", job.ID, errors.New("it has ended already"))
	}
	return out, nil
}
