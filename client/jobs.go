package client

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
)

// SubmitLoad starts a load job and returns its ID.
func (c *Client) SubmitLoad(ctx context.Context, paths []string) (string, error) {
	req := &api.SubmitLoadRequest{IdempotencyKey: rand.Text()}
	for _, p := range paths {
		p, err := clean("load", p)
		if err != nil {
			return "", err
		}
		req.Paths = append(req.Paths, []byte(p))
	}
	var id string
	err := c.masters.call(ctx, "submit load job", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewJobServiceClient(cc).SubmitLoad(ctx, req)
		id = reply.GetId()
		return err
	})
	return id, err
}

// Job returns the state of a load job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	var out Job
	err := c.masters.call(ctx, "look up load job", id, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewJobServiceClient(cc).GetJob(ctx, &api.GetJobRequest{Id: id})
		if err == nil {
			out = jobOf(reply)
		}
		return err
	})
	return out, err
}

// Jobs returns the load jobs that the masters remember, newest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	out := []Job{}
	err := c.masters.call(ctx, "list jobs", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewJobServiceClient(cc).ListJobs(ctx, &api.ListJobsRequest{})
		if err != nil {
			return err
		}
		out = make([]Job, 0, len(reply.GetJobs()))
		for _, j := range reply.GetJobs() {
			out = append(out, jobOf(j))
		}
		return nil
	})
	return out, err
}

// CancelJob ends a load job that is under way and returns its state.
func (c *Client) CancelJob(ctx context.Context, id string) (Job, error) {
	var out Job
	// Canceling twice is canceling once.
	err := c.masters.call(ctx, "cancel load job", id, func(ctx context.Context, cc *grpc.ClientConn) error {
		reply, err := api.NewJobServiceClient(cc).CancelJob(ctx, &api.CancelJobRequest{Id: id})
		if err == nil {
			out = jobOf(reply)
		}
		return err
	})
	return out, err
}

// WatchJob yields the state of a load job at once and when it changes, and
// ends after a final state or an error. A change of the leader goes unseen.
func (c *Client) WatchJob(ctx context.Context, id string) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		for {
			job, more, err := c.watchOnce(ctx, id, yield)
			switch {
			case !more || err == nil && job.Final():
				return
			case ctx.Err() != nil:
				yield(job, errs.Wrap(ctx.Err(), "watch load job", id))
				return
			case err != nil:
				yield(job, errs.WrapOnce(err, "watch load job", id))
				return
			}
		}
	}
}

// watchOnce follows one stream until it is cut, which is no error. more is
// false when the reader stopped.
func (c *Client) watchOnce(ctx context.Context, id string, yield func(Job, error) bool) (last Job, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stream grpc.ServerStreamingClient[api.Job]
	err = c.masters.retry(ctx, always, func(attempt context.Context, cc *grpc.ClientConn) error {
		ctx, cancel := context.WithCancel(ctx) // of the stream, which goes on behind the attempt
		defer context.AfterFunc(attempt, cancel)()
		s, err := api.NewJobServiceClient(cc).WatchJob(ctx, &api.WatchJobRequest{Id: id})
		if err != nil {
			return err
		}
		first, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return errs.E(errs.Unavailable, "", "", err)
		}
		last, stream = jobOf(first), s
		return err
	})
	if err != nil {
		return last, true, err
	}
	for {
		if !yield(last, nil) {
			return last, false, nil
		}
		if last.Final() {
			return last, true, nil
		}
		msg, err := stream.Recv()
		switch kind := errs.KindOf(err); {
		case err == nil:
			last = jobOf(msg)
		case errors.Is(err, io.EOF), kind == errs.Unavailable, kind == errs.NotLeader, kind == errs.Timeout:
			return last, true, nil
		default:
			return last, true, err
		}
	}
}
