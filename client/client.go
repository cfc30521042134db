package client

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
)

const (
	reportEvery   = time.Second      // while counters change
	reportAnyway  = 10 * time.Second // so that a new leader learns them
	reportTimeout = 2 * time.Second
	// maxBackground bounds what is under way beside the reads: renewals of
	// tickets, questions for local files, looks if a worker is there.
	maxBackground = 16

	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// Client is a connection to a cluster. It is safe for concurrent use.
type Client struct {
	cfg     Config
	id      string // random, one for each Client
	log     *slog.Logger
	clock   clock
	masters *masters
	members *members
	workers *workers
	entries *lru.Cache[string, *Entry] // files whose tickets Open may use again
	// doubted are paths of which a worker found the version gone: the master
	// is to look at the under-store before it answers for them again.
	doubted *lru.Cache[string, struct{}]

	descriptors      *descriptors
	attempts         attempts
	hedges           *budget
	hedgesBegun      atomic.Int64
	hedgesWon        atomic.Int64
	opensCopy        atomic.Int64
	opensPassthrough atomic.Int64

	stop       context.CancelFunc
	running    sync.WaitGroup
	slots      chan struct{} // of background work
	start      func(func(context.Context))
	unregister func()

	closing sync.RWMutex // held to start a goroutine beside closed
	closed  atomic.Bool
}

// maxDoubted bounds the paths whose version was found gone and that nobody
// has asked about since.
const maxDoubted = 1024

// Dial makes a client of the cluster whose masters cfg names. It waits for
// nothing: no master needs to be up. ctx is for Dial alone; the client lives
// until Close. log is required, reg may be nil.
func Dial(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, errs.E(errs.Invalid, "client", "", err)
	}
	entries, err := lru.New[string, *Entry](cfg.EntryCache)
	if err != nil {
		return nil, errs.E(errs.Invalid, "client", "", err)
	}
	doubted, err := lru.New[string, struct{}](maxDoubted)
	if err != nil {
		return nil, errs.E(errs.Internal, "client", "", err)
	}
	c := &Client{
		cfg: cfg, id: rand.Text(), log: log, clock: newClock(), entries: entries, doubted: doubted,
		slots: make(chan struct{}, maxBackground), hedges: newBudget(cfg.HedgeShare),
	}
	if c.descriptors, err = newDescriptors(&c.cfg, c.clock, log); err != nil {
		return nil, err
	}
	if c.unregister, err = c.register(reg); err != nil {
		return nil, errs.E(errs.Exists, "client metrics", "", err)
	}
	c.masters = newMasters(&c.cfg)
	c.workers = newWorkers(&c.cfg, cfg.hostID(), log)
	c.members = newMembers(c.masters, c.workers.local, log, c.workers.keep)

	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.start = func(f func(context.Context)) { c.running.Go(func() { f(life) }) }
	c.start(c.members.run)
	c.start(c.report)
	c.start(func(ctx context.Context) { c.descriptors.run(ctx, c.workers) })
	return c, nil
}

// hostID returns what tells this host from others, its boot ID where nothing
// else is set; "" if it has none: then no worker counts as local.
func (c *Config) hostID() string {
	if c.HostID != "" {
		return c.HostID
	}
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Close tells the masters the last counters and ends all that the client
// started. Reads under way fail.
func (c *Client) Close() error {
	c.closing.Lock()
	again := c.closed.Swap(true)
	c.closing.Unlock()
	if again {
		return nil
	}
	c.stop()
	c.running.Wait()
	c.descriptors.close()
	c.workers.close()
	c.unregister()
	return c.masters.close()
}

// background runs f in a goroutine of the client, unless too many run, and
// reports whether it does.
func (c *Client) background(f func(context.Context)) bool {
	c.closing.RLock()
	defer c.closing.RUnlock()
	if c.closed.Load() {
		return false
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return false
	}
	c.start(func(ctx context.Context) {
		defer func() { <-c.slots }()
		f(ctx)
	})
	return true
}

// CountOpen counts a file that was opened for a program: by handing the
// kernel a descriptor (passthrough) or by copying. The masters add the counts
// of all clients up.
func (c *Client) CountOpen(passthrough bool) {
	if passthrough {
		c.opensPassthrough.Add(1)
	} else {
		c.opensCopy.Add(1)
	}
}

func (c *Client) counters() *api.Counters {
	return &api.Counters{
		BytesServed: c.descriptors.bytes.Load(),
		OpensCopy:   c.opensCopy.Load(), OpensPassthrough: c.opensPassthrough.Load(),
	}
}

// report tells the masters the counters while they change, and once at the
// end.
func (c *Client) report(ctx context.Context) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	var sent [3]int64
	var at time.Time
	send := func(ctx context.Context, anyway bool) {
		counts := c.counters()
		now := [...]int64{counts.GetOpensCopy(), counts.GetOpensPassthrough(), counts.GetBytesServed()}
		if now == sent && !anyway {
			return
		}
		if err := c.sendReport(ctx, counts); err != nil {
			c.log.LogAttrs(ctx, slog.LevelDebug, "report counters", slog.Any("error", err))
			return
		}
		sent, at = now, time.Now()
	}
	for {
		select {
		case <-ticker.C:
			send(ctx, sent != [3]int64{} && time.Since(at) >= reportAnyway)
		case <-ctx.Done():
			send(context.WithoutCancel(ctx), false)
			return
		}
	}
}

func (c *Client) sendReport(ctx context.Context, counts *api.Counters) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	req := &api.ReportClientRequest{ClientId: c.id, Counters: counts}
	return c.masters.call(ctx, "report", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := api.NewClusterServiceClient(cc).ReportClient(ctx, req)
		return err
	})
}

// register adds the client's metrics to reg.
func (c *Client) register(reg prometheus.Registerer) (undo func(), err error) {
	if reg == nil {
		return func() {}, nil
	}
	counter := func(name, help, label, value string, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_client_" + name, Help: help, ConstLabels: prometheus.Labels{label: value},
		}, func() float64 { return float64(v.Load()) })
	}
	const (
		opens  = "Files opened for programs, by how they are read."
		hedges = "Reads of a slow worker for which a second one was asked, begun and won."
	)
	var done []prometheus.Collector
	undo = func() {
		for _, m := range done {
			reg.Unregister(m)
		}
	}
	for _, m := range []prometheus.Collector{
		counter("opens_total", opens, "mode", "copy", &c.opensCopy),
		counter("opens_total", opens, "mode", "passthrough", &c.opensPassthrough),
		counter("hedges_total", hedges, "event", "begun", &c.hedgesBegun),
		counter("hedges_total", hedges, "event", "won", &c.hedgesWon),
	} {
		if err := reg.Register(m); err != nil {
			undo()
			return nil, err
		}
		done = append(done, m)
	}
	return undo, nil
}
