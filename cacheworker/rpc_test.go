package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/internal/size"
	"millrace/tier"
	"millrace/ufs"
)

// grpcMaster is a fakeMaster on a loopback port.
type grpcMaster struct {
	api.UnimplementedWorkerRegistryServiceServer
	*fakeMaster
}

func (m grpcMaster) Heartbeat(_ context.Context, in *api.HeartbeatRequest) (*api.HeartbeatReply, error) {
	return m.heartbeat(in)
}

func (m grpcMaster) Register(_ context.Context, in *api.RegisterRequest) (*api.RegisterReply, error) {
	return m.register(in)
}

func (m grpcMaster) ReportBlocks(_ context.Context, in *api.ReportBlocksRequest) (*api.ReportBlocksReply, error) {
	return m.report(in)
}

// locationMaster is the same for who asks where blocks are.
type locationMaster struct {
	api.UnimplementedLocationServiceServer
	m *fakeMaster
}

func (m locationMaster) FindBlocks(_ context.Context, in *api.FindBlocksRequest) (*api.FindBlocksReply, error) {
	return m.m.find(in)
}

func startMaster(t *testing.T, m *fakeMaster) (addr string) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	s := grpc.NewServer(rpcconn.ServerOptions()...)
	api.RegisterWorkerRegistryServiceServer(s, grpcMaster{fakeMaster: m})
	api.RegisterLocationServiceServer(s, locationMaster{m: m})
	var g sync.WaitGroup
	g.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { s.Stop(); g.Wait() })
	return l.Addr().String()
}

// patience bounds waits for what must happen: it only decides how long a broken
// build takes to fail.
const patience = time.Minute

// eventually waits until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// client is a connection of a master to the rig's worker.
func (r *rig) client() api.WorkerServiceClient {
	r.t.Helper()
	c, err := rpcconn.Dial(r.w.addresses.GetGrpc())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return api.NewWorkerServiceClient(c)
}

func TestWorkerAndMasters(t *testing.T) {
	leader, follower := newFakeMaster(), newFakeMaster()
	follower.follower = true
	gone := listen(t, "tcp", "127.0.0.1:0")
	gone.Close()
	leader.mounts = &api.Mounts{Version: 1}
	leader.placement = &api.Placement{Epoch: 4}
	r := newRig(t, rigOptions{noMounts: true, masters: []string{gone.Addr().String(), startMaster(t, leader), startMaster(t, follower)}})
	eventually(t, "ready", func() bool { return r.w.Ready() == nil })
	if id, err := LoadIdentity(r.data); err != nil || id.ClusterID != "C1" || id.WorkerID != r.w.ID() {
		t.Errorf("identity %+v, %v", id, err)
	}
	leader.set(func() {
		if in := leader.lastRegist; in.GetWorkerId() != string(r.w.ID()) || in.GetCapacityBytes() != 64*mib || in.GetAddresses().GetBootId() != "boot" ||
			in.GetAddresses().GetData() != r.w.deps.Data.Addr().String() || in.GetAddresses().GetUnixSocket() == "" {
			t.Errorf("registered as %v", in)
		}
	})

	// A mount that the worker has not heard of is asked for at the first open.
	tk := r.store.put("f", "v1", 3*mib)
	if _, err := r.w.Open(t.Context(), tk); !errors.Is(err, errs.NotFound) {
		t.Errorf("a mount that does not exist: %v", err)
	}
	leader.set(func() { leader.mounts = testMounts(2) })
	r.mustRead(tk, tk.Geometry().Whole())

	// Both masters learn of the blocks.
	want := told(r.tier.Blocks())
	for _, m := range []*fakeMaster{leader, follower} {
		eventually(t, "block map", func() bool { return maps.Equal(want, m.blockMap()) })
	}
	eventually(t, "counters", func() bool {
		var c *api.Counters
		leader.set(func() { c = leader.lastBeat.GetCounters() })
		return c.GetBytesServed() == 3*mib && c.GetUfsBytesRead() == 3*mib && c.GetUfsRequests()["get"] >= 1 && c.GetPageMisses() >= 1
	})
	eventually(t, "placement", func() bool {
		var p uint64
		leader.set(func() { p = leader.lastBeat.GetPlacementEpoch() })
		return p == 4
	})

	// A mount that is removed takes its pages along.
	leader.set(func() { leader.mounts = &api.Mounts{Version: 3} })
	eventually(t, "drop", func() bool { _, n := r.tier.Cached(tk.FileID); return n == 0 })
	for _, m := range []*fakeMaster{leader, follower} {
		eventually(t, "empty block map", func() bool { return len(m.blockMap()) == 0 })
	}
	if _, err := r.w.Open(t.Context(), tk); !errors.Is(err, errs.NotFound) {
		t.Errorf("a removed mount: %v", err)
	}
}

