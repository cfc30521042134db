package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"
)

// startLimit bounds the start of the server on a busy machine.
const startLimit = 60 * time.Second

// S3 is a running S3 server. It is safe for concurrent use.
type S3 struct {
	Endpoint  string // http://127.0.0.1:PORT
	AccessKey string
	SecretKey string
	Region    string

	once      sync.Once
	client    *s3.Client
	transport *http.Transport
}

// S3Process is an S3 server that this process started.
type S3Process struct {
	*S3
	process *process
	data    string // directory of the buckets
}

// StartS3 starts an S3 server of the test's own, with its data in a temporary
// directory. It is stopped when the test ends. The test is skipped, or fails,
// when there is no server to start; see Require.
func StartS3(tb testing.TB) *S3 {
	tb.Helper()
	Require(tb, S3Server)
	// The context of the test ends before its cleanups run, and a server that
	// is gone by then would disturb theirs.
	p, err := LaunchS3(context.WithoutCancel(tb.Context()), tb.TempDir())
	if err != nil {
		tb.Fatalf("start the S3 server: %v", err)
	}
	tb.Cleanup(func() {
		if err := p.Stop(); err != nil {
			tb.Errorf("stop the S3 server: %v", err)
		}
	})
	return p.S3
}

// LaunchS3 starts an S3 server that keeps its data in dir, on a free loopback
// port, and returns when it serves. It runs until Stop is called, ctx ends, or
// this process does. Its keys are made up at each start. options are further
// options of versitygw's own, such as --access-log.
func LaunchS3(ctx context.Context, dir string, options ...string) (*S3Process, error) {
	binary, err := serverBinary()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	srv := &S3{AccessKey: "MR" + rand.Text(), SecretKey: rand.Text() + rand.Text(), Region: "us-east-1"}
	args := []string{"--port", loopback(0), "--region", srv.Region, "--keep-alive", "--quiet"}
	args = append(append(args, options...), "posix")
	if !hasXattrs(data) {
		meta := filepath.Join(dir, "meta")
		if err := os.MkdirAll(meta, 0o700); err != nil {
			return nil, err
		}
		args = append(args, "--sidecar", meta)
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"ROOT_ACCESS_KEY=" + srv.AccessKey, "ROOT_SECRET_KEY=" + srv.SecretKey,
	}
	p, err := startProcess(ctx, binary, append(args, data), env)
	if err != nil {
		return nil, err
	}
	out := &S3Process{S3: srv, process: p, data: data}
	if err := out.awaitReady(ctx); err != nil {
		_ = out.Stop() // the first error says more
		return nil, err
	}
	return out, nil
}

// Stop ends the server and waits for it. Only the first call does something.
func (p *S3Process) Stop() error {
	if p.transport != nil {
		p.transport.CloseIdleConnections()
	}
	return p.process.end()
}

// BucketDir returns the directory that holds a bucket's objects as files.
func (p *S3Process) BucketDir(bucket string) string { return filepath.Join(p.data, bucket) }

// PID returns the server's process ID.
func (p *S3Process) PID() int { return p.process.PID() }

func (p *S3Process) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	err := p.process.until(ctx, "listening", func(context.Context) (bool, error) {
		port, err := listenPort(p.PID())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		p.Endpoint = "http://" + loopback(port)
		return port != 0, nil
	})
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	return p.process.until(ctx, "answering", func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Endpoint, http.NoBody)
		if err != nil {
			return false, err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return false, nil //nolint:nilerr // not yet; the process and ctx bound the wait
		}
		return true, resp.Body.Close()
	})
}

// hasXattrs reports whether files in dir can hold the server's metadata.
func hasXattrs(dir string) bool {
	const name = "user.millrace.probe"
	if err := unix.Setxattr(dir, name, []byte("1"), 0); err != nil {
		return false
	}
	return unix.Removexattr(dir, name) == nil
}

// Env returns the environment, as NAME=value, that makes an AWS SDK in a child
// process use this server and ask nothing beyond loopback. Append it to the
// child's other variables.
func (s *S3) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_SESSION_TOKEN=",
		"AWS_PROFILE=",
		"AWS_REGION=" + s.Region,
		"AWS_ENDPOINT_URL=" + s.Endpoint,
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}
}

// Options returns the options of an under-store mount, as of `--ufs-opt`, for
// this server. The keys are in a file in a temporary directory of the test.
func (s *S3) Options(tb testing.TB) map[string]string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s.AccessKey, s.SecretKey)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return map[string]string{"endpoint": s.Endpoint, "region": s.Region, "credentials_file": path}
}

// Client returns an S3 client of the server; it is made once.
func (s *S3) Client() *s3.Client {
	s.once.Do(func() {
		const conns = 16
		s.transport = &http.Transport{MaxIdleConns: conns, MaxIdleConnsPerHost: conns}
		s.client = s3.New(s3.Options{
			BaseEndpoint:               aws.String(s.Endpoint),
			Region:                     s.Region,
			UsePathStyle:               true,
			Credentials:                credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
			HTTPClient:                 &http.Client{Transport: s.transport},
			RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
			ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		})
	})
	return s.client
}

// CreateBucket makes a bucket.
func (s *S3) CreateBucket(ctx context.Context, name string) error {
	_, err := s.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name})
	return err
}

// PutObject stores an object and returns its ETag without quotes.
func (s *S3) PutObject(ctx context.Context, bucket, key string, body io.ReadSeeker) (string, error) {
	out, err := s.Client().PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: body})
	if err != nil {
		return "", err
	}
	return unquote(aws.ToString(out.ETag)), nil
}
