package rpcerr_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// fakeJobs answers with the error that a test gave it.
type fakeJobs struct {
	api.UnimplementedJobServiceServer
	err func(ctx context.Context) error
}

func (f *fakeJobs) GetJob(ctx context.Context, _ *api.GetJobRequest) (*api.Job, error) {
	if err := f.err(ctx); err != nil {
		return nil, err
	}
	return &api.Job{Id: "j"}, nil
}

func (f *fakeJobs) WatchJob(_ *api.WatchJobRequest, s api.JobService_WatchJobServer) error {
	if err := s.Send(&api.Job{Id: "j"}); err != nil {
		return err
	}
	return f.err(s.Context())
}

// serve runs a server with our interceptors and returns a client with ours.
func serve(t *testing.T, fail func(context.Context) error) (api.JobServiceClient, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(
		grpc.UnaryInterceptor(rpcerr.UnaryServerInterceptor),
		grpc.StreamInterceptor(rpcerr.StreamServerInterceptor))
	api.RegisterJobServiceServer(s, &fakeJobs{err: fail})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	cc, err := grpc.NewClient(l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(rpcerr.UnaryClientInterceptor),
		grpc.WithStreamInterceptor(rpcerr.StreamClientInterceptor))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return api.NewJobServiceClient(cc), s
}

func TestUnary(t *testing.T) {
	want := errs.E(errs.NotFound, "job", "j", nil).WithHint("see jobs ls")
	c, _ := serve(t, func(context.Context) error { return want })
	_, err := c.GetJob(t.Context(), &api.GetJobRequest{})
	if !errors.Is(err, errs.NotFound) || err.Error() != want.Error() {
		t.Errorf("got %v, want %v", err, want)
	}
	_, err = c.ListJobs(t.Context(), &api.ListJobsRequest{})
	if !errors.Is(err, errs.Unsupported) {
		t.Errorf("a call that the server lacks: %v", err)
	}
}

func TestUnarySuccess(t *testing.T) {
	c, _ := serve(t, func(context.Context) error { return nil })
	if job, err := c.GetJob(t.Context(), &api.GetJobRequest{}); err != nil || job.GetId() != "j" {
		t.Errorf("got %v, %v", job, err)
	}
}

func TestStream(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want error
	}{
		{"ends well", nil, io.EOF},
		{"fails", errs.E(errs.Busy, "watch", "j", nil), errs.Busy},
		{"no leader", &rpcerr.NotLeader{Leader: "x:1"}, errs.NotLeader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := serve(t, func(context.Context) error { return tc.err })
			s, err := c.WatchJob(t.Context(), &api.WatchJobRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if job, err := s.Recv(); err != nil || job.GetId() != "j" {
				t.Fatalf("first message: %v, %v", job, err)
			}
			if _, err := s.Recv(); !errors.Is(err, tc.want) {
				t.Errorf("end of the stream: %v, want %v", err, tc.want)
			}
			if tc.want == io.EOF { //nolint:errorlint // a literal of the table
				return
			}
			if _, err := s.Recv(); !errors.Is(err, tc.want) {
				t.Errorf("again: %v, want %v", err, tc.want)
			}
		})
	}
}

func TestDeadlineAndCancel(t *testing.T) {
	c, _ := serve(t, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.GetJob(ctx, &api.GetJobRequest{}); !errors.Is(err, errs.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after a deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	s, err := c.WatchJob(ctx, &api.WatchJobRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Recv(); !errors.Is(err, errs.Canceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
}

func TestServerGone(t *testing.T) {
	entered := make(chan struct{})
	c, server := serve(t, func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})
	go func() {
		<-entered
		server.Stop()
	}()
	if _, err := c.GetJob(t.Context(), &api.GetJobRequest{}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a server that went away: %v", err)
	}
	if _, err := c.GetJob(t.Context(), &api.GetJobRequest{}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a server that is not there: %v", err)
	}
}