func TestServesWithoutAMaster(t *testing.T) {
	gone := listen(t, "tcp", "127.0.0.1:0")
	gone.Close()
	r := newRig(t, rigOptions{masters: []string{gone.Addr().String()}})
	tk := r.store.put("f", "v1", mib)
	r.mustRead(tk, tk.Geometry().Whole())
	if err := r.w.Ready(); !errors.Is(err, errs.Unavailable) {
		t.Errorf("ready: %v", err)
	}
}

func TestForeignMasterIsRefused(t *testing.T) {
	m := newFakeMaster()
	first := newRig(t, rigOptions{masters: []string{startMaster(t, m)}})
	eventually(t, "ready", func() bool { return first.w.Ready() == nil })
	first.stop()
	other := newFakeMaster()
	other.cluster = "C2"
	r := newRig(t, rigOptions{old: first, masters: []string{startMaster(t, other)}})
	eventually(t, "contact", func() bool { return other.count(&other.beats) > 2 })
	if r.w.Ready() == nil || other.count(&other.registers) != 0 || other.count(&other.reports) != 0 {
		t.Errorf("a master of another cluster was taken: ready %v", r.w.Ready())
	}
}

// loadItems makes a task of all blocks of the tickets, one item a block.
func loadItems(t *testing.T, tickets ...*block.Ticket) *api.LoadTask {
	t.Helper()
	task := &api.LoadTask{JobId: "J"}
	for _, tk := range tickets {
		b, err := tk.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range max(tk.Geometry().Blocks(), 1) {
			task.Items = append(task.Items, &api.LoadItem{
				Number: uint64(len(task.Items) + 1), Ticket: b, FirstBlock: uint32(i), BlockCount: uint32(min(tk.Geometry().Blocks(), 1)),
			})
		}
	}
	return task
}

// runTask returns the results by number.
func runTask(t *testing.T, c api.WorkerServiceClient, task *api.LoadTask) map[uint64]*api.LoadResult {
	t.Helper()
	stream, err := c.RunLoadTask(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[uint64]*api.LoadResult)
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return results
		}
		if err != nil {
			t.Fatal(err)
		}
		if results[in.GetNumber()] != nil {
			t.Errorf("item %d ended twice", in.GetNumber())
		}
		results[in.GetNumber()] = in
	}
}

func sum(results map[uint64]*api.LoadResult) (loaded, cached int64, failed int) {
	for _, r := range results {
		loaded += r.GetLoadedBytes()
		cached += r.GetCachedBytes()
		if r.GetErrorKind() != 0 {
			failed++
		}
	}
	return loaded, cached, failed
}

func TestLoadTask(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.client()
	big := r.store.put("dir/big", "v1", 7*mib+99)
	tickets := []*block.Ticket{big, r.store.put("empty", "v1", 0)}
	total := big.Length
	for i := range 40 {
		tk := r.store.put(fmt.Sprintf("dir/small%d", i), "v1", 1000+int64(i))
		tickets = append(tickets, tk)
		total += tk.Length
	}
	r.mustRead(big, block.Extent{Length: 10}) // one page of it is there
	task := loadItems(t, tickets...)
	results := runTask(t, c, task)
	loaded, cached, failed := sum(results)
	if len(results) != len(task.GetItems()) || loaded != total-block.PageSize || cached != block.PageSize || failed != 0 {
		t.Errorf("%d results: %d loaded, %d cached, %d failed of %d bytes", len(results), loaded, cached, failed, total)
	}
	r.fetched(-1, total)
	loaded, cached, _ = sum(runTask(t, c, task))
	if loaded != 0 || cached != total {
		t.Errorf("again: %d loaded, %d cached", loaded, cached)
	}
	for _, tk := range tickets {
		r.mustRead(tk, tk.Geometry().Whole())
	}
	r.fetched(0, 0)

	cr, err := c.Cached(t.Context(), &api.CachedRequest{FileIds: [][]byte{big.FileID[:], make([]byte, 16)}})
	if err != nil || len(cr.GetFiles()) != 2 || cr.GetFiles()[0].GetBytes() != big.Length || len(cr.GetFiles()[0].GetBlocks()) != 8 || cr.GetFiles()[1].GetBytes() != 0 {
		t.Errorf("cached: %v, %v", cr, err)
	}
	if _, err := c.Cached(t.Context(), &api.CachedRequest{FileIds: [][]byte{{1}}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a short file ID: %v", err)
	}
	usage, err := c.CachedUsage(t.Context(), &api.CachedUsageRequest{MountId: testMount, Path: []byte("dir")})
	if err != nil || usage.GetFiles() != 41 || usage.GetBytes() != total {
		t.Errorf("usage: %v, %v", usage, err)
	}
	drop, err := c.Drop(t.Context(), &api.DropRequest{MountId: testMount, Path: []byte("dir/big")})
	if err != nil || drop.GetFiles() != 1 || drop.GetBytes() != big.Length {
		t.Errorf("drop: %v, %v", drop, err)
	}
	if _, n := r.tier.Cached(big.FileID); n != 0 {
		t.Errorf("%d bytes are left after a drop", n)
	}
}

func TestLoadTaskFailures(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 8 * size.MiB})
	good := r.store.put("good", "v1", 1000)
	gone := ticketOf("gone", "v1", 1000)
	stale := r.store.put("stale", "v2", 1000)
	stale = ticketOf(stale.Path, "v1", 1000)
	task := loadItems(t, good, gone, stale)
	task.Items = append(task.Items, &api.LoadItem{Number: 4, Ticket: []byte("?")})
	got := runTask(t, r.client(), task)
	for number, want := range map[uint64]errs.Kind{1: 0, 2: errs.NotFound, 3: errs.Stale, 4: errs.Invalid} {
		if in := got[number]; errs.Kind(in.GetErrorKind()) != want || (in.GetError() == "") != (want == 0) {
			t.Errorf("item %d: %v, want kind %v", number, in, want)
		}
	}
}

