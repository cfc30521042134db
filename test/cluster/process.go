package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"millrace/internal/child"
)

// Process is one role of a cluster, which may be started again and again; it
// keeps its addresses and its directory. Its methods may be called from any
// goroutine, those that start and end it by one at a time.
type Process struct {
	// Name is the role and a number: "master-0".
	Name string
	// Dir holds its configuration, its log, and what is its own.
	Dir string

	role   string
	host   Host
	ports  map[string]int // by the names of addresses.json
	binary string
	env    []string

	mu    sync.Mutex
	child *child.Process // nil before the first start
}

// DataDir is where the process keeps its state.
func (p *Process) DataDir() string { return filepath.Join(p.Dir, "data") }

// Address returns where it listens: "grpc", "http", and "raft" of a master or
// "data" of a worker.
func (p *Process) Address(name string) string {
	return net.JoinHostPort(p.host.Address, strconv.Itoa(p.ports[name]))
}

// CacheDir is a worker's cache directory. It need not be there before the first
// start.
func (p *Process) CacheDir() string { return filepath.Join(p.Dir, "cache") }

// ConfigFile is its configuration.
func (p *Process) ConfigFile() string { return filepath.Join(p.Dir, "config.toml") }

// LogFile is what it wrote, at all its starts.
func (p *Process) LogFile() string { return filepath.Join(p.Dir, "log") }

func (p *Process) configure(toml string) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(p.ConfigFile(), []byte(toml), 0o600)
}

// Start starts it and does not wait for it.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(slices.Clone(p.host.Enter), p.binary, p.role, "--config", p.ConfigFile())
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	started, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child = started
	return nil
}

func (p *Process) process() *child.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child
}

// Running reports whether it was started and has not ended.
func (p *Process) Running() bool {
	c := p.process()
	return c != nil && c.Running()
}

// Kill ends it as kill -9 does and waits until it is gone.
func (p *Process) Kill() {
	if c := p.process(); c != nil {
		c.Kill()
	}
}

// Terminate ends it by SIGTERM, which must be clean.
func (p *Process) Terminate(patience time.Duration) error {
	c := p.process()
	if c == nil {
		return fmt.Errorf("%s was never started", p.Name)
	}
	if err := c.Terminate(patience); err != nil {
		return fmt.Errorf("%s: %w; its log ends with:\n%s", p.Name, err, p.LogTail())
	}
	return nil
}

// Pause stops it as SIGSTOP does: its sockets stay open and nobody answers.
func (p *Process) Pause() error { return syscall.Kill(p.process().PID(), syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Process) Resume() error { return syscall.Kill(p.process().PID(), syscall.SIGCONT) }

// Wipe removes its state, and its cache if it is a worker, as a new disk does.
// It must have ended.
func (p *Process) Wipe() error {
	return errors.Join(os.RemoveAll(p.DataDir()), os.RemoveAll(p.CacheDir()))
}

// Ready waits until it says that it is ready.
func (p *Process) Ready(ctx context.Context) error {
	err := Until(ctx, func() error {
		_, err := p.get(ctx, "/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w; its log ends with:\n%s", p.Name, err, p.LogTail())
	}
	return nil
}

// Leads reports whether it is a master that says it leads.
func (p *Process) Leads(ctx context.Context) bool {
	n, err := p.Metric(ctx, "millrace_master_leader")
	return err == nil && n == 1
}

// Metric returns the sum over all labels of one of its metrics.
func (p *Process) Metric(ctx context.Context, name string) (sum float64, err error) {
	text, err := p.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	found := false
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		if err != nil {
			return 0, fmt.Errorf("%s of %s: %w", name, p.Name, err)
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", p.Name, name)
	}
	return sum, nil
}

// answer bounds the wait for an answer of its HTTP server: one that is paused
// gives none.
const answer = 2 * time.Second

func (p *Process) get(ctx context.Context, path string) (string, error) {
	if !p.Running() {
		return "", fmt.Errorf("%s does not run", p.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Address("http")+path, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Close = true // the process may end and start again
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return string(text), err
}

// LogTail returns the end of its log.
func (p *Process) LogTail() string {
	const most = 8 << 10
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
