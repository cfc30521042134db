package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/vfs"
	"millrace/tier"
	"millrace/ufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a worker with a real tier and real connections over a fake
// under-store.
type rig struct {
	t     testing.TB
	store *fakeStore
	dir   string // its tier's
	data  string // its data directory
	tier  *tier.Store
	w     *Worker
	conn  *blockio.Conn // over TCP
	unix  *blockio.Conn
	stop  func() // idempotent
}

type rigOptions struct {
	capacity size.Bytes // default 64 MiB
	cfg      func(*Config)
	masters  []string
	noMounts bool              // the worker knows no mount from its last run
	options  map[string]string // of the mount
	old      *rig              // whose directories are used again
	disk     vfs.FS            // below the tier; nil is the machine's own
}

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	r := &rig{t: t, store: newFakeStore(), dir: t.TempDir(), data: t.TempDir()}
	if o.old != nil {
		r.store, r.dir, r.data = o.old.store, o.old.dir, o.old.data
	}
	if !o.noMounts {
		mounts := testMounts(1)
		mounts.Mounts[0].Options = o.options
		table, err := protojson.Marshal(mounts)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.data, mountsFile), table, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tc := tier.DefaultConfig()
	tc.Dir, tc.Capacity, tc.FreeShare = r.dir, 64*size.MiB, 0
	if o.capacity != 0 {
		tc.Capacity = o.capacity
	}
	log := slog.New(slog.DiscardHandler)
	var err error
	r.tier, err = tier.Open([]tier.Config{tc}, tier.Options{FS: o.disk, OnChange: func(s tier.BlockState) { r.w.OnBlockChange(s) }}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Heartbeat = size.Duration(20 * time.Millisecond)
	cfg.ReportInterval = size.Duration(time.Millisecond)
	if o.cfg != nil {
		o.cfg(&cfg)
	}
	socket := filepath.Join(t.TempDir(), "s")
	if o.old != nil {
		socket = o.old.w.addresses.GetUnixSocket()
	}
	deps := Deps{
		Store: r.tier, UFS: r.store.registry(), Masters: o.masters, DataDir: r.data, BootID: "boot",
		GRPC: listen(t, "tcp", "127.0.0.1:0"), Data: listen(t, "tcp", "127.0.0.1:0"),
		Unix: listen(t, "unix", socket),
	}
	if r.w, err = New(cfg, deps, log, prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var g sync.WaitGroup
	g.Go(func() {
		if err := r.w.Run(ctx); err != nil {
			t.Errorf("the worker ended with %v", err)
		}
	})
	r.conn, r.unix = r.dial("tcp", deps.Data), r.dial("unix", deps.Unix)
	r.stop = sync.OnceFunc(func() {
		r.conn.Close()
		r.unix.Close()
		cancel()
		g.Wait()
		if err := r.tier.Close(); err != nil {
			t.Errorf("close tier: %v", err)
		}
		r.store.idle(t)
	})
	t.Cleanup(r.stop)
	return r
}

func testMounts(version uint64) *api.Mounts {
	return &api.Mounts{Version: version, Mounts: []*api.UFSMount{{Id: testMount, Path: []byte("/"), Uri: "fake://store"}}}
}

func listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *rig) dial(network string, l net.Listener) *blockio.Conn {
	r.t.Helper()
	c, err := blockio.Dial(r.t.Context(), network, l.Addr().String(), blockio.DefaultClientConfig())
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) open(c *blockio.Conn, t *block.Ticket) uint32 {
	r.t.Helper()
	h, err := c.Open(r.t.Context(), t)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// read reads e through c and checks the bytes.
func (r *rig) read(c *blockio.Conn, t *block.Ticket, h uint32, e block.Extent) error {
	p := make([]byte, e.Length)
	n, err := c.ReadAt(r.t.Context(), h, p, e.Offset, blockio.ReadOptions{})
	if err != nil {
		return err
	}
	if int64(n) != e.Length || !bytes.Equal(p, r.store.part(t.Path, e)) {
		r.t.Errorf("%s %v: wrong bytes", t.Path, e)
	}
	return nil
}

// mustRead opens t and reads e.
func (r *rig) mustRead(t *block.Ticket, e block.Extent) {
	r.t.Helper()
	h := r.open(r.conn, t)
	defer r.conn.CloseHandle(h)
	if err := r.read(r.conn, t, h, e); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) fetched(gets int, n int64) {
	r.t.Helper()
	if g, b := r.store.fetched(); b != n || (gets >= 0 && g != gets) {
		r.t.Errorf("%d bytes were fetched in %d requests, want %d in %d", b, g, n, gets)
	}
}

const mib = 1 << 20

// TestColdReadersShareOneFetch reads one file with 8 readers at random
// offsets and lengths, cold and then warm.
func TestColdReadersShareOneFetch(t *testing.T) {
	r := newRig(t, rigOptions{})
	const length = 20*mib + 12345
	tk := r.store.put("dir/file", "v1", length)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			conn := r.conn
			if i%2 == 1 {
				conn = r.unix
			}
			h := r.open(conn, tk)
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for off := int64(0); off < length; { // all of it, in order
				e := block.Extent{Offset: off, Length: min(1+rng.Int64N(3*mib), length-off)}
				if err := r.read(conn, tk, h, e); err != nil {
					t.Error(err)
					return
				}
				off = e.End()
			}
			for range 30 {
				off := rng.Int64N(length)
				e := block.Extent{Offset: off, Length: min(1+rng.Int64N(mib), length-off)}
				if err := r.read(conn, tk, h, e); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	r.fetched(-1, length)
	r.mustRead(tk, tk.Geometry().Whole())
	r.fetched(0, 0)
	if blocks, n := r.tier.Cached(tk.FileID); n != length || len(blocks) != 21 {
		t.Errorf("%d bytes in %d blocks are cached", n, len(blocks))
	}
}

func TestRandomReadsFetchTheirPagesAlone(t *testing.T) {
	r := newRig(t, rigOptions{})
	const length = 40 * mib
	tk := r.store.put("f", "v1", length)
	h := r.open(r.conn, tk)
	rng := rand.New(rand.NewPCG(3, 4))
	pages := make(map[int64]bool)
	for range 300 {
		off := rng.Int64N(length/4096) * 4096
		pages[off/block.PageSize] = true
		if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: 4096}); err != nil {
			t.Fatal(err)
		}
	}
	if gets, n := r.store.fetched(); n > (int64(len(pages))+2)*block.PageSize || gets > len(pages)+1 {
		t.Errorf("%d bytes in %d requests for %d pages", n, gets, len(pages))
	}
}

