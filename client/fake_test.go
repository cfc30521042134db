package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/internal/rpcerr"
	"millrace/internal/size"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeMaster is a master that answers what the test tells it to.
type fakeMaster struct {
	api.UnimplementedNamespaceServiceServer
	api.UnimplementedUFSServiceServer
	api.UnimplementedJobServiceServer
	api.UnimplementedClusterServiceServer
	api.UnimplementedGroupServiceServer

	addr string

	mu         sync.Mutex
	leader     string        // address of who leads; empty: this one
	notLeading bool          // and it does not know who does
	frozen     chan struct{} // until it is closed, nothing is answered
	slow       chan struct{} // the same, but for who leads
	files      map[string]*api.Entry
	listing    []*api.Entry
	cutAfter   int // batches after which a listing is cut, once
	validMS    int64
	membership *api.Membership
	news       chan struct{}
	failNext   []error // for the next calls, one each
	keys       []string
	counters   map[string]*api.Counters
	looks      []string // paths of Stats that asked for a look
	seen       []uint64
	jobs       []*api.Job // what WatchJob streams; it is cut after each

	calls atomic.Int64 // of all services but the membership and the counters
}

func newFakeMaster() *fakeMaster {
	return &fakeMaster{
		files: map[string]*api.Entry{}, news: make(chan struct{}), counters: map[string]*api.Counters{},
		membership: &api.Membership{ClusterId: "c", Placement: &api.Placement{Epoch: 1, WholeFileLimit: 1 << 40}},
		validMS:    60_000,
	}
}

// serve runs the master on addr, "127.0.0.1:0" for any, until stop.
func (m *fakeMaster) serve(t *testing.T, addr string) (stop func()) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	s := grpc.NewServer(rpcconn.ServerOptions()...)
	api.RegisterNamespaceServiceServer(s, m)
	api.RegisterUFSServiceServer(s, m)
	api.RegisterJobServiceServer(s, m)
	api.RegisterClusterServiceServer(s, m)
	api.RegisterGroupServiceServer(s, m)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	stop = sync.OnceFunc(func() { s.Stop(); <-done })
	t.Cleanup(stop)
	return stop
}

