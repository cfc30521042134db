package cacheworker

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/tier"
	"millrace/ufs"
)

// Deps are what a worker stands on. It closes the listeners and nothing else.
type Deps struct {
	Store    *tier.Store  // opened; run, flushed and closed by its owner after Run has returned
	UFS      ufs.Registry // the kinds of under-stores
	Masters  []string     // gRPC addresses, HOST:PORT
	GRPC     net.Listener // for masters
	Data     net.Listener // for clients and other workers
	Unix     net.Listener // the same for this host; may be nil
	HTTPAddr string       // where the owner serves metrics; "" for nowhere
	DataDir  string       // holds the identity, the mount table and the masters' addresses
	BootID   string       // see BootID
	// AdvertiseHost is the host name or address by which others reach
	// listeners that are bound to all addresses; "" is the host's name.
	AdvertiseHost string
	// Data plane bounds; the zero value is blockio's default.
	DataPlane blockio.ServerConfig
}

// Worker serves cached blocks. Make it with New; all its methods are safe for
// concurrent use.
type Worker struct {
	cfg       Config
	log       *slog.Logger
	tier      *tier.Store
	deps      Deps
	addresses *api.WorkerAddresses
	identity  *identity
	mounts    *mountTable
	fetcher   *fetcher
	loader    *loader
	aheads    *aheads
	heat      *heat
	counters  *counters
	data      *blockio.Server
	masters   *masterSet

	placement atomic.Pointer[api.Placement]
	placed    *ownership  // by the same
	isKnown   atomic.Bool // to the cluster
	// refusal is why the worker cannot join the cluster of the master that it
	// last heard of; nil if it can.
	refusal    atomic.Pointer[error]
	isServing  atomic.Bool
	stopping   chan struct{} // closed when nothing more is admitted
	beginStop  sync.Once
	adoptMutex sync.Mutex // orders what masters say
}

// New makes a worker with the identity that deps.DataDir holds, or a new one,
// and begins a new start epoch. It starts nothing and calls nobody.
func New(cfg Config, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, errs.E(errs.Invalid, "configure worker", "", err)
	}
	if err := os.MkdirAll(deps.DataDir, 0o700); err != nil {
		return nil, errs.Wrap(err, "make data directory", deps.DataDir)
	}
	id, err := startIdentity(deps.DataDir, time.Now())
	if err != nil {
		return nil, err
	}
	if deps.DataPlane.MaxConnections == 0 {
		deps.DataPlane = blockio.DefaultServerConfig()
		deps.DataPlane.DrainTimeout = cfg.DrainTimeout
		deps.DataPlane.CongestionControl = cfg.CongestionControl
		deps.DataPlane.DescriptorUIDs = cfg.DescriptorUIDs
	}
	w := &Worker{
		cfg: cfg, log: log, tier: deps.Store, deps: deps, identity: id,
		counters: &counters{}, stopping: make(chan struct{}), placed: &ownership{self: id.current().WorkerID}, heat: newHeat(),
	}
	// What is fetched ahead must not be evicted before its reader comes.
	w.aheads = newAheads(min(int64(cfg.ReadaheadMax), w.capacity().least/aheadShare))
	if err := w.counters.register(reg); err != nil {
		return nil, err
	}
	if w.addresses, err = addressesOf(deps); err != nil {
		return nil, err
	}
	w.mounts = &mountTable{
		registry: deps.UFS, observer: w.counters, concurrency: int64(cfg.FetchConcurrency),
		drop: w.dropMount, recall: w.tier.RecallAll, log: log,
	}
	if err := w.mounts.load(deps.DataDir); err != nil {
		return nil, err
	}
	w.fetcher = newFetcher(cfg, deps.Store, w.mounts, w.placed, w.counters, log)
	w.loader = newLoader(w, cfg.LoadConcurrency, w.capacity().most)
	w.data = blockio.NewServer(deps.DataPlane, blockio.Identity{WorkerID: id.current().WorkerID, BootID: deps.BootID}, w, log, reg)
	if w.masters, err = newMasterSet(cfg, deps.Masters, deps.DataDir, w, log); err != nil {
		return nil, err
	}
	w.fetcher.peers = newPeers(cfg, w)
	return w, nil
}

