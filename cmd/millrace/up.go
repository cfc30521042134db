package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"millrace/fuse"
	"millrace/internal/config"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/tier"
	"millrace/ufs"
)

// upFlags is the command line of `up`.
type upFlags struct {
	dataDir      string
	caches       []string
	ufsOptions   []string
	mountOptions string
	listen       string
	numMasters   int
	numWorkers   int
	memory       size.Bytes
	cpus         float64
}

// portFlag is a flag that moves one port, and the key that it sets.
type portFlag struct {
	flag, key, what string
	port            uint16 // by default
}

func portFlags() []portFlag {
	return []portFlag{
		{"master-port", "master.listen", "the master's gRPC", portMaster},
		{"raft-port", "master.raft_listen", "the master's Raft", portRaft},
		{"master-http-port", "master.http_listen", "the master's HTTP", portMasterHTTP},
		{"worker-port", "worker.listen", "the worker's gRPC", portWorker},
		{"data-port", "worker.data_listen", "the worker's data plane", portData},
		{"worker-http-port", "worker.http_listen", "the worker's HTTP", portWorkerHTTP},
		{"mount-http-port", "fuse.http_listen", "the mount's HTTP", portMountHTTP},
	}
}

func (a *app) upCommand() *cobra.Command {
	var u upFlags
	c := &cobra.Command{
		Use:   "up URI [MOUNTPOINT]",
		Short: "Run a cluster on this host, with an under-store bound at /",
		Long: "Runs a master, a worker and, with MOUNTPOINT, a FUSE mount in the foreground, with the under-store\n" +
			"URI (s3://bucket/prefix, file:///dir) bound at /. When reads work, it prints one line to the standard\n" +
			"output: ready URI MOUNTPOINT-or-- http://MASTER_HTTP. SIGTERM or Ctrl-C stops it cleanly, a second one\n" +
			"at once. The same URI again comes back with its cache warm.\n\n" +
			"With --num-masters or --num-workers the masters and workers are processes of their own, which are started\n" +
			"again when they end; a mount stays in this one. Instance n of a role has its ports plus 100·n, and a\n" +
			"directory of its own below DATA_DIR; what --cache and --memory give is shared out among the workers. A\n" +
			"data directory keeps its masters and their addresses; it may be given more workers.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, loaded, err := a.settings(cmd, bindings{"memory": "worker.memory"})
			if err != nil {
				return err
			}
			p, err := u.plan(cmd, s, loaded, args)
			if err != nil {
				return err
			}
			return a.up(cmd.Context(), s, p)
		},
	}
	f := c.Flags()
	f.StringVar(&u.dataDir, "data-dir", "~/.millrace", "`DIR` of all state")
	f.StringArrayVar(&u.caches, "cache", nil, "cache directory, `DIR:SIZE[:memory|ssd|hdd]`; may be repeated (default DATA_DIR/cache with 80 % of what is free)")
	addMemoryFlag(f, "`SIZE` of the memory tier, in /dev/shm; 0 for none (default a quarter of the memory)")
	addUFSOptFlag(c, &u.ufsOptions)
	f.StringVar(&u.mountOptions, "mount-opt", "", "mount `OPTIONS`, separated by commas: allow_other, uid=, gid=, umask=, passthrough=auto|off, no_open, read_ahead=, nonempty")
	f.StringVar(&u.listen, "listen", loopback, "`IP` to listen on")
	for _, p := range portFlags() {
		f.Uint16(p.flag, p.port, "`PORT` of "+p.what+"; 0 lets the system choose")
	}
	f.IntVar(&u.numMasters, "num-masters", 0, "run `N` masters, each a process: 1, 3 or 5")
	f.IntVar(&u.numWorkers, "num-workers", 0, "run `N` workers, each a process")
	f.Var(&u.memory, "instance-memory", "`SIZE` of memory for each process of those: GOMEMLIMIT, and a control group where that is allowed")
	f.Lookup("instance-memory").DefValue = ""
	f.Float64Var(&u.cpus, "instance-cpus", 0, "`N` CPU cores for each process of those: GOMAXPROCS, and a control group where that is allowed")
	f.Bool("random-ports", false, "let the system choose every port; DATA_DIR/addresses.json has them")
	return c
}

// plan is what `up` is to do, checked as far as it can be without doing it.
type plan struct {
	uri        string // as it is kept
	shownURI   string // as the user wrote it
	ufsOptions map[string]string
	dataDir    string
	mountPoint string // empty: none
	caches     []tier.Config
	memory     memoryTier
	given      bool    // the user said how large the memory tier is to be
	kept       binding // what of the sizes is kept for the next start

	numMasters, numWorkers int    // of the flags; 0: not given
	layout                 layout // empty: all roles in this process
	limits                 limits // of each instance
}