// TestLoadAndReadShareFlights reads a file while a load of it is held up.
func TestLoadAndReadShareFlights(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", mib)
	started, goOn := make(chan struct{}, 10), make(chan struct{})
	r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error {
		started <- struct{}{}
		<-goOn
		return nil
	})
	results := make(chan map[uint64]*api.LoadResult, 1)
	c := r.client()
	go func() { results <- runTask(t, c, loadItems(t, tk)) }()
	<-started
	read, h := make(chan error, 1), r.open(r.conn, tk)
	go func() { read <- r.read(r.conn, tk, h, tk.Geometry().Whole()) }()
	eventually(t, "the reader hurries the load's flight", func() bool {
		r.w.fetcher.mu.Lock()
		defer r.w.fetcher.mu.Unlock()
		flights := r.w.fetcher.flights[tk.FileID]
		return len(flights) == 1 && flights[0].urgent.Load() == int32(urgentRead)
	})
	close(goOn)
	if err := <-read; err != nil {
		t.Error(err)
	}
	if loaded, _, _ := sum(<-results); loaded != mib {
		t.Errorf("%d bytes were loaded", loaded)
	}
	r.fetched(1, mib)
}

func TestStopEndsTasksAndReads(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.DrainTimeout = size.Duration(50 * time.Millisecond) }})
	tk := r.store.put("f", "v1", mib)
	started := make(chan struct{}, 10)
	r.store.setBefore(func(ctx context.Context, _ ufs.Object, _ block.Extent) error {
		started <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	h := r.open(r.conn, tk)
	stream, err := r.client().RunLoadTask(t.Context(), loadItems(t, tk))
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { read <- r.read(r.conn, tk, h, tk.Geometry().Whole()) }()
	<-started
	r.stop()
	if err := <-read; err == nil {
		t.Error("a read succeeded without its bytes")
	}
	if _, err := stream.Recv(); !errors.Is(err, errs.Unavailable) {
		t.Errorf("the task's stream ended with %v", err)
	}
	if r.store.opened != r.store.closed {
		t.Errorf("%d stores were opened, %d closed", r.store.opened, r.store.closed)
	}
}

func TestReadAheadFetchesEachByteOnce(t *testing.T) {
	r := newRig(t, rigOptions{})
	const length = 30*mib + 5
	tk := r.store.put("f", "v1", length)
	h := r.open(r.conn, tk)
	var most int
	var mu sync.Mutex
	r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error {
		mu.Lock()
		defer mu.Unlock()
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		most = max(most, r.store.readers+1)
		return nil
	})
	for off := int64(0); off < length; off += 128 << 10 {
		if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: min(128<<10, length-off)}); err != nil {
			t.Fatal(err)
		}
	}
	gets := slices.Clone(r.store.gets)
	r.fetched(-1, length)
	if len(gets) > 40 {
		t.Errorf("%d requests for 31 MiB", len(gets))
	}
	for _, e := range gets {
		if e.Length > int64(DefaultConfig().FetchSize) {
			t.Errorf("one request asked for %v", e)
		}
	}
	t.Logf("%d requests, %d at a time", len(gets), most)
}

