package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"millrace/client"
	"millrace/internal/wait"
	"millrace/test/hosts"
	"millrace/test/role"
)

// Config says what a cluster is made of.
type Config struct {
	// Binary is the millrace that runs.
	Binary string
	// Dir holds everything; it must be there and empty.
	Dir string
	// Masters and Workers are how many there are at the start.
	Masters, Workers int
	// Cache is the size of each worker's cache, as in its configuration.
	Cache string
	// Memory is the size of a tier in memory before it; empty: none.
	Memory string
	// MasterTOML, WorkerTOML and MountTOML are lines put into the sections
	// [master], [worker] and [fuse] of every such process.
	MasterTOML, WorkerTOML, MountTOML string
	// Hosts makes each worker one of a host of its own, whose host_id is the
	// worker's name.
	Hosts bool
	// TierTOML are lines put into each [[worker.tier]].
	TierTOML string
	// Env is added to the environment of every process.
	Env []string
	// Host says where the process of that name lives; nil: each at a loopback
	// address of its own.
	Host func(name string) hosts.Place
}

// Cluster is a group of processes. Its methods may be called from any
// goroutine, except that those that change what there is (New, AddWorker,
// AddMount, Close) are for one at a time.
type Cluster struct {
	cfg   Config
	claim net.Listener // of the address 127.x.y.1, which keeps others off 127.x.y; nil with Config.Host
	net   string       // "127.x.y."

	mu      sync.Mutex
	hosts   int // that were given out
	masters []*Process
	workers []*Process
	mounts  []*Process
}

// The first host number that is given out; 1 is the claim's.
const firstHost = 10

// New makes a cluster: it claims addresses and writes configurations, and
// starts nothing.
func New(cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, hosts: firstHost}
	if cfg.Host == nil {
		if err := c.claimLoopback(); err != nil {
			return nil, fmt.Errorf("claim loopback addresses: %w", err)
		}
	}
	for range cfg.Masters {
		c.masters = append(c.masters, c.newMaster())
	}
	for _, m := range c.masters {
		if err := c.configureMaster(m, c.masters); err != nil {
			return nil, errors.Join(err, c.unclaim())
		}
	}
	for range cfg.Workers {
		if _, err := c.AddWorker(); err != nil {
			return nil, errors.Join(err, c.unclaim())
		}
	}
	return c, nil
}

func (c *Cluster) claimLoopback() (err error) {
	for range 20 {
		c.net = fmt.Sprintf("127.%d.%d.", 64+rand.N(64), rand.N(256))
		var lc net.ListenConfig
		if c.claim, err = lc.Listen(context.Background(), "tcp", c.net+"1:7700"); err == nil {
			return nil
		}
	}
	return err
}

func (c *Cluster) unclaim() error {
	if c.claim == nil {
		return nil
	}
	return c.claim.Close()
}

// Masters returns the masters, in the order of their making.
func (c *Cluster) Masters() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.masters)
}

// Workers returns the workers, in the order of their making.
func (c *Cluster) Workers() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.workers)
}

// Addresses returns the masters' gRPC addresses.
func (c *Cluster) Addresses() []string {
	var list []string
	for _, m := range c.Masters() {
		list = append(list, m.Address("grpc"))
	}
	return list
}

func (c *Cluster) newProcess(kind string, number int, ports map[string]int) *Process {
	name := fmt.Sprintf("%s-%d", kind, number)
	p := &Process{Dir: filepath.Join(c.cfg.Dir, name), role: kind, ports: ports, binary: c.cfg.Binary, env: c.cfg.Env}
	if c.cfg.Host != nil {
		p.host = c.cfg.Host(name)
	} else {
		p.host.Address = fmt.Sprint(c.net, c.hosts)
		c.hosts++
	}
	p.Name, p.HTTP = name, p.Address("http")
	return p
}

func (c *Cluster) newMaster() *Process {
	return c.newProcess("master", len(c.masters), map[string]int{"grpc": 7760, "raft": 7761, "http": 7762})
}

// configureMaster writes a master's configuration: voters are the masters of
// the group at its first start, none for one that is to be added to a group.
func (c *Cluster) configureMaster(p *Process, voters []*Process) error {
	var b strings.Builder
	c.common(&b)
	fmt.Fprintf(&b, "\n[master]\nid = %q\ndata_dir = %q\nlisten = %q\nraft_listen = %q\nhttp_listen = %q\n%s\n",
		p.Name, p.DataDir(), p.Address("grpc"), p.Address("raft"), p.Address("http"), c.cfg.MasterTOML)
	for _, v := range voters {
		fmt.Fprintf(&b, "\n[[master.voter]]\nid = %q\nraft = %q\n", v.Name, v.Address("raft"))
	}
	return p.configure(b.String())
}

