package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"millrace/internal/testenv"
	"millrace/test/hosts"
)

// patience bounds every wait for something that must happen: it is generous,
// since it only decides how long a broken build takes to fail.
const patience = 60 * time.Second

// binary is the millrace that TestMain built.
var binary string

func TestMain(m *testing.M) {
	os.Exit(hosts.Main(func() int { return buildAndRun(m) }, patience))
}

func buildAndRun(m *testing.M) int {
	if binary = os.Getenv("MILLRACE_BINARY"); binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "millrace-cluster-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "millrace")
	build := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "millrace/cmd/millrace")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build millrace:", err)
		return 1
	}
	return m.Run()
}

// bounded returns a context that ends after patience.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// must fails the test at once.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start starts a cluster of that many masters and workers. change may be nil.
func start(t *testing.T, masters, workers int, change func(*Config)) *Cluster {
	t.Helper()
	c := prepare(t, masters, workers, change)
	must(t, c.Start(bounded(t)))
	return c
}

// prepare makes a cluster as start does, and starts nothing.
func prepare(t *testing.T, masters, workers int, change func(*Config)) *Cluster {
	t.Helper()
	cfg := Config{Binary: binary, Dir: t.TempDir(), Masters: masters, Workers: workers, Cache: "256MiB"}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, p := range append(c.Masters(), c.Workers()...) {
				t.Logf("the log of %s ends with:\n%s", p.Name, p.LogTail())
			}
		}
	})
	return c
}

// prepareOnHosts is prepare with a host for each process. There is one network:
// such tests run alone.
func prepareOnHosts(t *testing.T, masters, workers int, change func(*Config)) (*Cluster, *hosts.Network) {
	t.Helper()
	testenv.Require(t, testenv.Namespaces)
	n, err := hosts.New(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	for role, count := range map[string]int{"master": masters, "worker": workers} {
		for i := range count {
			must(t, n.Add(t.Context(), fmt.Sprintf("%s-%d", role, i)))
		}
	}
	return prepare(t, masters, workers, func(cfg *Config) {
		cfg.Host = n.Place
		if change != nil {
			change(cfg)
		}
	}), n
}

// leader waits for the one that leads.
func (c *Cluster) leader(t *testing.T) *Process {
	t.Helper()
	p, err := c.Leader(bounded(t))
	must(t, err)
	return p
}

// run runs a command that must succeed.
func (c *Cluster) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Run(t.Context(), args...)
	must(t, err)
	return out
}

// source makes a directory with files to be cached, and binds it at /. Each
// file's content is a function of its name.
func (c *Cluster) source(t *testing.T, files int, size int64, options ...string) map[string]int64 {
	t.Helper()
	dir, all := t.TempDir(), map[string]int64{}
	for i := range files {
		name := fmt.Sprintf("f%04d.bin", i)
		must(t, os.WriteFile(filepath.Join(dir, name), content(name, size), 0o600))
		all["/"+name] = size
	}
	add := []string{"ufs", "add", "/", "file://" + dir}
	for _, o := range options {
		add = append(add, "--ufs-opt", o)
	}
	c.run(t, add...)
	c.run(t, "status", "--wait", patience.String())
	return all
}

// readyNow asks whether it is ready.
func (p *Process) readyNow(t *testing.T) error {
	t.Helper()
	_, err := p.Get(t.Context(), "/readyz")
	return err
}