func (u *upFlags) plan(cmd *cobra.Command, s *Settings, loaded *config.Loaded, args []string) (*plan, error) {
	p := &plan{shownURI: args[0]}
	var err error
	if p.uri, err = checkURI(args[0]); err != nil {
		return nil, err
	}
	if p.ufsOptions, err = parseUFSOptions(u.ufsOptions); err != nil {
		return nil, err
	}
	if s.FUSE.Config, err = fuse.ParseOptions(s.FUSE.Config, u.mountOptions); err != nil {
		return nil, usageError{err}
	}
	if len(args) > 1 {
		if p.mountPoint, err = absolute(args[1]); err != nil {
			return nil, err
		}
	}
	if p.dataDir, err = absolute(u.dataDir); err != nil {
		return nil, err
	}
	if p.caches, err = cacheTiers(u.caches, s.Worker.Tiers); err != nil {
		return nil, err
	}
	if net.ParseIP(u.listen) == nil {
		return nil, usagef("--listen %q: want an IP address", u.listen)
	}
	if err := u.instances(p); err != nil {
		return nil, err
	}
	s.Master.DataDir, s.Worker.DataDir = filepath.Join(p.dataDir, "master"), filepath.Join(p.dataDir, "worker")
	p.given = loaded.Origin("worker.memory") != ""
	if err := u.ports(cmd, s, loaded); err != nil {
		return nil, err
	}
	return p, p.instances(s)
}

// instances takes the flags about several instances.
func (u *upFlags) instances(p *plan) error {
	p.numMasters, p.numWorkers = u.numMasters, u.numWorkers
	p.limits = limits{memory: u.memory, cpus: u.cpus}
	switch {
	case !slices.Contains([]int{0, 1, 3, 5}, u.numMasters):
		return usagef("--num-masters %d: want 1, 3 or 5", u.numMasters)
	case u.numWorkers < 0 || u.numWorkers > maxInstances:
		return usagef("--num-workers %d: want 1 to %d", u.numWorkers, maxInstances)
	case u.cpus < 0:
		return usagef("--instance-cpus %v: want a number above 0", u.cpus)
	}
	return nil
}

// ports sets the addresses to listen on as the flags say.
func (u *upFlags) ports(cmd *cobra.Command, s *Settings, loaded *config.Loaded) error {
	random, err := cmd.Flags().GetBool("random-ports")
	if err != nil {
		return err
	}
	for _, a := range s.listens() {
		host, port, err := net.SplitHostPort(*a.address)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("listen") || loaded.Origin(a.key) == "" {
			host = u.listen
		}
		if random {
			port = "0"
		}
		if cmd.Flags().Changed(a.flag) {
			n, err := cmd.Flags().GetUint16(a.flag)
			if err != nil {
				return err
			}
			port = strconv.Itoa(int(n))
		}
		*a.address = net.JoinHostPort(host, port)
	}
	return nil
}

// listenKey is an address of the settings, and the flag and key that set it.
type listenKey struct {
	address   *string
	flag, key string
}

func (s *Settings) listens() []listenKey {
	addresses := []*string{
		&s.Master.Listen, &s.Master.RaftListen, &s.Master.HTTPListen,
		&s.Worker.Listen, &s.Worker.DataListen, &s.Worker.HTTPListen, &s.FUSE.HTTPListen,
	}
	var list []listenKey
	for i, p := range portFlags() {
		list = append(list, listenKey{addresses[i], p.flag, p.key})
	}
	return list
}

// probeLimit bounds the first look at an under-store, retries included. It is
// less than the S3 client waits for one answer, so that it is the one to speak.
const probeLimit = 25 * time.Second

// probe looks whether an under-store answers, before anything is made for it.
func probe(ctx context.Context, uri string, options map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	store, err := underStores().Open(ctx, ufs.Config{URI: uri, Options: options})
	if err != nil {
		return err
	}
	for _, err = range store.List(ctx, "", ufs.ListOptions{}) {
		break
	}
	if kind := errs.KindOf(err); kind != errs.Unknown {
		e := errs.E(kind, "look at under-store", uri, fmt.Errorf("%w: %w", kind, err))
		if kind == errs.Timeout {
			e = e.WithHint(fmt.Sprintf("nothing answered within %v: is the endpoint right, and can it be reached?", probeLimit))
		}
		err = e
	}
	return errors.Join(err, store.Close())
}

// up runs all roles until it is told to stop.
func (a *app) up(ctx context.Context, s *Settings, p *plan) error {
	n, err := newNode(s, a.logger(s))
	if err != nil {
		return err
	}
	known, err := readBinding(p.dataDir)
	if err != nil {
		return err
	}
	if err := p.fits(known); err != nil {
		return err
	}
	if err := p.sizes(&s.Worker, known); err != nil {
		return err
	}
	if err := p.outside(); err != nil {
		return err
	}
	if err := probe(ctx, p.uri, p.effectiveOptions(known)); err != nil {
		return err
	}
	// What this start makes is taken away again if it never gets to ready:
	// an attempt that failed must not bind the directory to anything.
	t := &trail{}
	if err := t.begin(p.dataDir); err != nil {
		return err
	}
	start := a.startUp
	if len(p.layout.Instances) > 0 {
		start = a.startMany
	}
	if err := start(ctx, n, p, t); err != nil {
		return errors.Join(n.fail(ctx, err), t.undo())
	}
	return errors.Join(n.finish(ctx), t.end())
}