// begin is what every call of the leader starts with.
func (m *fakeMaster) begin() error {
	m.calls.Add(1)
	m.mu.Lock()
	frozen, slow := m.frozen, m.slow
	m.mu.Unlock()
	for _, ch := range []chan struct{}{frozen, slow} {
		if ch != nil {
			<-ch
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.failNext) > 0 {
		err := m.failNext[0]
		m.failNext = m.failNext[1:]
		return err
	}
	if m.notLeading || m.leader != "" && m.leader != m.addr {
		return &rpcerr.NotLeader{Leader: m.leader}
	}
	return nil
}

// Leader implements api.GroupServiceServer.
func (m *fakeMaster) Leader(context.Context, *api.LeaderRequest) (*api.LeaderReply, error) {
	m.mu.Lock()
	frozen := m.frozen
	m.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.notLeading || m.leader != "" && m.leader != m.addr {
		return &api.LeaderReply{Address: m.leader}, nil
	}
	return &api.LeaderReply{Address: m.addr, Leads: true}, nil
}

func (m *fakeMaster) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// tell changes the membership and wakes who watches.
func (m *fakeMaster) tell(f func(*api.Membership)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.membership
	next := &api.Membership{
		ClusterId: old.GetClusterId(), Workers: old.GetWorkers(),
		Placement: &api.Placement{
			Epoch: old.GetPlacement().GetEpoch() + 1, WholeFileLimit: old.GetPlacement().GetWholeFileLimit(),
			Workers: old.GetPlacement().GetWorkers(),
		},
	}
	f(next)
	m.membership = next
	close(m.news)
	m.news = make(chan struct{})
}

// addFile makes a version of a file.
func (m *fakeMaster) addFile(p, tag string, length, blockSize int64, expiry time.Time) *block.Ticket {
	t := &block.Ticket{MountID: 1, Path: p[1:], Tag: tag, Length: length, BlockSize: blockSize, Expiry: expiry.Truncate(time.Millisecond).UTC()}
	if expiry.IsZero() {
		t.Expiry = time.Time{}
	}
	t.FileID = t.Derive()
	b, err := t.AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[p] = &api.Entry{
		Path: []byte(p), Type: api.FileType_FILE_TYPE_FILE, Size: length, MtimeMs: 1000, Tag: []byte(tag),
		FileId: t.FileID[:], BlockSize: blockSize, MountId: 1, Ticket: b,
	}
	return t
}

func (m *fakeMaster) Stat(_ context.Context, r *api.StatRequest) (*api.StatReply, error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = append(m.seen, r.GetSeenIndex())
	if r.GetLook() {
		m.looks = append(m.looks, string(r.GetPath()))
	}
	e := m.files[string(r.GetPath())]
	if e == nil {
		if m.validMS > 0 {
			return &api.StatReply{ValidMs: m.validMS, AppliedIndex: 5}, nil
		}
		return nil, errs.E(errs.NotFound, "stat", string(r.GetPath()), nil)
	}
	return &api.StatReply{Entry: e, ValidMs: m.validMS, AppliedIndex: 7}, nil
}

func (m *fakeMaster) List(r *api.ListRequest, s grpc.ServerStreamingServer[api.ListReply]) error {
	if err := m.begin(); err != nil {
		return err
	}
	m.mu.Lock()
	list, cut, valid := m.listing, m.cutAfter, m.validMS
	m.cutAfter = 0
	m.mu.Unlock()
	const batch = 10
	for i := 0; len(list) > 0; {
		n := min(batch, len(list))
		part := list[:n]
		list = list[n:]
		if r.GetRecursive() {
			for len(part) > 0 && bytes.Compare(part[0].GetPath(), r.GetStartAfter()) <= 0 {
				part = part[1:]
			}
		}
		if err := s.Send(&api.ListReply{Entries: part, ValidMs: valid}); err != nil {
			return err
		}
		if i++; i == cut {
			return errs.E(errs.Unavailable, "list", "", errors.New("cut"))
		}
	}
	return nil
}

func (m *fakeMaster) AddUFS(_ context.Context, r *api.AddUFSRequest) (*api.AddUFSReply, error) {
	m.set(func() { m.keys = append(m.keys, r.GetIdempotencyKey()) })
	if err := m.begin(); err != nil {
		return nil, err
	}
	return &api.AddUFSReply{Mount: &api.UFSMount{Id: 3, Path: r.GetPath(), Uri: r.GetUri()}}, nil
}

func (m *fakeMaster) Free(context.Context, *api.FreeRequest) (*api.FreeReply, error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	return &api.FreeReply{Files: 2, FreedBytes: 9}, nil
}

func (m *fakeMaster) WatchJob(_ *api.WatchJobRequest, s grpc.ServerStreamingServer[api.Job]) error {
	if err := m.begin(); err != nil {
		return err
	}
	m.mu.Lock()
	var job *api.Job
	if len(m.jobs) > 0 {
		job, m.jobs = m.jobs[0], m.jobs[1:]
	}
	m.mu.Unlock()
	if job == nil {
		return errs.E(errs.NotFound, "watch", "", nil)
	}
	if err := s.Send(job); err != nil {
		return err
	}
	return errs.E(errs.Unavailable, "watch", "", errors.New("cut"))
}

func (m *fakeMaster) Watch(_ *api.WatchRequest, s grpc.ServerStreamingServer[api.Membership]) error {
	for {
		m.mu.Lock()
		v, news := m.membership, m.news
		m.mu.Unlock()
		if err := s.Send(v); err != nil {
			return err
		}
		select {
		case <-news:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (m *fakeMaster) ReportClient(_ context.Context, r *api.ReportClientRequest) (*api.ReportClientReply, error) {
	m.set(func() { m.counters[r.GetClientId()] = r.GetCounters() })
	return &api.ReportClientReply{}, nil
}

// fakeWorker serves made-up bytes over real blockio.
type fakeWorker struct {
	id     block.WorkerID
	bootID string
	tcp    string
	unix   string

	opens, reads, closes atomic.Int64
	replicas             atomic.Int64 // reads that are to be kept as replicas

	handler blockio.Handler // in its place; nil for itself

	mu   sync.Mutex
	fail func(t *block.Ticket, e block.Extent) error
}

// serve runs the worker until stop. addr and socket may be "".
func (w *fakeWorker) serve(t *testing.T, addr, socket string) (stop func()) {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	cfg := blockio.DefaultServerConfig()
	cfg.DrainTimeout = 0
	if w.handler == nil {
		w.handler = w
	}
	s := blockio.NewServer(cfg, blockio.Identity{WorkerID: w.id, BootID: w.bootID}, w.handler, slog.New(slog.DiscardHandler), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	listen := func(network, addr string) net.Listener {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, network, addr)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.Serve(ctx, l); err != nil {
				t.Error(err)
			}
		})
		return l
	}
	w.tcp = listen("tcp", addr).Addr().String()
	if socket != "" {
		w.unix = socket
		listen("unix", socket)
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func (w *fakeWorker) info(state string) *api.WorkerInfo {
	return &api.WorkerInfo{
		Id: string(w.id), State: state,
		Addresses: &api.WorkerAddresses{Data: w.tcp, UnixSocket: w.unix, BootId: w.bootID},
	}
}

func (w *fakeWorker) failWith(f func(t *block.Ticket, e block.Extent) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = f
}

func (w *fakeWorker) Open(_ context.Context, t *block.Ticket) (blockio.File, error) {
	w.opens.Add(1)
	return &fakeFile{w, t}, nil
}

type fakeFile struct {
	w *fakeWorker
	t *block.Ticket
}

func (f *fakeFile) Read(_ context.Context, req blockio.ReadRequest, r blockio.Responder) error {
	f.w.reads.Add(1)
	if req.Replica {
		f.w.replicas.Add(1)
	}
	f.w.mu.Lock()
	fail := f.w.fail
	f.w.mu.Unlock()
	if fail != nil {
		if err := fail(f.t, req.Extent); err != nil {
			return err
		}
	}
	p := make([]byte, req.Extent.Length)
	fill(p, f.t.FileID, req.Extent.Offset)
	g := f.t.Geometry()
	for page := g.PageOf(req.Extent.Offset); page < g.Pages(); page++ {
		e := g.Page(page)
		if e.Offset < req.Extent.Offset {
			continue
		}
		if e.End() > req.Extent.End() {
			break
		}
		r.PageCRC(page, block.Checksum(p[e.Offset-req.Extent.Offset:][:e.Length]))
	}
	return r.Write(p)
}

func (f *fakeFile) Close() error {
	f.w.closes.Add(1)
	return nil
}

// fill makes up the bytes of a file at off.
func fill(p []byte, id block.FileID, off int64) {
	seed := binary.LittleEndian.Uint64(id[:])
	var word [8]byte
	for len(p) > 0 {
		x := seed ^ uint64(off/8)*0x9e3779b97f4a7c15
		x ^= x >> 29
		binary.LittleEndian.PutUint64(word[:], x*0xbf58476d1ce4e5b9)
		n := copy(p, word[off%8:])
		p, off = p[n:], off+int64(n)
	}
}

func bytesOf(t *block.Ticket) []byte {
	p := make([]byte, t.Length)
	fill(p, t.FileID, 0)
	return p
}

// cluster is one master that leads, and some workers.
type cluster struct {
	master  *fakeMaster
	workers []*fakeWorker
	stops   []func()
}

func newCluster(t *testing.T, workers int) *cluster {
	t.Helper()
	c := &cluster{master: newFakeMaster()}
	c.master.serve(t, "127.0.0.1:0")
	for i := range workers {
		w := &fakeWorker{id: block.WorkerID(fmt.Sprint("w", i)), bootID: "elsewhere"}
		c.stops = append(c.stops, w.serve(t, "", ""))
		c.workers = append(c.workers, w)
	}
	c.announce()
	return c
}

// announce tells the clients who is there.
func (c *cluster) announce() {
	c.master.tell(func(m *api.Membership) {
		m.Workers, m.Placement.Workers = nil, nil
		for _, w := range c.workers {
			m.Workers = append(m.Workers, w.info("live"))
			m.Placement.Workers = append(m.Placement.Workers, &api.PlacedWorker{Id: string(w.id), Weight: 1 << 30})
		}
	})
}

// owner returns the index of the n-th owner of a block, by the membership.
func (c *cluster) owner(t *block.Ticket, index uint32, n int) int {
	p := membershipOf(c.master.membership).placement
	id := p.Owners(block.Key{File: t.FileID, Index: index}, t.Length, n+1)[n]
	for i, w := range c.workers {
		if w.id == id {
			return i
		}
	}
	panic("no such owner")
}

func (c *cluster) dial(t *testing.T, change ...func(*Config)) *Client {
	t.Helper()
	return dial(t, []string{c.master.addr}, change...)
}

func dial(t *testing.T, masters []string, change ...func(*Config)) *Client {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Masters = masters
	cfg.RetryFor = size.Duration(time.Minute) // a loaded machine is no failure
	for _, f := range change {
		f(&cfg)
	}
	c, err := Dial(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// check reads a range and compares it.
func check(t *testing.T, f *File, want []byte, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	got, err := f.ReadAtContext(t.Context(), p, off)
	end := min(off+n, int64(len(want)))
	if !bytes.Equal(p[:got], want[off:end]) {
		t.Fatalf("%d bytes at %d: wrong bytes (%d came), %v", n, off, got, err)
	}
	var wantErr error
	if off+n > int64(len(want)) {
		wantErr = io.EOF
	}
	if !errors.Is(err, wantErr) {
		t.Fatalf("%d bytes at %d: error %v, want %v", n, off, err, wantErr)
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "s")
}
