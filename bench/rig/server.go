package rig

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"millrace/internal/testenv"
)

// Server is a real S3 server of our own on loopback, keeping objects as plain
// files and a log of the requests it answered.
type Server struct {
	Endpoint
	proc *testenv.S3Process
	dir  string
}

// StartServer runs versitygw over dir and returns when it answers. testenv
// says where its binary is looked for.
func StartServer(ctx context.Context, dir string) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The server outlives ctx: an interrupted run still stops its cluster
	// first, and that may ask the server for something.
	proc, err := testenv.LaunchS3(context.WithoutCancel(ctx), dir, "--access-log", accessLog(dir))
	if err != nil {
		return nil, err
	}
	return &Server{
		Endpoint: Endpoint{URL: proc.Endpoint, Region: proc.Region, AccessKey: proc.AccessKey, SecretKey: proc.SecretKey},
		proc:     proc, dir: dir,
	}, nil
}

func accessLog(dir string) string { return filepath.Join(dir, "access.log") }

// Env returns the environment for a child process that uses the server.
func (s *Server) Env() []string { return s.proc.Env() }

// BucketDir returns the directory that holds a bucket's objects as files.
func (s *Server) BucketDir(bucket string) string { return s.proc.BucketDir(bucket) }

// CPU returns the CPU time that the server has used.
func (s *Server) CPU() (time.Duration, error) { return CPU(s.proc.PID()) }

// PID returns the server's process ID.
func (s *Server) PID() int { return s.proc.PID() }

// Requests returns how many requests the server has answered.
func (s *Server) Requests() (Requests, error) { return CountRequests(accessLog(s.dir)) }

// Stop ends the server.
func (s *Server) Stop() error { return s.proc.Stop() }

// Measure runs work and returns what it cost: wall time, the CPU of the
// daemon and of this process, and the requests that reached the server.
func Measure(s *Server, daemon int, work func() error) (Cost, error) {
	requests, err := CountRequests(accessLog(s.dir))
	if err != nil {
		return Cost{}, err
	}
	cpu, err := CPU(daemon)
	if err != nil {
		return Cost{}, err
	}
	self, start := SelfCPU(), time.Now()
	if err := work(); err != nil {
		return Cost{}, err
	}
	c := Cost{Wall: time.Since(start), Client: SelfCPU() - self}
	after, err := CPU(daemon)
	if err != nil {
		return Cost{}, err
	}
	c.Daemon = after - cpu
	now, err := CountRequests(accessLog(s.dir))
	if err != nil {
		return Cost{}, err
	}
	diff := now.Sub(requests)
	c.Gets, c.Others = diff.Gets, diff.Heads+diff.Others
	return c, nil
}