func (c *Cluster) common(b *strings.Builder) {
	quoted := make([]string, 0, len(c.masters))
	for _, m := range c.masters {
		quoted = append(quoted, fmt.Sprintf("%q", m.Address("grpc")))
	}
	fmt.Fprintf(b, "[cluster]\nmasters = [%s]\n", strings.Join(quoted, ", "))
}

// AddWorker makes one more worker, which is not started.
func (c *Cluster) AddWorker() (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.newProcess("worker", len(c.workers), map[string]int{"grpc": 7770, "data": 7771, "http": 7772})
	var b strings.Builder
	c.common(&b)
	if c.cfg.Hosts {
		fmt.Fprintf(&b, "host_id = %q\n", p.Name)
	}
	fmt.Fprintf(&b, "\n[worker]\ndata_dir = %q\nlisten = %q\ndata_listen = %q\nhttp_listen = %q\n%s\n",
		p.DataDir(), p.Address("grpc"), p.Address("data"), p.Address("http"), c.cfg.WorkerTOML)
	const tier = "\n[[worker.tier]]\nmedium = %q\ndir = %q\ncapacity = %q\n%s\n"
	if c.cfg.Memory != "" {
		fmt.Fprintf(&b, tier, "memory", p.MemoryDir(), c.cfg.Memory, c.cfg.TierTOML)
	}
	fmt.Fprintf(&b, tier, "ssd", p.CacheDir(), c.cfg.Cache, c.cfg.TierTOML)
	if err := p.configure(b.String()); err != nil {
		return nil, err
	}
	c.workers = append(c.workers, p)
	return p, nil
}

// AddMount makes a FUSE mount of the whole namespace, which is not started, and
// its mount point.
func (c *Cluster) AddMount() (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.newProcess("mount", len(c.mounts), map[string]int{"http": 7782})
	p.args = []string{p.Point()}
	var b strings.Builder
	c.common(&b)
	fmt.Fprintf(&b, "\n[fuse]\ndata_dir = %q\nhttp_listen = %q\n%s\n", p.DataDir(), p.Address("http"), c.cfg.MountTOML)
	if err := p.configure(b.String()); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.Point(), 0o700); err != nil {
		return nil, err
	}
	c.mounts = append(c.mounts, p)
	return p, nil
}

// Start starts every master and worker and waits until all are ready.
func (c *Cluster) Start(ctx context.Context) error {
	all := append(c.Masters(), c.Workers()...)
	for _, p := range all {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range all {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close kills every process.
func (c *Cluster) Close() error {
	for _, p := range c.mounts {
		p.Kill()
		_ = unix.Unmount(p.Point(), unix.MNT_DETACH) // what a killed mount left
	}
	for _, p := range append(c.Workers(), c.Masters()...) {
		p.Kill()
	}
	return c.unclaim()
}

// Leader waits for the master that says it leads. One that was paused while it
// led says nothing.
func (c *Cluster) Leader(ctx context.Context) (*Process, error) {
	for {
		for _, m := range c.Masters() {
			if m.Leads(ctx) {
				return m, nil
			}
		}
		if err := wait.For(ctx, role.Poll); err != nil {
			return nil, fmt.Errorf("no master leads: %w", err)
		}
	}
}

// Followers returns the masters besides one.
func (c *Cluster) Followers(leader *Process) []*Process {
	return slices.DeleteFunc(c.Masters(), func(p *Process) bool { return p == leader })
}

// Client makes a client of the cluster in this process. change may be nil.
func (c *Cluster) Client(ctx context.Context, change func(*client.Config)) (*client.Client, error) {
	cfg := client.DefaultConfig()
	cfg.Masters = c.Addresses()
	if change != nil {
		change(&cfg)
	}
	return client.Dial(ctx, cfg, slog.New(slog.DiscardHandler), nil)
}

// Run runs `millrace args...` against the cluster and returns what it wrote to
// its standard output.
func (c *Cluster) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.cfg.Binary, args...)
	cmd.Env = append(append(os.Environ(), c.cfg.Env...), "MILLRACE_MASTERS="+strings.Join(c.Addresses(), ","))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("millrace %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out.String(), nil
}

// Until waits until the condition holds. The error says what it said last.
func Until(ctx context.Context, condition func() error) error {
	for {
		err := condition()
		if err == nil {
			return nil
		}
		if e := wait.For(ctx, role.Poll); e != nil {
			return errors.Join(e, err)
		}
	}
}