// TestEvictingReaders reads four times what the cache holds, with 8 readers.
func TestEvictingReaders(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 24 * size.MiB})
	var tickets []*block.Ticket
	var total int64
	for _, f := range []struct {
		name   string
		length int64
	}{{"a", 30 * mib}, {"b", 20*mib + 1}, {"c", 16 * mib}, {"d", 3*mib + 77}, {"e", 9 * mib}, {"g", 12 * mib}, {"h", 1}} {
		tickets = append(tickets, r.store.put(f.name, "v1", f.length))
		total += f.length
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			for range 25 {
				tk := tickets[rng.IntN(len(tickets))]
				h := r.open(r.conn, tk)
				off := rng.Int64N(tk.Length)
				e := block.Extent{Offset: off, Length: min(1+rng.Int64N(2*mib), tk.Length-off)}
				if err := r.read(r.conn, tk, h, e); err != nil {
					t.Error(err)
				}
				r.conn.CloseHandle(h)
			}
		})
	}
	wg.Wait()
	if r.tier.Stats().EvictedBytes == 0 {
		t.Errorf("nothing was evicted of %d bytes", total)
	}
}

// TestPunchedBlocks reads here and there in a file of which the cache holds a
// third, over TCP and over the Unix socket, in blocks that are sent from the
// file and in such that are not. Reads of less than a page bring no checksum,
// so that nothing but the bytes tells of one that was punched on its way.
func TestPunchedBlocks(t *testing.T) {
	for name, blockSize := range map[string]int64{"sent": 2 * mib, "copied": mib} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, rigOptions{capacity: 24 * size.MiB})
			tk := r.store.put("big", "v1", 65*mib+77)
			tk.BlockSize = blockSize
			tk.FileID = tk.Derive()
			var wg sync.WaitGroup
			for i := range 8 {
				conn := []*blockio.Conn{r.conn, r.unix}[i%2]
				h := r.open(conn, tk)
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(i), 5))
					for range 150 {
						off := rng.Int64N(tk.Length)
						e := block.Extent{Offset: off, Length: min(1+rng.Int64N(block.PageSize-1), tk.Length-off)}
						if err := r.read(conn, tk, h, e); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if r.tier.Stats().EvictedBytes == 0 {
				t.Error("nothing was evicted")
			}
		})
	}
}

