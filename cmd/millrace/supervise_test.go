package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/config"
	"millrace/internal/size"
	"millrace/tier"
)

func TestPrefixed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &prefixed{to: &sync.Mutex{}, w: &out, prefix: "w-1"}
	for _, s := range []string{"one\ntw", "o\n", "", "\nlast", strings.Repeat("x", maxLogLine), "\n"} {
		if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := "w-1 one\nw-1 two\nw-1 \nw-1 last" + strings.Repeat("x", maxLogLine) + "\nw-1 \n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestInstanceEnvironment(t *testing.T) {
	t.Parallel()
	own := []string{"HOME=/h", "MILLRACE_WORKER_LISTEN=h:1", "MILLRACE_CONFIG=f", "MILLRACEX=1"}
	if got := (limits{}).environ(own, 0); !slices.Equal(got, []string{"HOME=/h", "MILLRACEX=1"}) {
		t.Error(got)
	}
	got := limits{memory: 1000, cpus: 1.5}.environ(own, 400)
	if want := []string{"HOME=/h", "MILLRACEX=1", "GOMEMLIMIT=540", "GOMAXPROCS=2"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestInstanceThatNeverWasReady: one that ends at once is a failure of the
// start, and is not started again.
func TestInstanceThatNeverWasReady(t *testing.T) {
	t.Parallel()
	s := &supervised{instance: instance{Name: "worker-0", Role: "worker"}, exe: "/bin/false", logs: &bytes.Buffer{}, log: slog.New(slog.DiscardHandler)}
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Error(err)
	}
}

// TestInstanceConfiguration: what an instance reads is what `up` decided, with
// the shares of several workers and the ports of the instance.
func TestInstanceConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := defaultSettings()
	s.Worker.Tiers = []tier.Config{tier.DefaultConfig(), tier.DefaultConfig()}
	s.Worker.Tiers[0].Dir, s.Worker.Tiers[0].Capacity = filepath.Join(dir, "c0"), 9*size.GiB
	s.Worker.Tiers[1].Dir, s.Worker.Tiers[1].Capacity = filepath.Join(dir, "c1"), 3*size.GiB
	s.Worker.Memory = 3 * size.GiB
	p := &plan{dataDir: dir, numMasters: 3, numWorkers: 3}
	if err := p.instances(s); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "worker-2"), 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := p.layout.configure(s, dir, p.layout.of(roleWorker)[2])
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := loadSettings(config.Sources{Prefix: envPrefix, Data: text, File: file, Elements: newElements()})
	if err != nil {
		t.Fatal(err)
	}
	want := *s
	want.Cluster.Instance, want.Cluster.Masters = "worker-2", []string{"127.0.0.1:7760", "127.0.0.1:7860", "127.0.0.1:7960"}
	want.Worker.DataDir, want.Worker.Memory = filepath.Join(dir, "worker-2"), size.GiB
	want.Worker.Listen, want.Worker.DataListen, want.Worker.HTTPListen = "127.0.0.1:7970", "127.0.0.1:7971", "127.0.0.1:7972"
	want.Worker.Tiers = slices.Clone(s.Worker.Tiers)
	want.Worker.Tiers[0].Dir, want.Worker.Tiers[0].Capacity = filepath.Join(dir, "c0", "worker-2"), 3*size.GiB
	want.Worker.Tiers[1].Dir, want.Worker.Tiers[1].Capacity = filepath.Join(dir, "c1", "worker-2"), size.GiB
	for _, d := range want.dirs() {
		if *d, err = expandHome(*d); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// TestLayoutIsKept: the addresses of the first start stay, and workers may be
// added.
func TestLayoutIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := defaultSettings()
	s.Master.RaftListen = "127.0.0.1:0"
	p := &plan{dataDir: dir, numMasters: 3, numWorkers: 1}
	if err := p.instances(s); err != nil {
		t.Fatal(err)
	}
	p.layout.Instances[0].Addresses["raft"] = "127.0.0.1:1234" // as the system chose
	if err := p.layout.write(dir); err != nil {
		t.Fatal(err)
	}
	again := &plan{dataDir: dir, numWorkers: 2}
	if err := again.instances(s); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p.layout.Instances, again.layout.Instances[:4]); d != "" || len(again.layout.Instances) != 5 {
		t.Errorf("%d instances (-want +got)\n%s", len(again.layout.Instances), d)
	}
	s.Master.Listen = "127.0.0.1:9999"
	if err := (&plan{dataDir: dir}).instances(s); err == nil || !strings.Contains(err.Error(), "it listens there since its first start") {
		t.Error(err)
	}
}
