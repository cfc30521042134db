package cachemaster

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/internal/size"
	"millrace/ufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memStore is an under-store in memory that counts what it is asked and can
// be made to fail.
type memStore struct {
	mu       sync.Mutex
	files    map[string]string // path -> content
	order    []string          // the paths, sorted; nil after a change
	stats    int
	lists    int
	opens    int
	closes   int
	pages    int           // of listings: requests to a server that gives 1,000 entries at a time
	fail     error         // of every request
	failList error         // of every listing
	hold     chan struct{} // requests wait for it, if set
	listFail map[int]error // error in place of item n of a recursive listing, once
}

func newMemStore(files map[string]string) *memStore {
	if files == nil {
		files = map[string]string{}
	}
	return &memStore{files: files, listFail: map[int]error{}}
}

func (s *memStore) asked() (stats, lists int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats, s.lists
}

// requests is what a server would have been asked.
func (s *memStore) requests() (heads, pages int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats, s.pages
}

func (s *memStore) set(p, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[p] = content
	s.order = nil
}

func (s *memStore) remove(p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, p)
}

func (s *memStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *memStore) info(p string) ufs.Info {
	return ufs.Info{Path: p, Type: ufs.File, Size: int64(len(s.files[p])), Tag: s.files[p], MTime: time.Unix(1000, 0)}
}