// TestBigFileThroughASmallCache reads a file to its end that is larger than
// the cache.
func TestBigFileThroughASmallCache(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 24 * size.MiB})
	const length = 90 * mib // above what is evicted as a whole
	tk := r.store.put("big", "v1", length)
	h := r.open(r.conn, tk)
	for off := int64(0); off < length; off += mib {
		if err := r.read(r.conn, tk, h, block.Extent{Offset: off, Length: mib}); err != nil {
			t.Fatal(err)
		}
	}
	if _, n := r.store.fetched(); n > length+length/10 {
		t.Errorf("%d bytes were fetched of %d", n, length)
	}
}

func TestReaderThatGoesAwayLeavesTheFlight(t *testing.T) {
	r := newRig(t, rigOptions{})
	const length = 2 * mib
	tk := r.store.put("f", "v1", length)
	started, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.store.setBefore(func(ctx context.Context, _ ufs.Object, _ block.Extent) error {
		once.Do(func() { close(started) })
		select {
		case <-goOn:
		case <-ctx.Done():
		}
		return nil
	})
	h := r.open(r.conn, tk)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := r.conn.ReadAt(ctx, h, make([]byte, length), 0, blockio.ReadOptions{})
		gone <- err
	}()
	<-started
	stays := make(chan error, 1)
	other := r.open(r.unix, tk)
	go func() { stays <- r.read(r.unix, tk, other, tk.Geometry().Whole()) }()
	cancel()
	if err := <-gone; !errors.Is(err, errs.Canceled) {
		t.Errorf("the reader that gave up got %v", err)
	}
	close(goOn)
	if err := <-stays; err != nil {
		t.Error(err)
	}
	r.fetched(1, length)
}

func TestUnderStoreErrors(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 3*mib)
	for _, kind := range []errs.Kind{errs.NotFound, errs.Permission, errs.Stale, errs.Unavailable, errs.Throttled, errs.Timeout} {
		r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error {
			return errs.E(kind, "read", "s3://bucket/f", errors.New("it says so"))
		})
		h := r.open(r.conn, tk)
		if err := r.read(r.conn, tk, h, tk.Geometry().Whole()); !errors.Is(err, kind) {
			t.Errorf("%v came as %v", kind, err)
		}
	}
	if _, n := r.tier.Cached(tk.FileID); n != 0 {
		t.Errorf("%d bytes are cached of a file that could not be fetched", n)
	}
	r.store.setBefore(nil)
	r.store.fetched()
	r.mustRead(tk, tk.Geometry().Whole())
	r.fetched(-1, 3*mib)
}

// TestCutAnswers lets answers end early: what has arrived is kept, and the
// rest is asked for again a few times.
func TestCutAnswers(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 4*mib)
	var cuts atomic.Int32
	cut := func(e block.Extent) (int64, error) {
		if cuts.Add(1) > 6 {
			return 0, nil
		}
		return min(e.Length-1, block.PageSize+9), errs.E(errs.Unavailable, "read", "", errors.New("reset by peer"))
	}
	r.store.setCut(cut)
	r.mustRead(tk, tk.Geometry().Whole())
	if gets, n := r.store.fetched(); n > 4*mib+6*10 || gets < 7 {
		t.Errorf("%d bytes were fetched in %d requests", n, gets)
	}
	// An answer that never gets further is an error, with its kind.
	other := r.store.put("g", "v1", mib)
	r.store.setCut(func(block.Extent) (int64, error) {
		return 9, errs.E(errs.Unavailable, "read", "", errors.New("reset by peer"))
	})
	if err := r.read(r.conn, other, r.open(r.conn, other), other.Geometry().Whole()); !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	// So is one that changes while it is read, and it keeps what came before.
	r.store.setCut(func(e block.Extent) (int64, error) { return max(block.PageSize+9-e.Offset, 0), errs.Stale })
	if err := r.read(r.conn, other, r.open(r.conn, other), other.Geometry().Whole()); !errors.Is(err, errs.Stale) {
		t.Errorf("got %v", err)
	}
}

