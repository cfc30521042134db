package hdfsfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// random returns n bytes that are another for each seed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// object names the present version of a file.
func object(t *testing.T, s *Store, name string) ufs.Object {
	t.Helper()
	info, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return ufs.Object{Path: name, Tag: info.Tag, Length: info.Size}
}

func readAll(ctx context.Context, s *Store, o ufs.Object, e block.Extent) ([]byte, error) {
	r, err := s.Read(ctx, o, e)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	return got, errors.Join(err, r.Close())
}

// wire sees what passes between a store and its DataNodes.
type wire struct {
	next dialer

	mu       sync.Mutex
	dialed   []string
	received int64
	timeouts []string // addresses whose connection ran into its deadline
}

func watch(s *Store) *wire {
	w := &wire{next: s.dial}
	s.dial = w.dial
	return w
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, address)
	w.mu.Unlock()
	conn, err := w.next(ctx, network, address)
	return &wireConn{Conn: conn, wire: w, address: address}, err
}

// take returns what was seen since the last take.
func (w *wire) take() (dialed, timeouts []string, received int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dialed, timeouts, received = w.dialed, w.timeouts, w.received
	w.dialed, w.timeouts, w.received = nil, nil, 0
	return dialed, timeouts, received
}

type wireConn struct {
	net.Conn
	wire    *wire
	address string
}

func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	c.wire.received += int64(n)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.wire.timeouts = append(c.wire.timeouts, c.address)
	}
	return n, err
}

// blockIDs returns the IDs of a file's blocks when each has three replicas.
func blockIDs(t *testing.T, s *Store, name string) []uint64 {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		st, err := s.status(t.Context(), name, extras{located: true})
		if err != nil || time.Now().After(end) {
			t.Fatalf("not three replicas of each block of %s: %v", name, err)
		}
		var out []uint64
		missing := false
		for _, b := range st.GetLocations().GetBlocks() {
			out = append(out, b.GetB().GetBlockId())
			missing = missing || len(b.GetLocs()) < 3
		}
		if !missing {
			return out
		}
	}
}

// spoil flips a bit in the middle of a block's file on a DataNode's disk.
func (c *cluster) spoil(t *testing.T, dataNode string, id uint64) {
	t.Helper()
	name, found := fmt.Sprintf("blk_%d", id), false
	err := filepath.WalkDir(c.DataDir(dataNode), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != name {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		var b [1]byte
		if _, err := f.ReadAt(b[:], st.Size()/2); err != nil {
			return err
		}
		b[0] ^= 1
		found = true
		_, err = f.WriteAt(b[:], st.Size()/2)
		return err
	})
	if err != nil || !found {
		t.Fatalf("spoil %s on %s: found %v, %v", name, dataNode, found, err)
	}
}