// addressesOf says where others reach the listeners.
func addressesOf(deps Deps) (*api.WorkerAddresses, error) {
	advertise := func(l net.Listener) (string, error) {
		tcp, ok := l.Addr().(*net.TCPAddr)
		if !ok || !tcp.IP.IsUnspecified() {
			return l.Addr().String(), nil
		}
		host := deps.AdvertiseHost
		if host == "" {
			var err error
			if host, err = os.Hostname(); err != nil {
				return "", errs.Wrap(err, "find the host's name", "")
			}
		}
		_, port, err := net.SplitHostPort(tcp.String())
		return net.JoinHostPort(host, port), err
	}
	a := &api.WorkerAddresses{Http: deps.HTTPAddr, BootId: deps.BootID}
	var errGRPC, errData error
	a.Grpc, errGRPC = advertise(deps.GRPC)
	a.Data, errData = advertise(deps.Data)
	if deps.Unix != nil {
		a.UnixSocket = deps.Unix.Addr().String()
	}
	return a, errors.Join(errGRPC, errData)
}

// ID returns the worker's stable ID.
func (w *Worker) ID() block.WorkerID { return w.identity.current().WorkerID }

// OnBlockChange is to be the tier's Options.OnChange: it passes on to the
// masters what the tier holds of a block. It may be called before Run.
func (w *Worker) OnBlockChange(s tier.BlockState) {
	for _, l := range w.masters.links() {
		l.reporter.changes.note(s)
	}
}

// Ready returns nil when the worker serves and the cluster knows it. It is
// errs.Invalid if the worker or a directory of its belongs to another cluster.
func (w *Worker) Ready() error {
	switch {
	case !w.isServing.Load():
		return errs.E(errs.Unavailable, "", "", errors.New("the worker is not serving"))
	case w.refusal.Load() != nil && *w.refusal.Load() != nil:
		return *w.refusal.Load()
	case !w.isKnown.Load():
		return errs.E(errs.Unavailable, "", "", errors.New("the worker is not registered with a master yet"))
	}
	return nil
}

// Run serves until ctx ends or a listener fails, and returns when everything
// it started has ended. The order of the stop is: admit no more requests and
// leave the masters, let requests in flight end, end tasks and flights, close
// the under-stores, tell the masters what is cached in the end. The tier is its
// owner's to flush, after Run. Each step takes its bounded time; a request to an
// under-store that neither answers nor can be canceled is left behind.
func (w *Worker) Run(ctx context.Context) error {
	rpcs := grpc.NewServer(rpcconn.ServerOptions()...)
	api.RegisterWorkerServiceServer(rpcs, rpc{w: w})

	w.mounts.resume()
	// The group's context ends with ctx or with the first that fails, which
	// ends the others in the order above.
	g, gctx := errgroup.WithContext(ctx)
	listeners := []net.Listener{w.deps.Data}
	if w.deps.Unix != nil {
		listeners = append(listeners, w.deps.Unix)
	}
	for _, l := range listeners {
		g.Go(func() error { return w.data.Serve(gctx, l) })
	}
	g.Go(func() error {
		err := rpcs.Serve(w.deps.GRPC)
		if gctx.Err() != nil {
			return nil //nolint:nilerr // it was told to stop
		}
		return errs.Wrap(err, "serve", w.deps.GRPC.Addr().String())
	})
	g.Go(func() error {
		<-gctx.Done()
		w.isServing.Store(false)
		w.beginStop.Do(func() { close(w.stopping) }) // ends load tasks
		w.stopRPCs(rpcs)
		return nil
	})
	g.Go(func() error { w.masters.run(gctx); return nil })
	w.isServing.Store(true)
	w.log.Info("worker serves", "id", string(w.ID()), "epoch", w.identity.current().StartEpoch,
		"grpc", w.addresses.GetGrpc(), "data", w.addresses.GetData(), "unix", w.addresses.GetUnixSocket())

	err := g.Wait()
	if !w.fetcher.stop(stopPatience) {
		w.log.Warn("requests to under-stores do not end and are left behind", "after", stopPatience)
	}
	w.fetcher.peers.close()
	if !w.mounts.close(stopPatience) {
		w.log.Warn("under-stores are still in use and are left open", "after", stopPatience)
	}
	w.masters.last(context.WithoutCancel(ctx))
	w.masters.close()
	w.log.Info("worker stopped")
	return err
}

// stopPatience bounds each of the last steps of a stop.
const stopPatience = 2 * time.Second

// stopRPCs lets calls end by themselves for as long as requests may, and cuts
// off the rest.
func (w *Worker) stopRPCs(s *grpc.Server) {
	t := time.AfterFunc(w.cfg.DrainTimeout.Std(), s.Stop)
	defer t.Stop()
	s.GracefulStop()
}

// untilStop returns ctx, but ended when the worker stops. The caller calls
// release when it has no more use for it.
func (w *Worker) untilStop(ctx context.Context) (c context.Context, release func()) {
	c, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-w.stopping:
			cancel()
		case <-c.Done():
		}
	}()
	return c, func() { cancel(); <-watched }
}

