package role

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSumOf(t *testing.T) {
	const text = "# HELP a_total all\na_total{x=\"1 2\"} 2\na_total{x=\"3\"} 40\na_total_more 7\nb 1.5e3\nbad x\n"
	for _, c := range []struct {
		name string
		want float64
		fail string
	}{
		{"a_total", 42, ""}, {"b", 1500, ""}, {"a", 0, "no metric a"}, {"bad", 0, "bad"},
	} {
		got, err := sumOf(text, c.name)
		if got != c.want || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%s: %v, %v, want %v and %q", c.name, got, err, c.want, c.fail)
		}
	}
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "addresses.json"), []byte(`{"worker-7": {"grpc": "1.2.3.4:5"}}`), 0o600))
	got, err := Addresses(dir, "worker")
	must(t, err)
	if diff := cmp.Diff(map[string]string{"grpc": "1.2.3.4:5"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := Addresses(dir, "master"); err == nil {
		t.Error("it has addresses of a master")
	}
	if _, err := Addresses(t.TempDir(), "worker"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: %v", err)
	}
}

// TestReady: a process is waited for while it runs, and not when it has ended.
func TestReady(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked < 3 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	p := &Process{Name: "it", HTTP: strings.TrimPrefix(server.URL, "http://")}
	if err := p.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "never started") {
		t.Errorf("before the start: %v", err)
	}
	must(t, p.Start(exec.CommandContext(t.Context(), "sleep", "1000")))
	defer p.Kill()
	must(t, p.Ready(t.Context()))
	if asked != 3 {
		t.Errorf("it was asked %d times, want 3", asked)
	}
	asked = 0
	p.Kill()
	if err := p.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Errorf("after the end: %v", err)
	}
	if err := p.Terminate(time.Second); err == nil || p.Running() {
		t.Errorf("after the end: %v, running: %v", err, p.Running())
	}
}
