package testenv

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerServesAndStops(t *testing.T) {
	Require(t, S3Server)
	p, err := LaunchS3(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := p.Bucket(t, "bucket")
	want := []byte("hello")
	tag := b.Put(t, "a/b", want)
	out, err := p.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b.Name, Key: aws.String("a/b")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out.Body)
	if err := errors.Join(err, out.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) || unquote(aws.ToString(out.ETag)) != tag {
		t.Errorf("got %q with ETag %s, want %q with %s", got, aws.ToString(out.ETag), want, tag)
	}
	pid := p.PID()
	if err := p.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := listenPort(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Stop the process is still there: %v", err)
	}
}

func TestLaunchWithoutBinary(t *testing.T) {
	t.Setenv(ServerEnv, "/nowhere/versitygw")
	if _, err := LaunchS3(t.Context(), t.TempDir()); err == nil {
		t.Fatal("no error")
	}
}

func TestProcessThatEndsEarly(t *testing.T) {
	t.Setenv(ServerEnv, "/bin/false")
	if _, err := LaunchS3(t.Context(), t.TempDir()); err == nil {
		t.Fatal("no error")
	}
}

func TestProxyCounts(t *testing.T) {
	s := StartS3(t)
	b := s.Bucket(t, "bucket")
	data := bytes.Repeat([]byte("0123456789"), 10000)
	b.Put(t, "a b/ü%+?&", data)

	p := Proxy(t, s.Endpoint)
	via := &S3{Endpoint: p.Endpoint, AccessKey: s.AccessKey, SecretKey: s.SecretKey, Region: s.Region}
	defer func() { via.transport.CloseIdleConnections() }()
	get := func(rng string) {
		t.Helper()
		out, err := via.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b.Name, Key: aws.String("a b/ü%+?&"), Range: &rng})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, out.Body); err != nil {
			t.Fatal(err)
		}
		if err := out.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	get("bytes=0-999")
	get("bytes=5-99999")
	if _, err := via.Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &b.Name, Key: aws.String("none")}); err == nil {
		t.Error("a missing key has no error")
	}
	if _, err := via.Client().ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &b.Name}); err != nil {
		t.Error(err)
	}
	got := p.Snapshot()
	if got.ListBytes == 0 {
		t.Error("a listing has no bytes")
	}
	got.ListBytes = 0
	if diff := cmp.Diff(Counts{Get: 2, Head: 1, List: 1, GetBytes: 1000 + 99995}, got); diff != "" {
		t.Error(diff)
	}
	first := p.Requests()[0]
	if diff := cmp.Diff(Request{
		Op: OpGet, Method: "GET", Path: "/bucket/a b/ü%+?&", Query: "x-id=GetObject", Range: "bytes=0-999", Status: 206, Bytes: 1000,
	}, first); diff != "" {
		t.Error(diff)
	}
	p.Reset()
	if got := p.Snapshot(); got != (Counts{}) || len(p.Requests()) != 0 {
		t.Errorf("after Reset: %+v", got)
	}
}

func TestProxyFaults(t *testing.T) {
	upstream, err := LaunchProxy(t.Context(), "http://127.0.0.1:1") // it answers 502 to all
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	p := Proxy(t, upstream.Endpoint)
	tr := &http.Transport{DisableKeepAlives: true}
	do := func(t *testing.T) (*http.Response, error) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.Endpoint+"/b/k", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			err = errors.Join(err, resp.Body.Close())
		}
		return resp, err
	}
	t.Run("pass", func(t *testing.T) {
		if resp, err := do(t); err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Errorf("got %v, %v", resp, err)
		}
	})
	t.Run("status", func(t *testing.T) {
		p.Inject(func(*http.Request, string) Fault {
			return Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}
		})
		if resp, err := do(t); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("got %v, %v", resp, err)
		}
	})
	t.Run("disconnect", func(t *testing.T) {
		p.Inject(func(*http.Request, string) Fault { return Fault{Disconnect: true} })
		if _, err := do(t); err == nil {
			t.Error("no error")
		}
	})
	t.Run("cut", func(t *testing.T) {
		upstream.Inject(func(*http.Request, string) Fault { return Fault{Status: http.StatusInternalServerError} })
		p.Inject(func(*http.Request, string) Fault { return Fault{Cut: 5} })
		if _, err := do(t); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("headers", func(t *testing.T) {
		p.Inject(func(*http.Request, string) Fault {
			return Fault{SetHeaders: map[string]string{"X-A": "1", "Content-Type": ""}}
		})
		resp, err := do(t)
		if err != nil || resp.Header.Get("X-A") != "1" || resp.Header.Get("Content-Type") == "application/xml" {
			t.Errorf("got %v, %v", resp, err)
		}
	})
}

func TestRequired(t *testing.T) {
	for _, tc := range []struct {
		list string
		want bool
	}{{"", false}, {"s3", true}, {"fuse,root", false}, {"fuse,s3", true}, {"all", true}, {"s33", false}} {
		if got := required(tc.list, S3Server); got != tc.want {
			t.Errorf("required(%q) = %v", tc.list, got)
		}
	}
}

func TestFindListener(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", loopback(0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port, err := listenPort(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Addr().String(); got != loopback(port) {
		t.Errorf("found %s, want %s", loopback(port), got)
	}
}
