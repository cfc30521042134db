package cacheworker

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
)

// maxMasters bounds the masters that a worker reports to.
const maxMasters = 16

// mastersFile holds, in the worker's data directory, the addresses of the
// masters as they last named each other, as a JSON array: a worker that starts
// when those that it was configured with have left finds the others.
const mastersFile = "masters.json"

// masterSet are the masters that the worker reports to: those that it was
// configured with and those that they name, so that one which joins the group
// knows the worker before it may lead. A master that is reached by two
// addresses is reported to by one of them: its reports have one order.
type masterSet struct {
	cfg  Config
	self self
	log  *slog.Logger

	list atomic.Pointer[[]*link] // the configured ones first; replaced under mu
	news chan struct{}           // one element: there is a new one

	mu   sync.Mutex
	name string   // of the file
	kept []string // what it holds
}

// link is one address of a master.
type link struct {
	addr       string
	configured bool // else it was named by another master
	conn       *grpc.ClientConn
	reporter   *reporter
	finder     finder

	id string // of the master; "" before the first contact; guarded by the set's lock
}

func newMasterSet(cfg Config, addrs []string, dataDir string, s self, log *slog.Logger) (*masterSet, error) {
	m := &masterSet{cfg: cfg, self: s, log: log, news: make(chan struct{}, 1), name: filepath.Join(dataDir, mastersFile)}
	if err := m.load(); err != nil {
		return nil, err
	}
	var all []*link
	for i, addr := range append(slices.Clone(addrs), m.kept...) {
		if slices.ContainsFunc(all, func(l *link) bool { return l.addr == addr }) {
			continue
		}
		l, err := m.dial(addr)
		if err != nil {
			m.close()
			return nil, err
		}
		l.configured = i < len(addrs)
		all = append(all, l)
		m.list.Store(&all)
	}
	return m, nil
}

// load reads which masters there were when the worker last heard of them.
func (m *masterSet) load() error {
	b, err := os.ReadFile(m.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(err, "read the masters", m.name)
	}
	if err := json.Unmarshal(b, &m.kept); err != nil {
		return errs.E(errs.Corrupt, "read the masters", m.name, err)
	}
	m.kept = m.kept[:min(len(m.kept), maxMasters)]
	return nil
}

// keep notes which masters there are. mu is held.
func (m *masterSet) keep(group []*api.MasterAddress) {
	var addrs []string
	for _, master := range group {
		if master.GetGrpc() != "" && len(addrs) < maxMasters {
			addrs = append(addrs, master.GetGrpc())
		}
	}
	slices.Sort(addrs)
	if len(addrs) == 0 || slices.Equal(addrs, m.kept) {
		return
	}
	b, err := json.Marshal(addrs)
	if err == nil {
		err = renameio.WriteFile(m.name, append(b, '\n'), 0o600)
	}
	if err != nil {
		m.log.Warn("noting which masters there are", "err", err)
		return
	}
	m.kept = addrs
}

// links returns those of now, which do not change.
func (m *masterSet) links() []*link {
	if m == nil || m.list.Load() == nil {
		return nil
	}
	return *m.list.Load()
}

// dial makes a link; its connection opens at first use.
func (m *masterSet) dial(addr string) (*link, error) {
	conn, err := rpcconn.Dial(addr)
	if err != nil {
		return nil, err
	}
	r := newReporter(addr, api.NewWorkerRegistryServiceClient(conn), m.self, m.cfg, m.log)
	r.met = m.met
	return &link{addr: addr, conn: conn, reporter: r, finder: api.NewLocationServiceClient(conn)}, nil
}

// met is told who answers a reporter, and which masters there are. It reports
// whether the reporter is to go on: not if another one reports to that master.
func (m *masterSet) met(r *reporter, id string, group []*api.MasterAddress) (goOn bool) {
	if id == "" {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.links()
	mine := slices.IndexFunc(all, func(l *link) bool { return l.reporter == r })
	if mine < 0 {
		return false
	}
	all[mine].id = id
	twin := func(l *link) bool { return l.id == id && l.reporter != r && l.reporter.inContact.Load() }
	if slices.ContainsFunc(all[:mine], twin) {
		m.drop(all[mine])
		return false
	}
	for _, l := range all[mine+1:] {
		if twin(l) {
			m.drop(l)
			l.reporter.retire()
		}
	}
	for _, other := range group {
		m.learn(other)
	}
	m.forgetAllBut(group)
	m.keep(group)
	return true
}

// forgetAllBut drops the masters that were learned of and have left the group
// since, or have another address. mu is held.
func (m *masterSet) forgetAllBut(group []*api.MasterAddress) {
	if len(group) == 0 {
		return
	}
	for _, l := range m.links() {
		named := slices.ContainsFunc(group, func(a *api.MasterAddress) bool { return a.GetGrpc() == l.addr })
		if l.configured || named || l.reporter.inContact.Load() {
			continue
		}
		m.log.Info("reporting no more to a master that has left", "address", l.addr)
		m.drop(l)
		l.reporter.retire()
	}
}

// learn begins to report to a master, unless it is reported to already, or may
// be, by an address that is tried. mu is held.
func (m *masterSet) learn(master *api.MasterAddress) {
	all := m.links()
	known := slices.ContainsFunc(all, func(l *link) bool {
		return l.addr == master.GetGrpc() || (l.id == master.GetId() && l.reporter.inContact.Load())
	})
	if known || len(all) >= maxMasters || master.GetGrpc() == "" {
		return
	}
	l, err := m.dial(master.GetGrpc())
	if err != nil {
		m.log.Warn("a master has an address of no use", "master", master.GetId(), "err", err)
		return
	}
	m.log.Info("reporting to a further master", "master", master.GetId(), "address", l.addr)
	next := append(slices.Clone(all), l)
	m.list.Store(&next)
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// drop forgets a link, whose reporter ends. mu is held.
func (m *masterSet) drop(gone *link) {
	_ = gone.conn.Close() // its calls under way fail
	left := slices.DeleteFunc(slices.Clone(m.links()), func(l *link) bool { return l == gone })
	m.list.Store(&left)
}

// run reports to all masters until ctx ends.
func (m *masterSet) run(ctx context.Context) {
	var g errgroup.Group
	begun := make(map[*link]bool)
	for {
		for _, l := range m.links() {
			if begun[l] {
				continue
			}
			begun[l] = true
			g.Go(func() error { l.reporter.run(ctx); return nil })
		}
		select {
		case <-m.news:
		case <-ctx.Done():
			_ = g.Wait() // none fails
			return
		}
	}
}

// last tells each master that listens what changed until the end, as far as
// that can be told in time.
func (m *masterSet) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	var g sync.WaitGroup
	for _, l := range m.links() {
		g.Go(func() { l.reporter.last(ctx) })
	}
	g.Wait()
}

func (m *masterSet) close() {
	for _, l := range m.links() {
		_ = l.conn.Close() // it fails only if it is closed
	}
}

// finders are the masters that answered last, or all if none did.
func (m *masterSet) finders() []finder {
	var all, answer []finder
	for _, l := range m.links() {
		all = append(all, l.finder)
		if l.reporter.inContact.Load() {
			answer = append(answer, l.finder)
		}
	}
	if len(answer) > 0 {
		return answer
	}
	return all
}