func TestStaleVersion(t *testing.T) {
	r := newRig(t, rigOptions{})
	old := r.store.put("f", "v1", 2*mib)
	data := r.store.data("f")
	h := r.open(r.conn, old)
	first := block.Extent{Length: block.PageSize}
	if err := r.read(r.conn, old, h, first); err != nil {
		t.Fatal(err)
	}
	now := r.store.put("f", "v2", 2*mib+1)
	p := make([]byte, first.Length)
	if _, err := r.conn.ReadAt(t.Context(), h, p, 0, blockio.ReadOptions{}); err != nil || !bytes.Equal(p, data[:len(p)]) {
		t.Errorf("a cached page of the old version: %v", err)
	}
	if _, err := r.conn.ReadAt(t.Context(), h, p, mib, blockio.ReadOptions{}); !errors.Is(err, errs.Stale) {
		t.Errorf("a missing page of the old version: %v", err)
	}
	r.mustRead(now, now.Geometry().Whole())
}

func TestUnsettledIsServedAndNotKept(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 3*mib+5)
	tk.Unsettled = true
	for range 2 {
		r.mustRead(tk, block.Extent{Offset: 1000, Length: 2 * mib})
		r.fetched(-1, 2*mib)
	}
	if _, n := r.tier.Cached(tk.FileID); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	if _, _, err := r.w.loader.Load(t.Context(), tk, tk.Geometry().Whole()); !errors.Is(err, errs.Busy) {
		t.Errorf("a load of it: %v", err)
	}
}

func TestNoRoomIsServedAndNotKept(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 8 * size.MiB})
	// A pin on what fills the cache leaves nothing to evict.
	full := r.store.put("full", "v1", 5*mib)
	r.mustRead(full, full.Geometry().Whole())
	h, err := r.tier.Acquire(tier.FileOf(full), full.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	r.store.fetched()

	tk := r.store.put("f", "v1", 6*mib)
	r.mustRead(tk, tk.Geometry().Whole())
	if _, n := r.store.fetched(); n < 6*mib || n > 7*mib {
		t.Errorf("%d bytes were fetched for 6 MiB", n)
	}
	if _, _, err := r.w.loader.Load(t.Context(), tk, tk.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Errorf("a load of it: %v", err)
	}
}

func TestCorruptPageIsRepaired(t *testing.T) {
	for name, tc := range map[string]struct{ size, at int64 }{
		"within a run":       {3 * mib, mib},
		"the first of a run": {3 * mib, 0},
		"the last":           {3 * mib, 3*mib - 100},
		"a file of one page": {1000, 10},
	} {
		t.Run(name, func(t *testing.T) {
			first := newRig(t, rigOptions{})
			tk := first.store.put("f", "v1", tc.size)
			first.mustRead(tk, tk.Geometry().Whole())
			first.stop()
			damage(t, first.dir, first.store.data("f")[tc.at:tc.at+64])

			r := newRig(t, rigOptions{old: first})
			r.store.fetched()
			r.mustRead(tk, tk.Geometry().Whole())
			r.fetched(1, tk.Geometry().Page(tc.at/block.PageSize).Length)
			if n := r.tier.Stats().ChecksumErrors; n != 1 {
				t.Errorf("%d checksum errors were counted", n)
			}
			r.mustRead(tk, tk.Geometry().Whole())
			r.fetched(0, 0)
		})
	}
}

