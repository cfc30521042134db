package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"millrace/internal/daemon"
	"millrace/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, s)
}

// role is one that notes its stop.
func (j *journal) role(name string, end error) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		j.add("stop " + name)
		return end
	}
}

func TestGroupStopsInReverse(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := daemon.NewGroup(quiet())
	var j journal
	for _, name := range []string{"a", "b", "c"} {
		g.Start(t.Context(), name, j.role(name, nil))
	}
	cancel()
	if err := g.Wait(ctx); err != nil {
		t.Errorf("an ordered stop is a failure: %v", err)
	}
	if want := []string{"stop c", "stop b", "stop a"}; !slices.Equal(j.lines, want) {
		t.Errorf("stopped %v, want %v", j.lines, want)
	}
}

func TestGroupFirstFailureStopsAll(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		end  error
		want error
		text string
	}{
		{"failure", boom, boom, "bad: boom"},
		{"an end without a reason", nil, nil, "bad: ended by itself"},
		{"done", daemon.ErrDone, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := daemon.NewGroup(quiet())
			var j journal
			g.Start(t.Context(), "first", j.role("first", nil))
			g.Start(t.Context(), "bad", func(context.Context) error { return tc.end })
			g.Start(t.Context(), "last", j.role("last", errors.New("second failure")))
			bound, release := g.Bound(t.Context())
			<-bound.Done()
			release()
			if err := context.Cause(bound); tc.end != nil && !errors.Is(err, tc.end) {
				t.Errorf("bound context ended with %v, want %v", err, tc.end)
			}
			err := g.Wait(t.Context())
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if tc.text != "" && !strings.HasPrefix(err.Error(), tc.text) {
				t.Errorf("got %q, want %q first", err, tc.text)
			}
			if err == nil || !strings.Contains(err.Error(), "last: second failure") {
				t.Errorf("the failure while stopping is lost: %v", err)
			}
			if want := []string{"stop last", "stop first"}; !slices.Equal(j.lines, want) {
				t.Errorf("stopped %v, want %v", j.lines, want)
			}
		})
	}
}

func TestGroupFail(t *testing.T) {
	g := daemon.NewGroup(quiet())
	var j journal
	g.Start(t.Context(), "a", j.role("a", context.Canceled))
	want := errors.New("cannot go on")
	g.Fail(want)
	if err := g.Wait(t.Context()); !errors.Is(err, want) || err.Error() != "cannot go on" {
		t.Errorf("got %v, want %v alone", err, want)
	}
}

func TestSignals(t *testing.T) {
	exits := make(chan int, 1)
	ctx, stop := daemon.Signals(t.Context(), func(code int) { exits <- code })
	defer stop()
	kill := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	<-ctx.Done()
	var se daemon.SignalError
	if err := context.Cause(ctx); !errors.As(err, &se) || se.Signal != syscall.SIGTERM {
		t.Errorf("cause %v, want SIGTERM", err)
	}
	kill()
	if code := <-exits; code != 143 {
		t.Errorf("exit %d at the second signal, want 143", code)
	}
}

func TestListenNamesTheHolder(t *testing.T) {
	dir := t.TempDir()
	self := fmt.Sprintf("process %d (", os.Getpid())
	for _, e := range []daemon.Endpoint{
		{What: "the worker's gRPC", Setting: "--worker-port or worker.listen", Network: "tcp", Address: "127.0.0.1:0"},
		{What: "the data plane", Setting: "--data-dir", Network: "unix", Address: filepath.Join(dir, "s")},
	} {
		t.Run(e.Network, func(t *testing.T) {
			l, err := daemon.Listen(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			e.Address = l.Addr().String()
			_, err = daemon.Listen(t.Context(), e)
			if !errors.Is(err, errs.Busy) {
				t.Fatalf("got %v, want errs.Busy", err)
			}
			for _, part := range []string{e.What, e.Address, self, e.Setting} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not name %q", err, part)
				}
			}
		})
	}
}

func TestListenRemovesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	e := daemon.Endpoint{Network: "unix", Address: path}
	l, err = daemon.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want mode 0600", fi, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Listen(t.Context(), e); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("got %v, want a refusal to remove a file", err)
	}
}

func TestSocketPath(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	p, err := daemon.SocketPath(dir, "x.sock")
	if err != nil || p != filepath.Join(dir, "x.sock") {
		t.Errorf("got %s, %v", p, err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 150))
	p, err = daemon.SocketPath(long, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	if len(p) > 107 || !strings.HasPrefix(p, os.TempDir()) {
		t.Errorf("got %s, want a short path", p)
	}
	if again, err := daemon.SocketPath(long, "x.sock"); err != nil || again != p {
		t.Errorf("got %s, %v at the second time, want %s", again, err, p)
	}
	if err := os.Chmod(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.SocketPath(long, "x.sock"); !errors.Is(err, errs.Permission) {
		t.Errorf("got %v, want errs.Permission for a directory that others may read", err)
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	l, err := daemon.LockDir(dir, "--data-dir")
	if err != nil {
		t.Fatal(err)
	}
	_, err = daemon.LockDir(dir, "--data-dir")
	if !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("got %v, want errs.Busy with the holder and the flag", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = daemon.LockDir(dir, "--data-dir")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	want := daemon.Addresses{}
	want.Set("master-0", "grpc", "127.0.0.1:7760")
	want.Set("master-0", "http", "127.0.0.1:7762")
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "addresses.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got daemon.Addresses
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestOpsServer(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ready := errors.New("no leader")
	s := daemon.NewOpsServer(l, daemon.NewRegistry("worker-3"), func() error {
		mu.Lock()
		defer mu.Unlock()
		return ready
	}, quiet())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string, status int, part string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Address()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status || !bytes.Contains(b, []byte(part)) {
			t.Errorf("%s: %d %.200s, want %d with %q", path, resp.StatusCode, b, status, part)
		}
	}
	get("/healthz", http.StatusOK, "ok")
	get("/readyz", http.StatusServiceUnavailable, "not ready: no leader")
	mu.Lock()
	ready = nil
	mu.Unlock()
	get("/readyz", http.StatusOK, "ready")
	get("/metrics", http.StatusOK, `go_goroutines{millrace_instance="worker-3"}`)
	get("/debug/pprof/", http.StatusOK, "goroutine")
	get("/debug/pprof/cmdline", http.StatusOK, "daemon")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
