package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"millrace/cachemaster"
	"millrace/cacheworker"
	"millrace/client"
	"millrace/fuse"
	"millrace/internal/daemon"
	"millrace/internal/errs"
	"millrace/tier"
)

// The names of the roles of a process in addresses.json.
const (
	masterRole = "master-0"
	workerRole = "worker-0"
	mountRole  = "mount-0"
)

// node is one process with the roles that run in it. Listeners are opened
// first, all of them, so that a port in use is told before anything starts;
// then the roles are made; then they are started one after the other.
type node struct {
	log       *slog.Logger
	settings  *Settings
	addresses daemon.Addresses
	group     *daemon.Group
	closers   []func() error // in the order of opening; closed in the reverse
	memory    memoryTier     // of the worker
	made      []string       // directories that go again if the start fails
}

// leastFiles is how many files a process of Millrace must be able to open: with
// fewer it may start, and then stand without a connection or a log.
const leastFiles = 64

func newNode(s *Settings, log *slog.Logger) (*node, error) {
	limit, err := openFilesLimit()
	if err != nil {
		return nil, err
	}
	if limit < leastFiles {
		return nil, errs.E(errs.Invalid, "start", "millrace",
			fmt.Errorf("%w: this process may open %d, at least %d are needed", unix.EMFILE, limit, leastFiles)).WithHint(moreFiles)
	}
	// A log that nobody reads any more must not end a daemon on the spot: its
	// mount would stay behind, dead.
	signal.Ignore(syscall.SIGPIPE)
	if err := limitHeap(nil); err != nil {
		return nil, err
	}
	return &node{log: log, settings: s, addresses: daemon.Addresses{}, group: daemon.NewGroup(log)}, nil
}

// listen opens a listener of a role and enters its address.
func (n *node) listen(ctx context.Context, role, name string, e daemon.Endpoint) (net.Listener, error) {
	l, err := daemon.Listen(ctx, e)
	if err != nil {
		return nil, err
	}
	// The role closes its listener too, which makes this a second time.
	n.closers = append(n.closers, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	n.addresses.Set(role, name, l.Addr().String())
	return l, nil
}

// lock makes a data directory and takes its lock.
func (n *node) lock(dir, setting string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(err, "make data directory", dir)
	}
	l, err := daemon.LockDir(dir, setting)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, l.Close)
	return nil
}

// close gives back what was opened, after the group has ended.
func (n *node) close() error {
	var list []error
	for _, v := range slices.Backward(n.closers) {
		list = append(list, v())
	}
	n.closers = nil
	return errors.Join(list...)
}

// fail ends a start that went wrong: it stops what has been started, and
// returns the reason, or what stopped the group before it.
func (n *node) fail(ctx context.Context, err error) error {
	bound, release := n.group.Bound(ctx)
	defer release()
	if bound.Err() == nil {
		n.group.Fail(err)
	}
	list := []error{context.Cause(ctx), n.finish(ctx)} // the cause is a signal, if one came
	for _, dir := range n.made {
		list = append(list, os.RemoveAll(dir))
	}
	return errors.Join(list...)
}

// finish waits for the end and gives everything back.
func (n *node) finish(ctx context.Context) error { return errors.Join(n.group.Wait(ctx), n.close()) }

// startOps starts the operations server of a role.
func (n *node) startOps(ctx context.Context, role string, l net.Listener, reg prometheus.Gatherer, ready func() error) {
	ops := daemon.NewOpsServer(l, reg, ready, n.log)
	n.group.Start(ctx, role+" HTTP", ops.Run)
}

// waitReady asks a role until it is ready, ctx ends, a role has ended, or the
// role says what waiting cannot mend.
func (n *node) waitReady(ctx context.Context, what string, ready func() error) error {
	ctx, release := n.group.Bound(ctx)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(pollInterval / 2)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil || errors.Is(err, errs.Invalid) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errs.E(errs.Timeout, "start", what, err)
		}
	}
}