// Refresh asks all masters at once for what the next heartbeat would bring,
// such as an under-store that was bound a moment ago. It returns nil if a
// majority of them answered.
func (w *Worker) Refresh(ctx context.Context) error {
	return w.refresh(ctx, func() bool { return false })
}

// refresh asks all masters for what is new until found says that it has come.
// It returns nil if found does, or a majority of the masters answered.
func (w *Worker) refresh(ctx context.Context, found func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.MasterTimeout.Std())
	defer cancel()
	masters := w.masters.links()
	answers := make(chan error, len(masters))
	asked, answered := 0, 0
	for _, l := range masters {
		select {
		case l.reporter.kicks <- answers:
			asked++
		default: // enough wait for that master already
		}
	}
	last := errors.New("no master can be asked")
	for range asked {
		select {
		case err := <-answers:
			if err != nil {
				last = err
				continue
			}
			answered++
		case <-ctx.Done():
			return ctx.Err()
		case <-w.stopping:
			return errStopping
		}
		if found() {
			return nil
		}
	}
	if answered > len(masters)/2 {
		return nil
	}
	return last
}

// dropMount forgets what is cached of a mount that was removed.
func (w *Worker) dropMount(id uint64) error {
	files, bytes, err := w.tier.Drop(id, "")
	if err != nil {
		return err
	}
	w.log.Info("dropped the pages of a removed mount", "mount", id, "files", files, "bytes", bytes)
	return nil
}

// capacities are sums over the cache directories, in bytes.
type capacities struct{ sum, least, most int64 }

func (w *Worker) capacity() capacities {
	var c capacities
	for i, d := range w.tier.Status() {
		if i == 0 {
			c.least = d.Capacity
		}
		c.sum += d.Capacity
		c.least, c.most = min(c.least, d.Capacity), max(c.most, d.Capacity)
	}
	return c
}

// registerRequest implements self.
func (w *Worker) registerRequest() *api.RegisterRequest {
	id, c := w.identity.current(), w.capacity()
	return &api.RegisterRequest{
		WorkerId: string(id.WorkerID), ClusterId: id.ClusterID, Addresses: w.addresses,
		CapacityBytes: c.sum, SmallestDirBytes: c.least,
	}
}

// heartbeatRequest implements self.
func (w *Worker) heartbeatRequest() *api.HeartbeatRequest {
	id, stats := w.identity.current(), w.tier.Stats()
	in := &api.HeartbeatRequest{
		WorkerId: string(id.WorkerID), StartEpoch: id.StartEpoch, Addresses: w.addresses,
		Counters:      w.counters.proto(tierCounts{checksumErrors: stats.ChecksumErrors, evictedBytes: stats.EvictedBytes}),
		MountsVersion: w.mounts.version(), PlacementEpoch: w.placement.Load().GetEpoch(),
		Hottest: w.heat.hottest(),
	}
	for _, d := range w.tier.Status() {
		in.Tiers = append(in.Tiers, &api.Tier{
			Medium: string(d.Medium), Dir: d.Dir, CapacityBytes: d.Capacity,
			UsedBytes: d.Used, HeldBytes: d.Held, State: d.State,
		})
	}
	return in
}

// who implements self.
func (w *Worker) who() (id string, epoch uint64) {
	i := w.identity.current()
	return string(i.WorkerID), i.StartEpoch
}

// adopt implements self.
func (w *Worker) adopt(clusterID string, mounts *api.Mounts, p *api.Placement) error {
	w.adoptMutex.Lock()
	defer w.adoptMutex.Unlock()
	err := w.join(clusterID)
	w.refusal.Store(&err)
	if err != nil {
		return err
	}
	if p.GetEpoch() > w.placement.Load().GetEpoch() {
		w.placement.Store(p)
		w.placed.Store(placementOf(p))
		w.data.SetPlacementEpoch(p.GetEpoch())
	}
	if mounts == nil {
		return nil
	}
	return w.mounts.apply(mounts)
}

// join binds the worker and its directories to the cluster of a master.
func (w *Worker) join(clusterID string) error {
	if w.identity.current().ClusterID == "" && clusterID != "" {
		// Before the worker joins: a directory of another cluster must refuse
		// every attempt, not the first alone.
		if err := w.tier.BindCluster(clusterID); err != nil {
			return err
		}
	}
	return w.identity.join(clusterID)
}

// registered implements self.
func (w *Worker) registered() {
	if !w.isKnown.Swap(true) {
		w.log.Info("worker is registered", "id", string(w.ID()), "cluster", w.identity.current().ClusterID)
	}
}

// blocks implements self.
func (w *Worker) blocks() iter.Seq[tier.BlockState] { return w.tier.Blocks() }