// TestStopTellsTheMasters looks at what masters know of a worker that stopped:
// that it left, and every block, also those of the last moment.
func TestStopTellsTheMasters(t *testing.T) {
	m := newFakeMaster()
	m.mounts = testMounts(2)
	down := newFakeMaster() // goes away before the worker does
	r := newRig(t, rigOptions{masters: []string{startMaster(t, m), startMaster(t, down)}, cfg: func(c *Config) {
		c.ReportInterval = size.Duration(time.Minute) // nothing but a stop brings a delta
		c.DrainTimeout = size.Duration(100 * time.Millisecond)
	}})
	eventually(t, "the first full reports", func() bool { return m.count(&m.fulls) == 1 && down.count(&down.fulls) == 1 })
	down.set(func() { down.down = true })
	tk := r.store.put("f", "v1", 3*mib)
	r.mustRead(tk, tk.Geometry().Whole())
	want := told(r.tier.Blocks())
	if maps.Equal(want, m.blockMap()) {
		t.Fatal("it was told before the stop")
	}
	r.stop()
	if !maps.Equal(want, m.blockMap()) {
		t.Errorf("the master knows of %v, the worker has %v", m.blockMap(), want)
	}
	m.set(func() {
		if !m.lastBeat.GetLeaving() {
			t.Error("the last heartbeat does not say that the worker leaves")
		}
	})
}

// TestNoSpaceSaysWhereAndWhatToDo loads more than there is room for.
func TestNoSpaceSaysWhereAndWhatToDo(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 8 * size.MiB})
	full := r.store.put("full", "v1", 5*mib)
	r.mustRead(full, full.Geometry().Whole())
	h, err := r.tier.Acquire(tier.FileOf(full), full.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	tk := r.store.put("more", "v1", 6*mib)
	task := loadItems(t, tk)
	task.Items = task.Items[:1]
	task.Items[0].BlockCount = uint32(tk.Geometry().Blocks())
	in := runTask(t, r.client(), task)[1]
	if errs.Kind(in.GetErrorKind()) != errs.NoSpace {
		t.Fatalf("got %v", in)
	}
	for _, part := range []string{"more", r.dir, "8MiB", "free"} {
		if !strings.Contains(in.GetError(), part) {
			t.Errorf("%q does not say %q", in.GetError(), part)
		}
	}
}

// TestNoSpaceNamesAFullFileSystem: where the capacity is more than there is
// room for, that is said too.
func TestNoSpaceNamesAFullFileSystem(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 1 << 60})
	if err := r.w.loader.noSpace(errs.NoSpace); !strings.Contains(err.Error(), "; its file system has room for ") {
		t.Error(err)
	}
}

// TestRestartUnderAReader stops the worker while a client reads, and starts it
// again at the same addresses. Like a client, the reader dials again and
// repeats a read that failed as one does that another attempt may serve.
func TestRestartUnderAReader(t *testing.T) {
	first := newRig(t, rigOptions{})
	const length = 20 * mib
	tk := first.store.put("f", "v1", length)
	socket := first.w.addresses.GetUnixSocket()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var rounds atomic.Int64
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var c *blockio.Conn
		defer func() {
			if c != nil {
				c.Close()
			}
		}()
		p := make([]byte, mib)
		attempt := func(off int64) error {
			if c == nil {
				var err error
				if c, err = blockio.Dial(ctx, "unix", socket, blockio.DefaultClientConfig()); err != nil {
					c = nil
					return err
				}
			}
			h, err := c.Open(ctx, tk)
			if err != nil {
				return err
			}
			defer c.CloseHandle(h)
			n, err := c.ReadAt(ctx, h, p, off, blockio.ReadOptions{})
			if err == nil && !bytes.Equal(p[:n], first.store.part("f", block.Extent{Offset: off, Length: mib})) {
				err = errs.E(errs.Invalid, "read", "f", errors.New("wrong bytes"))
			}
			return err
		}
		for off := int64(0); ; off = (off + mib) % length {
			for err := attempt(off); err != nil; err = attempt(off) {
				switch errs.KindOf(err) {
				case errs.Unavailable, errs.Canceled:
				default:
					ended <- err
					return
				}
				if ctx.Err() != nil {
					ended <- ctx.Err()
					return
				}
				if c != nil {
					c.Close()
					c = nil
				}
			}
			rounds.Add(1)
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
		}
	}()
	old := first
	for range 3 {
		before := rounds.Load()
		eventually(t, "reads", func() bool { return rounds.Load() > before+25 })
		old.stop()
		old = newRig(t, rigOptions{old: old})
	}
	before := rounds.Load()
	eventually(t, "reads after the restarts", func() bool { return rounds.Load() > before+25 })
	close(stop)
	if err := <-ended; err != nil {
		t.Errorf("a reader got %v", err)
	}
}