// A byte that is wrong on a DataNode's disk is never served: it is read from
// another replica, and when all are spoiled the read fails.
func TestSpoiledBlocks(t *testing.T) {
	c := newCluster(t)
	s := c.open(t, nil, nil)
	const size = 3*blockSize - 12345
	data := random(1, size)
	c.put(t, "f", data, 3)
	ids := blockIDs(t, s, "f")
	o := object(t, s, "f")
	readers := func(check func(got []byte, err error, e block.Extent) error) {
		t.Helper()
		var g errgroup.Group
		for i := range 8 {
			g.Go(func() error {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				for range 6 {
					off := rng.Int64N(size)
					e := block.Extent{Offset: off, Length: 1 + rng.Int64N(size-off)}
					got, err := readAll(t.Context(), s, o, e)
					if !bytes.Equal(got, data[e.Offset:e.Offset+int64(len(got))]) {
						return fmt.Errorf("%v: WRONG BYTES", e)
					}
					if err := check(got, err, e); err != nil {
						return fmt.Errorf("%v: %w", e, err)
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
	whole := func(got []byte, err error, e block.Extent) error {
		if err == nil && int64(len(got)) != e.Length {
			err = fmt.Errorf("%d bytes", len(got))
		}
		return err
	}
	for _, dataNode := range []string{"dn1", "dn2"} {
		for _, id := range ids {
			c.spoil(t, dataNode, id)
		}
		readers(whole)
	}
	for _, id := range ids {
		c.spoil(t, "dn3", id)
	}
	spoiled := int64(blockSize / 2) // of the first block
	readers(func(got []byte, err error, e block.Extent) error {
		if e.Offset <= spoiled && spoiled < e.End() {
			if !errors.Is(err, errs.Corrupt) || e.Offset+int64(len(got)) > spoiled {
				return fmt.Errorf("%d bytes, %w", len(got), err)
			}
		}
		return nil
	})
}

// What is asked of DataNodes is what is read, whatever the pieces.
func TestBytesOnTheWire(t *testing.T) {
	c := newCluster(t)
	s := c.open(t, nil, nil)
	const size = 5*blockSize + 1000
	data := random(2, size)
	c.put(t, "f", data, 1)
	o := object(t, s, "f")
	for _, piece := range []int64{64 << 10, 256 << 10, blockSize + 7, size} {
		w := watch(s)
		requests := 0
		for off := int64(0); off < size; off += piece {
			e := block.Extent{Offset: off, Length: min(piece, size-off)}
			got, err := readAll(t.Context(), s, o, e)
			if err != nil || !bytes.Equal(got, data[e.Offset:e.End()]) {
				t.Fatalf("%v: %d bytes, %v", e, len(got), err)
			}
			requests += int((e.End()-1)/blockSize - off/blockSize + 1)
		}
		dialed, _, received := w.take()
		// Checksums, headers of packets and answers, rounding to chunks.
		if most := int64(size) + size*4/512 + int64(len(dialed))*2048 + size/1024; received > most {
			t.Errorf("pieces of %d: %d bytes came for %d", piece, received, size)
		}
		if len(dialed) != requests {
			t.Errorf("pieces of %d: %d requests for %d runs within a block", piece, len(dialed), requests)
		}
		s.dial = w.next
	}
}

// A frozen DataNode costs the reader that meets it one deadline, and others
// nothing.
func TestFrozenDataNode(t *testing.T) {
	c := newCluster(t)
	s := c.open(t, nil, map[string]string{"datanode_timeout": "3s"})
	data := random(3, 2*blockSize)
	c.put(t, "f", data, 3)
	blockIDs(t, s, "f")
	o := object(t, s, "f")
	if err := c.Signal("dn2", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Signal("dn2", syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	frozen := c.dataNode(t, 2)
	w := watch(s)
	met := 0
	var meeting time.Time
	for i := range 20 {
		began := time.Now()
		got, err := readAll(t.Context(), s, o, block.Extent{Length: o.Length})
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read %d: %d bytes, %v", i, len(got), err)
		}
		dialed, timeouts, _ := w.take()
		if met > 0 && time.Since(meeting) >= avoidFor {
			break // it may be asked again
		}
		switch n := count(timeouts, frozen); {
		case n > 1:
			t.Fatalf("read %d ran into the deadline %d times", i, n)
		case met > 0 && slices.Contains(dialed, frozen):
			t.Fatalf("read %d asked the frozen DataNode, which is known: %v", i, dialed)
		case n == 1:
			met++
			meeting = began
			if at := slices.Index(dialed, frozen); at == len(dialed)-1 {
				t.Errorf("read %d went to no other replica: %v", i, dialed)
			}
		}
	}
	if met != 1 {
		t.Errorf("the frozen DataNode was met %d times", met)
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// dataNode returns the address of a DataNode: hdfs.sh counts ports up from the
// NameNode's.
func (c *cluster) dataNode(t *testing.T, i int) string {
	t.Helper()
	host, port, err := net.SplitHostPort(c.Address())
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, fmt.Sprint(n+10*i))
}

// Nobody waits for a frozen NameNode beyond deadline and context, and the store
// is well when the NameNode is.
func TestFrozenNameNode(t *testing.T) {
	c := newCluster(t)
	patient := c.open(t, nil, nil)
	s := c.open(t, nil, map[string]string{"namenode_timeout": "200ms", "clients": "2"})
	s.nameNode.budget = 700 * time.Millisecond
	data := random(4, 1000)
	c.put(t, "f", data, 3)
	o := object(t, s, "f")
	if _, err := patient.Stat(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	if err := c.Signal("nn", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := sync.OnceFunc(func() {
		if err := c.Signal("nn", syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	defer thaw()
	if _, err := s.Stat(t.Context(), "f"); !errors.Is(err, errs.Unavailable) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := readAll(t.Context(), s, o, block.Extent{Length: 10}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("Read: %v", err)
	}
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"canceled": context.WithCancel,
		"late": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 50*time.Millisecond)
		},
	} {
		ctx, cancel := end(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := patient.Stat(ctx, "f")
		if want := map[string]errs.Kind{"canceled": errs.Canceled, "late": errs.Timeout}[name]; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	thaw()
	s.nameNode.budget = time.Minute
	if got, err := readAll(t.Context(), s, o, block.Extent{Length: o.Length}); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after the thaw: %d bytes, %v", len(got), err)
	}
}

// A NameNode that restarts shows as no error: calls wait for it.
func TestNameNodeRestarts(t *testing.T) {
	c := newCluster(t)
	s := c.open(t, nil, map[string]string{"namenode_timeout": "2s"})
	s.nameNode.budget = 3 * time.Minute
	data := random(5, 2*blockSize)
	c.put(t, "f", data, 3)
	o := object(t, s, "f")
	if err := c.Kill(t.Context(), "nn"); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error { return c.Revive(t.Context()) })
	for range 3 {
		g.Go(func() error {
			if got := object(t, s, "f"); got != o {
				return fmt.Errorf("%+v was %+v", got, o)
			}
			got, err := readAll(t.Context(), s, o, block.Extent{Length: o.Length})
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("other bytes")
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// A file that is open for write is served and not to be kept.
func TestOpenForWrite(t *testing.T) {
	c := newCluster(t)
	s := c.open(t, nil, nil)
	s.now = func() time.Time { return time.Now().Add(time.Hour) }
	data := random(6, 2*blockSize)
	w, err := c.client.CreateFile(c.dir+"/f", 1, blockSize, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[:blockSize+1000]); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	look := func() ufs.Info {
		t.Helper()
		info, err := s.Stat(t.Context(), "f")
		if err != nil {
			t.Fatal(err)
		}
		for _, recursive := range []bool{false, true} {
			for listed, err := range s.List(t.Context(), "", ufs.ListOptions{Recursive: recursive}) {
				if err != nil || listed != info {
					t.Errorf("recursive %v: listed %+v, %v; is %+v", recursive, listed, err, info)
				}
			}
		}
		return info
	}
	open := look()
	if !open.Unsettled || open.Size < blockSize {
		t.Errorf("open for write: %+v", open)
	}
	got, err := readAll(t.Context(), s, ufs.Object{Path: "f", Tag: open.Tag, Length: open.Size}, block.Extent{Length: open.Size})
	if err != nil || !bytes.Equal(got, data[:open.Size]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := w.Write(data[blockSize+1000:]); err != nil {
		t.Fatal(err)
	}
	if err := testenv.CloseHDFS(w); err != nil {
		t.Fatal(err)
	}
	closed := look()
	if closed.Unsettled || closed.Size != int64(len(data)) || closed.Tag == open.Tag {
		t.Errorf("closed: %+v, was %+v", closed, open)
	}
	s.now = time.Now
	if fresh := look(); !fresh.Unsettled {
		t.Errorf("just closed: %+v", fresh)
	}
	if _, err := readAll(t.Context(), s, ufs.Object{Path: "f", Tag: open.Tag, Length: open.Size}, block.Extent{Length: 1}); !errors.Is(err, errs.Stale) {
		t.Errorf("the version from before: %v", err)
	}
}

// What is not allowed is said to be so.
func TestPermission(t *testing.T) {
	c := newCluster(t)
	c.put(t, "d/f", random(7, 10), 1)
	if err := c.client.Chmod(c.dir+"/d", 0o700); err != nil {
		t.Fatal(err)
	}
	s := c.open(t, nil, map[string]string{"user": "nobody"})
	for _, name := range []string{"d/f", "d/none"} {
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, errs.Permission) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, err := range s.List(t.Context(), "d", ufs.ListOptions{}) {
		if !errors.Is(err, errs.Permission) {
			t.Errorf("list: %v", err)
		}
	}
	c.put(t, "open", random(7, 10), 1)
	if _, err := s.Stat(t.Context(), "co:lon"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a name that cannot be: %v", err)
	}
	if _, err := s.Stat(t.Context(), "\xff"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a name that is not UTF-8: %v", err)
	}
}

// With several NameNodes, the one that does not answer costs one deadline and
// is then the last that is asked.
func TestSeveralNameNodes(t *testing.T) {
	c := newCluster(t)
	frozen, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	s := c.open(t, nil, map[string]string{
		"namenodes": strings.Join([]string{frozen.Addr().String(), c.Address()}, ","), "namenode_timeout": "1s", "clients": "1",
	})
	for range 3 {
		if _, err := s.Stat(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if first := s.nameNode.addresses[0]; first != c.Address() {
		t.Errorf("first comes %s", first)
	}
	accepted := 0
	for ; ; accepted++ {
		if err := frozen.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		conn, err := frozen.Accept()
		if err != nil {
			break
		}
		conn.Close()
	}
	if accepted != 1 {
		t.Errorf("the frozen NameNode was asked %d times", accepted)
	}
}