func (a *app) startUp(ctx context.Context, n *node, p *plan, t *trail) error {
	if err := n.lock(p.dataDir, "--data-dir"); err != nil {
		t.keep() // whoever holds it made what is there
		return err
	}
	if p.mountPoint != "" {
		if err := n.readyMountPoint(ctx, p, t); err != nil {
			return err
		}
	}
	ml, err := n.listenMaster(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.settings.Worker.DataDir, 0o700); err != nil {
		return errs.Wrap(err, "make data directory", n.settings.Worker.DataDir)
	}
	wl, err := n.listenWorker(ctx)
	if err != nil {
		return err
	}
	spec := mountSpec{point: p.mountPoint, root: "/", masters: []string{ml.grpc.Addr().String()}}
	if p.mountPoint != "" {
		if spec.http, err = n.listenMount(ctx); err != nil {
			return err
		}
	}
	if err := n.addresses.Write(p.dataDir); err != nil {
		return err
	}
	n.memory = p.memory
	m, err := n.startMaster(ctx, ml)
	if err != nil {
		return err
	}
	if err := n.waitReady(ctx, "master", m.Ready); err != nil {
		return err
	}
	w, err := n.startWorker(ctx, wl, spec.masters)
	if err != nil {
		return err
	}
	if err := n.waitReady(ctx, "worker", w.Ready); err != nil {
		return err
	}
	if err := n.bind(ctx, p, spec.masters, w.Refresh); err != nil {
		return err
	}
	return a.finishStart(ctx, n, p, t, spec, ml.http.Addr().String())
}

func (n *node) listenMount(ctx context.Context) (net.Listener, error) {
	return n.listen(ctx, mountRole, "http", tcp("the mount's HTTP", n.settings.FUSE.HTTPListen, "--mount-http-port", "fuse.http_listen"))
}

// finishStart mounts, if there is a mount point, and says that reads work.
func (a *app) finishStart(ctx context.Context, n *node, p *plan, t *trail, spec mountSpec, masterHTTP string) error {
	shown := "-"
	if p.mountPoint != "" {
		if err := n.startMount(ctx, spec); err != nil {
			return err
		}
		shown = p.mountPoint
	}
	t.keep()
	n.made = nil
	_, err := fmt.Fprintf(a.stdout, "ready %s %s http://%s\n", p.shownURI, shown, masterHTTP)
	return err
}

// readyMountPoint makes the mount point if it is missing, and finds out now
// what would fail only when everything else runs.
func (n *node) readyMountPoint(ctx context.Context, p *plan, t *trail) error {
	if err := p.apart(); err != nil {
		return err
	}
	remove, err := makeMountPoint(p.mountPoint)
	if err != nil {
		return err
	}
	t.mountPoint = remove
	m, err := fuse.New(n.settings.FUSE.Config, p.mountPoint, "/", nil, n.log, nil)
	if err != nil {
		return err
	}
	return m.Check(ctx)
}

// sizes decides how large the cache is where nobody said it: as at the first
// start, if there was one.
func (p *plan) sizes(w *Worker, known *binding) (err error) {
	if known != nil {
		p.kept = *known
	}
	if len(p.caches) == 0 {
		t, err := defaultCache(filepath.Join(p.dataDir, "cache"), p.kept.Cache)
		if err != nil {
			return err
		}
		p.caches, p.kept.Cache = []tier.Config{t}, t.Capacity
	}
	w.Tiers = p.caches
	// Several workers have a memory tier if they are told to.
	if !p.given && len(p.layout.Instances) == 0 && !slices.ContainsFunc(p.caches, inMemory) {
		if w.Memory, err = defaultMemory(p.kept.Memory); err != nil {
			return err
		}
		p.kept.Memory = w.Memory
	}
	p.memory, err = w.memory(p.given, w.DataDir)
	return err
}

// trail knows what a first start has made, to take it away if it fails.
type trail struct {
	dataDir    string // made, or filled, by this start; empty: not ours to remove
	madeDir    bool
	mountPoint func() error
}

// begin makes the data directory, and notes whether this is its first use.
func (t *trail) begin(dataDir string) error {
	names, err := os.ReadDir(dataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.dataDir, t.madeDir = dataDir, true
	case err != nil:
		return errs.Wrap(err, "read data directory", dataDir)
	case len(names) == 0:
		t.dataDir = dataDir
	}
	return errs.Wrap(os.MkdirAll(dataDir, 0o700), "make data directory", dataDir)
}

// keep says that what was made in the data directory stays.
func (t *trail) keep() { t.dataDir = "" }

// undo takes away what this start has made.
func (t *trail) undo() error {
	list := []error{t.end()}
	switch {
	case t.dataDir == "":
	case t.madeDir:
		list = append(list, os.RemoveAll(t.dataDir))
	default:
		names, err := os.ReadDir(t.dataDir)
		list = append(list, err)
		for _, d := range names {
			list = append(list, os.RemoveAll(filepath.Join(t.dataDir, d.Name())))
		}
	}
	return errors.Join(list...)
}

// end takes away the mount point if this process made it.
func (t *trail) end() error {
	if t.mountPoint == nil {
		return nil
	}
	return t.mountPoint()
}