// A backing file that somebody removed costs a fetch, not a read.
func TestRemovedBackingFileIsFetchedAgain(t *testing.T) {
	first := newRig(t, rigOptions{})
	tk := first.store.put("f", "v1", 3*mib)
	first.mustRead(tk, tk.Geometry().Whole())
	first.stop()
	r := newRig(t, rigOptions{old: first})
	r.store.fetched()
	if err := filepath.WalkDir(first.dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(name, "/data/") {
			return err
		}
		return os.Remove(name)
	}); err != nil {
		t.Fatal(err)
	}
	r.mustRead(tk, tk.Geometry().Whole())
	if n := r.tier.Stats().ChecksumErrors; n != 1 {
		t.Errorf("%d checksum errors were counted", n)
	}
	if _, n := r.store.fetched(); n != 3*mib {
		t.Errorf("%d bytes were fetched, want all", n)
	}
}

// damage changes the bytes in whatever file below dir holds them.
func damage(t *testing.T, dir string, what []byte) {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		i := bytes.Index(b, what)
		if i < 0 {
			return nil
		}
		found = true
		b[i] ^= 0xff
		return os.WriteFile(name, b, 0o600)
	})
	if err != nil || !found {
		t.Fatalf("damage: found %v, %v", found, err)
	}
}

func TestRestartKeepsPagesAndIdentity(t *testing.T) {
	first := newRig(t, rigOptions{})
	tk := first.store.put("f", "v1", 5*mib+1)
	first.mustRead(tk, tk.Geometry().Whole())
	first.stop()
	r := newRig(t, rigOptions{old: first})
	r.store.fetched()
	r.mustRead(tk, tk.Geometry().Whole())
	r.fetched(0, 0)
	a, b := first.w.identity.current(), r.w.identity.current()
	if a.WorkerID != b.WorkerID || b.StartEpoch <= a.StartEpoch {
		t.Errorf("%+v became %+v", a, b)
	}
	if hello := r.conn.Hello(); hello.WorkerID != b.WorkerID || hello.BootID != "boot" {
		t.Errorf("the handshake says %+v", hello)
	}
}

func TestDropWhileReading(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 8*mib)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			h := r.open(r.conn, tk)
			for ctx.Err() == nil {
				if err := r.read(r.conn, tk, h, tk.Geometry().Whole()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		if _, _, err := r.tier.Drop(testMount, ""); err != nil {
			t.Error(err)
		}
		r.mustRead(tk, block.Extent{Offset: 4 * mib, Length: 10})
	}
	cancel()
	wg.Wait()
}

func TestTickets(t *testing.T) {
	r := newRig(t, rigOptions{})
	good := r.store.put("f", "v1", 10)
	expired := *good
	expired.Expiry = time.Now().Add(-block.ClockSkew - time.Second)
	unknown := *good
	unknown.MountID = 99
	unknown.FileID = unknown.Derive()
	forged := *good
	forged.FileID[15]++
	for _, tt := range []struct {
		name string
		t    *block.Ticket
		want errs.Kind
	}{{"expired", &expired, errs.Permission}, {"unknown mount, and no master", &unknown, errs.Unavailable}, {"forged", &forged, errs.Invalid}} {
		if _, err := r.w.Open(t.Context(), tt.t); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	f, err := r.w.Open(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Read(t.Context(), blockio.ReadRequest{Extent: block.Extent{Offset: 5, Length: 6}}, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("a read past the end: %v", err)
	}
}

func TestCachedOnly(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 2*mib)
	h := r.open(r.conn, tk)
	p := make([]byte, block.PageSize)
	only := blockio.ReadOptions{CachedOnly: true}
	if _, err := r.conn.ReadAt(t.Context(), h, p, 0, only); !errors.Is(err, errs.NotCached) {
		t.Errorf("a missing page: %v", err)
	}
	r.fetched(0, 0)
	if err := r.read(r.conn, tk, h, block.Extent{Length: block.PageSize}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.conn.ReadAt(t.Context(), h, p, 0, only); err != nil {
		t.Errorf("a cached page: %v", err)
	}
}