func (s *memStore) wait(ctx context.Context) error {
	s.mu.Lock()
	hold, fail := s.hold, s.fail
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (s *memStore) Stat(ctx context.Context, p string) (ufs.Info, error) {
	s.mu.Lock()
	s.stats++
	s.mu.Unlock()
	if err := s.wait(ctx); err != nil {
		return ufs.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.files[p]; ok {
		return s.info(p), nil
	}
	if p == "" || slices.ContainsFunc(s.sorted(), func(f string) bool { return strings.HasPrefix(f, p+"/") }) {
		return ufs.Info{Path: p, Type: ufs.Dir}, nil
	}
	return ufs.Info{}, errs.E(errs.NotFound, "stat", p, nil)
}

func (s *memStore) sorted() []string {
	if s.order == nil {
		s.order = slices.Sorted(maps.Keys(s.files))
	}
	return s.order
}

func (s *memStore) listing(dir string, o ufs.ListOptions) ([]ufs.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
	var found []ufs.Info
	exists := dir == ""
	for _, p := range s.sorted() {
		rest, ok := strings.CutPrefix(p, prefix)
		if !ok {
			continue
		}
		exists = true
		name, _, deep := strings.Cut(rest, "/")
		switch {
		case o.Recursive && p <= o.After && o.After != "":
		case o.Recursive, !deep:
			found = append(found, s.info(p))
		case len(found) == 0 || found[len(found)-1].Path != prefix+name:
			found = append(found, ufs.Info{Path: prefix + name, Type: ufs.Dir})
		}
	}
	if _, ok := s.files[dir]; ok && !exists {
		return nil, errs.E(errs.NotDir, "list", dir, nil)
	}
	if !exists {
		return nil, errs.E(errs.NotFound, "list", dir, nil)
	}
	return found, nil
}

func (s *memStore) List(ctx context.Context, dir string, o ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		s.mu.Lock()
		s.lists++
		s.pages++
		failList := s.failList
		s.mu.Unlock()
		err := errors.Join(s.wait(ctx), failList)
		var infos []ufs.Info
		if err == nil {
			infos, err = s.listing(dir, o)
		}
		if err != nil {
			yield(ufs.Info{}, err)
			return
		}
		for i, info := range infos {
			s.mu.Lock()
			if i > 0 && i%1000 == 0 {
				s.pages++
			}
			fail := s.listFail[i]
			if o.Recursive {
				delete(s.listFail, i)
			}
			s.mu.Unlock()
			if fail != nil && o.Recursive {
				yield(ufs.Info{}, fail)
				return
			}
			if !yield(info, ctx.Err()) {
				return
			}
		}
	}
}

func (s *memStore) Read(context.Context, ufs.Object, block.Extent) (io.ReadCloser, error) {
	return nil, errs.E(errs.Unsupported, "read", "", nil)
}

func (s *memStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closes++
	return nil
}

// handles returns how often the store was opened and closed.
func (s *memStore) handles() (opens, closes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens, s.closes
}

// registry makes under-stores of the scheme "mem", by the rest of their URI.
func registry(stores map[string]*memStore) ufs.Registry {
	return ufs.Registry{"mem": func(_ context.Context, cfg ufs.Config) (ufs.Store, error) {
		if err := ufs.CheckOptions(cfg, "color"); err != nil {
			return nil, err
		}
		s, ok := stores[strings.TrimPrefix(cfg.URI, "mem://")]
		if !ok {
			return nil, errs.E(errs.NotFound, "open under-store", cfg.URI, errors.New("no such bucket"))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opens++
		return s, nil
	}}
}

// testClock is a clock that tests move.
type testClock struct {
	mu     sync.Mutex
	ahead  time.Duration
	timers map[*testTimer]struct{}
}

// testTimer waits for the time of a testClock to come, by itself or by a move.
type testTimer struct {
	at     time.Time
	passed chan time.Time
	fire   func() // once
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *testClock) After(d time.Duration) (passed <-chan time.Time, stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &testTimer{at: time.Now().Add(c.ahead + d), passed: make(chan time.Time, 1)}
	t.fire = sync.OnceFunc(func() { t.passed <- t.at })
	alone := time.AfterFunc(d, t.fire)
	if c.timers == nil {
		c.timers = map[*testTimer]struct{}{}
	}
	c.timers[t] = struct{}{}
	return t.passed, func() {
		alone.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

func (c *testClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
	for t := range c.timers {
		if !t.at.After(time.Now().Add(c.ahead)) {
			t.fire()
		}
	}
}

// skip moves the clock to the moment that somebody waits for, if anybody does.
func (c *testClock) skip() {
	c.mu.Lock()
	var next time.Duration
	for t := range c.timers {
		if d := t.at.Sub(time.Now().Add(c.ahead)); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	c.mu.Unlock()
	c.advance(next)
}

func testConfig() Config {
	c := DefaultConfig()
	c.RaftHeartbeatTimeout = size.Duration(100 * time.Millisecond)
	c.RaftElectionTimeout = size.Duration(100 * time.Millisecond)
	c.RaftLeaderLeaseTimeout = size.Duration(50 * time.Millisecond)
	c.RaftCommitTimeout = size.Duration(5 * time.Millisecond)
	c.JobCommitInterval = size.Duration(20 * time.Millisecond)
	c.BlockSize = size.Bytes(block.MinBlockSize)
	return c
}

// cluster is a running master with its clients.
type cluster struct {
	m        *Master
	clock    *testClock
	conn     *grpc.ClientConn
	ns       api.NamespaceServiceClient
	ufs      api.UFSServiceClient
	jobs     api.JobServiceClient
	status   api.ClusterServiceClient
	registry api.WorkerRegistryServiceClient
	stop     func() // ends the master and waits for it
	beating  sync.WaitGroup
	quiet    chan struct{} // closed when heartbeats end
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start runs a master on dir until the test ends.
func start(t testing.TB, dir string, stores map[string]*memStore, cfg Config) *cluster {
	t.Helper()
	deps := Deps{UFS: registry(stores), GRPC: listen(t), Raft: listen(t), DataDir: dir}
	c := startWith(t, deps, cfg)
	eventually(t, "the master leads", func() bool { return c.m.Ready() == nil })
	return c
}

func startWith(t testing.TB, deps Deps, cfg Config) *cluster {
	t.Helper()
	c := &cluster{clock: &testClock{}, quiet: make(chan struct{})}
	var err error
	c.m, err = newMaster(cfg, deps, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry(), c.clock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // ended by stop, before the test's own context
	done := make(chan error, 1)
	go func() { done <- c.m.Run(ctx) }()
	c.conn = dial(t, deps.GRPC.Addr().String())
	c.stop = sync.OnceFunc(func() {
		close(c.quiet)
		c.beating.Wait()
		if err := c.conn.Close(); err != nil {
			t.Errorf("close connection: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(c.stop)
	c.ns, c.ufs = api.NewNamespaceServiceClient(c.conn), api.NewUFSServiceClient(c.conn)
	c.jobs, c.status = api.NewJobServiceClient(c.conn), api.NewClusterServiceClient(c.conn)
	c.registry = api.NewWorkerRegistryServiceClient(c.conn)
	return c
}

func dial(t testing.TB, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := rpcconn.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to pass that %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *cluster) mount(t testing.TB, p, uri string, options map[string]string) *api.UFSMount {
	t.Helper()
	r, err := c.ufs.AddUFS(t.Context(), &api.AddUFSRequest{Path: []byte(p), Uri: uri, Options: options})
	if err != nil {
		t.Fatalf("add %s at %s: %v", uri, p, err)
	}
	return r.GetMount()
}

// list returns the paths of a listing, "/" behind those of directories.
func (c *cluster) list(t testing.TB, r *api.ListRequest) ([]string, error) {
	t.Helper()
	stream, err := c.ns.List(t.Context(), r)
	if err != nil {
		return nil, err
	}
	var paths []string
	for {
		b, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return paths, nil
			}
			return paths, err
		}
		for _, e := range b.GetEntries() {
			p := string(e.GetPath())
			if e.GetType() == api.FileType_FILE_TYPE_DIR {
				p += "/"
			}
			paths = append(paths, p)
		}
	}
}

func (c *cluster) stat(t testing.TB, p string) (*api.StatReply, error) {
	t.Helper()
	r, err := c.ns.Stat(t.Context(), &api.StatRequest{Path: []byte(p), WithTicket: true})
	if err == nil && r.GetEntry() == nil {
		return r, errs.E(errs.NotFound, "stat", p, nil)
	}
	return r, err
}

func wantKind(t testing.TB, what string, err error, kind errs.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want kind %v", what, err, kind)
	}
}