// startLimit is how long a role may take to be ready in `up`, recovery of a
// large cache included.
const startLimit = 2 * time.Minute

// socket is one TCP socket that a role listens on: where its listener goes,
// its name in addresses.json, what it is, its address, and what moves it.
type socket struct {
	to                          *net.Listener
	name, what, addr, flag, key string
}

func (n *node) listenAll(ctx context.Context, role string, sockets []socket) (err error) {
	for _, s := range sockets {
		if *s.to, err = n.listen(ctx, role, s.name, tcp(s.what, s.addr, s.flag, s.key)); err != nil {
			return err
		}
	}
	return nil
}

// masterListeners are the sockets of a master.
type masterListeners struct{ grpc, raft, http net.Listener }

func (n *node) listenMaster(ctx context.Context) (l masterListeners, err error) {
	c := &n.settings.Master
	err = n.listenAll(ctx, masterRole, []socket{
		{&l.grpc, "grpc", "the master's gRPC", c.Listen, "--master-port", "master.listen"},
		{&l.raft, "raft", "the master's Raft", c.RaftListen, "--raft-port", "master.raft_listen"},
		{&l.http, "http", "the master's HTTP", c.HTTPListen, "--master-http-port", "master.http_listen"},
	})
	return l, err
}

func tcp(what, addr, flag, key string) daemon.Endpoint {
	return daemon.Endpoint{What: what, Network: "tcp", Address: addr, Setting: flag + " or " + key}
}

// startMaster makes the master and starts it.
func (n *node) startMaster(ctx context.Context, l masterListeners) (*cachemaster.Master, error) {
	if err := os.MkdirAll(n.settings.Master.DataDir, 0o700); err != nil {
		return nil, errs.Wrap(err, "make data directory", n.settings.Master.DataDir)
	}
	reg := daemon.NewRegistry(n.settings.Cluster.Instance)
	m, err := cachemaster.New(n.settings.Master.Config, cachemaster.Deps{
		UFS: underStores(), GRPC: l.grpc, Raft: l.raft, HTTPAddr: l.http.Addr().String(), DataDir: n.settings.Master.DataDir,
		Masters: n.settings.Cluster.Masters,
	}, n.log.With("role", "master"), reg)
	if err != nil {
		return nil, err
	}
	n.startOps(ctx, "master", l.http, reg, m.Ready)
	n.group.Start(ctx, "master", m.Run)
	return m, nil
}

// workerListeners are the sockets of a worker.
type workerListeners struct{ grpc, data, http, unix net.Listener }

func (n *node) listenWorker(ctx context.Context) (l workerListeners, err error) {
	c := &n.settings.Worker
	err = n.listenAll(ctx, workerRole, []socket{
		{&l.grpc, "grpc", "the worker's gRPC", c.Listen, "--worker-port", "worker.listen"},
		{&l.data, "data", "the worker's data plane", c.DataListen, "--data-port", "worker.data_listen"},
		{&l.http, "http", "the worker's HTTP", c.HTTPListen, "--worker-http-port", "worker.http_listen"},
	})
	if err != nil {
		return l, err
	}
	socket := c.UnixSocket
	if socket == "" {
		if socket, err = daemon.SocketPath(c.DataDir, "worker.sock"); err != nil {
			return l, err
		}
	}
	l.unix, err = n.listen(ctx, workerRole, "unix", daemon.Endpoint{
		What: "the worker's data plane", Network: "unix", Address: socket, Setting: "worker.unix_socket",
	})
	return l, err
}

// startWorker opens the cache directories, makes the worker and starts both.
func (n *node) startWorker(ctx context.Context, l workerListeners, masters []string) (*cacheworker.Worker, error) {
	c := &n.settings.Worker
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, errs.Wrap(err, "make data directory", c.DataDir)
	}
	id, err := cacheworker.LoadIdentity(c.DataDir)
	if err != nil {
		return nil, err
	}
	caches, err := n.readyCaches(ctx, id.ClusterID)
	if err != nil {
		return nil, err
	}
	host := n.settings.Cluster.HostID
	if host == "" {
		if host, err = cacheworker.BootID(); err != nil {
			return nil, err
		}
	}
	reg := daemon.NewRegistry(n.settings.Cluster.Instance)
	log := n.log.With("role", "worker")
	// The store tells the worker, which is made with the store.
	var worker atomic.Pointer[cacheworker.Worker]
	store, err := tier.Open(caches, tier.Options{
		ClusterID: id.ClusterID,
		Moves:     c.MoveConfig,
		OnChange: func(b tier.BlockState) {
			if w := worker.Load(); w != nil {
				w.OnBlockChange(b)
			}
		},
		Refetch: func(ctx context.Context, f tier.File, page int64) ([]byte, error) {
			w := worker.Load()
			if w == nil {
				return nil, errs.E(errs.Unavailable, "", "", errors.New("the worker is not made yet"))
			}
			return w.Refetch(ctx, f, page)
		},
	}, log, reg)
	if err != nil {
		return nil, explainCache(err)
	}
	n.closers = append(n.closers, store.Close)
	w, err := cacheworker.New(c.Config, cacheworker.Deps{
		Store: store, UFS: underStores(), Masters: masters, GRPC: l.grpc, Data: l.data, Unix: l.unix,
		HTTPAddr: l.http.Addr().String(), DataDir: c.DataDir, BootID: host,
	}, log, reg)
	if err != nil {
		return nil, err
	}
	worker.Store(w)
	n.group.Start(ctx, "cache directories", store.Run)
	n.startOps(ctx, "worker", l.http, reg, w.Ready)
	n.group.Start(ctx, "worker", w.Run)
	return w, nil
}

// mountSpec is what a FUSE mount is made of.
type mountSpec struct {
	point, root string
	masters     []string
	http        net.Listener
}

// startMount starts the client of a mount and the mount itself, and waits
// until it is mounted.
func (n *node) startMount(ctx context.Context, spec mountSpec) error {
	reg := daemon.NewRegistry(n.settings.Cluster.Instance)
	log := n.log.With("role", "mount")
	c, err := client.Dial(ctx, n.settings.clientConfig(spec.masters), log, reg)
	if err != nil {
		return err
	}
	n.group.Start(ctx, "mount's client", func(ctx context.Context) error {
		<-ctx.Done()
		return c.Close()
	})
	cfg := n.settings.FUSE.Config
	cfg.Masters = spec.masters
	m, err := fuse.New(cfg, spec.point, spec.root, fuse.ClientOf(c), log, reg)
	if err != nil {
		return err
	}
	n.startOps(ctx, "mount", spec.http, reg, func() error {
		select {
		case <-m.Ready():
			return nil
		default:
			return errors.New("not mounted yet")
		}
	})
	n.group.Start(ctx, "FUSE", func(ctx context.Context) error {
		err := m.Run(ctx)
		if err == nil && ctx.Err() == nil {
			n.log.InfoContext(ctx, "somebody unmounted, which ends the process", "mount_point", spec.point)
			return daemon.ErrDone
		}
		return err
	})
	bound, release := n.group.Bound(ctx)
	defer release()
	select {
	case <-m.Ready():
		return nil
	case <-bound.Done():
		return fmt.Errorf("mount %s: %w", spec.point, context.Cause(bound))
	}
}

// makeMountPoint makes a mount point that does not exist, and returns what
// takes it away again.
func makeMountPoint(point string) (remove func() error, err error) {
	if err := os.Mkdir(point, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return func() error { return nil }, nil
		}
		return nil, errs.Wrap(err, "make mount point", point)
	}
	return func() error { return os.Remove(point) }, nil
}

// absolute returns an absolute path for what the user called a directory.
func absolute(path string) (string, error) {
	path, err := expandHome(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
