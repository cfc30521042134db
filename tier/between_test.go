package tier

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// waitBlocked returns once a goroutine waits for a mutex within fn.
func waitBlocked(t *testing.T, fn string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for t.Context().Err() == nil {
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, fn) && strings.Contains(stack, "[sync.Mutex.Lock") {
				return
			}
		}
		runtime.Gosched()
	}
	t.Fatal("nobody came")
}

// hookFS calls a function once, after the next read from or write to a
// backing file.
type hookFS struct {
	vfs.FS

	next atomic.Pointer[func()]
}

type hookFile struct {
	vfs.File

	fs *hookFS
}

func (h *hookFS) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := h.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.Contains(name, "/"+dataDir+"/") {
		return f, err
	}
	return hookFile{f, h}, nil
}

func (h *hookFS) then(fn func()) { h.next.Store(&fn) }

func (h *hookFS) fire() {
	if fn := h.next.Swap(nil); fn != nil {
		(*fn)()
	}
}

func (f hookFile) WriteAt(p []byte, off int64) (int, error) {
	defer f.fs.fire()
	return f.File.WriteAt(p, off)
}

func (f hookFile) ReadAt(p []byte, off int64) (int, error) {
	defer f.fs.fire()
	return f.File.ReadAt(p, off)
}

// laterShard names a file that walks over the store meet after f.
func laterShard(f File, length int64) File {
	for i := 0; ; i++ {
		g := testFile("later"+string(rune('a'+i)), "1", length)
		if g.ID[15]%shardCount > f.ID[15]%shardCount {
			return g
		}
	}
}

// startMove copies a file up to the point where the copy takes its place.
func startMove(t *testing.T, s *Store, f File, to *dir) *move {
	t.Helper()
	p := s.lookup(f.ID)
	if !to.startCopy(p.id) {
		t.Fatal("it is being copied")
	}
	m := &move{s: s, from: s.dirOf(p), to: to, room: to.takeFree, buf: make([]byte, page)}
	var err error
	if m.old, err = s.beginMove(p); err != nil {
		t.Fatal(err)
	}
	m.new = s.copyOf(p, to)
	if err := m.copyPages(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *move) end() {
	m.new.Release()
	m.old.Release()
	m.to.endCopy(m.old.p.id)
}

// TestVanishedFileIsToldWhole: an eviction that finds the file of a large part
// gone gives up all of it, and says so.
func TestVanishedFileIsToldWhole(t *testing.T) {
	told := map[uint32]int64{}
	s := openStore(t, t.TempDir(), 16*mib, func(o *Options, _ *Config) {
		o.OnChange = func(b BlockState) { told[b.Index] = b.CachedBytes }
	})
	f := largeFile("large")
	if err := fillRange(s, f, block.Extent{Length: 8 * page}); err != nil {
		t.Fatal(err)
	}
	d, p := s.dirs[0], s.lookup(f.ID)
	p.mu.Lock()
	d.letGo(p)
	u := p.unitOf(0)
	p.mu.Unlock()
	if err := os.Remove(d.partName(f.ID)); err != nil {
		t.Fatal(err)
	}
	d.evict(u)
	if told[0] != 0 || told[1] != 0 {
		t.Fatalf("nothing is cached, told are %v", told)
	}
	checkLedger(t, s)
}

// TestAlwaysVerifiedIsNotHandedOut: who wants every read checked gets no
// descriptor, by which nobody checks.
func TestAlwaysVerifiedIsNotHandedOut(t *testing.T) {
	s := openStoreWithLeases(t, 16*mib)
	f := testFile("f", "1", page)
	fill(t, s, f)
	h := acquire(t, s, f, f.Geometry().Whole())
	h.VerifyAlways()
	if fd, _, _, err := h.HandOut(); !errors.Is(err, errs.Unsupported) {
		_ = fd.Close()
		t.Fatalf("handed out: %v", err)
	}
}

// TestDamagedIsNotHandedOut: a page that was found damaged after it was
// checked keeps its file from being given away.
func TestDamagedIsNotHandedOut(t *testing.T) {
	s := openStoreWithLeases(t, 16*mib)
	f := testFile("f", "1", 3*page)
	fill(t, s, f)
	h := acquire(t, s, f, f.Geometry().Whole())
	if err := h.checkUnchecked(); err != nil {
		t.Fatal(err)
	}
	crc, _ := h.PageCRC(1)
	h.judge(1, crc, false, 0)
	if fd, err := h.openAnew(s.dirs[0]); !errors.Is(err, errs.NotCached) {
		_ = fd.Close()
		t.Fatalf("handed out: %v", err)
	}
}

// TestDirectoryFailsAsACopyIsDone: a directory that fails while a copy into it
// takes the place of the old part forgets that copy, too.
func TestDirectoryFailsAsACopyIsDone(t *testing.T) {
	bfs := &blockingFS{FS: quick(), release: make(chan error), within: "/ssd/" + indexDir + "/"}
	s := twoTiers(t, t.TempDir(), withFS(bfs))
	f := testFile("f", "1", 2*page)
	later := laterShard(f, page)
	fillIn(t, s, "ssd", f)
	fillIn(t, s, "ssd", later)
	m := startMove(t, s, f, dirNamed(t, s, "mem"))
	arrived := make(chan struct{})
	bfs.mu.Lock()
	bfs.arrived = arrived
	bfs.mu.Unlock()
	moved := make(chan bool)
	go func() {
		done, err := m.finish()
		moved <- done && err == nil
	}()
	<-arrived // the move is decided
	other := s.lookup(later.ID)
	other.mu.Lock()
	m.to.fail(m.to.unusable(syscall.EIO))
	out := make(chan struct{})
	go func() {
		defer close(out)
		s.takeOut(m.to)
	}()
	waitBlocked(t, "forgetAll")
	bfs.release <- nil
	if !<-moved {
		t.Fatal("the move failed")
	}
	m.end()
	other.mu.Unlock()
	<-out
	if p := s.lookup(f.ID); p != nil {
		t.Fatal("a file of the failed directory is still found")
	}
	fill(t, s, f)
	mustRead(t, s, f, 2)
	wantAt(t, s, f, "ssd")
	checkLedger(t, s)
}

// TestSnapshotAsACopyIsDone: a snapshot that is written while a copy takes the
// place of the old part has the record of that copy.
func TestSnapshotAsACopyIsDone(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"ssd", SSD, 64 * mib}, {"hdd", HDD, 64 * mib}}
	s := openTiers(t, root, specs)
	f := largeFile("large")
	later := laterShard(f, page)
	e := block.Extent{Length: 2 * page}
	s.dirs[0].ledger.add(60*mib, 0)
	if err := fillRange(s, f, e); err != nil {
		t.Fatal(err)
	}
	fill(t, s, later)
	s.dirs[0].ledger.free(60*mib, 0)
	wantAt(t, s, f, "hdd")
	m := startMove(t, s, f, s.dirs[0])
	other := s.lookup(later.ID)
	other.mu.Lock()
	compacted := make(chan error)
	go func() { compacted <- m.to.compact(true) }()
	waitBlocked(t, "addPartByBlock")
	if done, err := m.finish(); !done || err != nil {
		t.Fatal(done, err)
	}
	m.end()
	other.mu.Unlock()
	if err := <-compacted; err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, f, "ssd")
	checkLedger(t, s)
	abandon(t, s)
	s = openTiers(t, root, specs)
	wantAt(t, s, f, "ssd")
	mustRead(t, s, f, 2)
	checkLedger(t, s)
}

// TestCopyGoesThoughTheIndexFails: a move that is given up leaves nothing
// behind, even if its end cannot be recorded.
func TestCopyGoesThoughTheIndexFails(t *testing.T) {
	root := t.TempDir()
	ffs := vfs.Faulty(quick())
	s := twoTiers(t, root, withFS(ffs))
	f := testFile("f", "1", 2*page)
	fillIn(t, s, "ssd", f)
	mem := dirNamed(t, s, "mem")
	m := startMove(t, s, f, mem)
	ffs.Set(rule(t, "write path~mem/index err=EIO"))
	m.giveUp()
	m.end()
	ffs.Set()
	if u := mem.queue.units(); len(u) != 0 {
		t.Fatal("the copy is still a victim of its directory")
	}
	s.upkeep()
	if st := mem.ledger.state(); st.held != 0 {
		t.Fatalf("%d bytes are held", st.held)
	}
	checkLedger(t, s)
	if err := moveTo(t, s, f, "mem"); err != nil {
		t.Fatal(err)
	}
	checkLedger(t, s)
	abandon(t, s)
	s = twoTiers(t, root)
	wantAt(t, s, f, "mem")
	mustRead(t, s, f, 2)
	checkLedger(t, s)
}

// TestSecondCopyOnABadDisk: a second copy that cannot be dropped from the
// index does not keep the store from its start.
func TestSecondCopyOnABadDisk(t *testing.T) {
	root := t.TempDir()
	kept := filepath.Join(root, "kept")
	s := twoTiers(t, root)
	f := testFile("f", "1", 2*page)
	fillIn(t, s, "ssd", f)
	m := startMove(t, s, f, dirNamed(t, s, "mem"))
	for _, name := range []string{"mem", "ssd"} {
		copyTree(t, filepath.Join(root, name), filepath.Join(kept, name))
	}
	m.giveUp()
	m.end()
	// The first write is the head of a segment.
	ffs := vfs.Faulty(quick(), rule(t, "write path~ssd/index from=2 err=EIO"))
	s = twoTiers(t, kept, withFS(ffs))
	if ffs.Fired() == 0 {
		t.Fatal("nothing failed")
	}
	wantAt(t, s, f, "mem")
	mustRead(t, s, f, 2)
	checkLedger(t, s)
	ffs.Set()
	abandon(t, s)
	s = twoTiers(t, kept)
	wantAt(t, s, f, "mem")
	checkLedger(t, s)
}

// TestDroppedVersionsAreForgotten: older versions that are dropped do not stay
// in memory until room is wanted.
func TestDroppedVersionsAreForgotten(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, withFS(quick()))
	d := s.dirs[0]
	for i := range 2 * idleSuperseded {
		p := &part{id: block.FileID{1, byte(i), byte(i >> 8)}, flags: partDead}
		p.unit.part = p
		d.supersede(p)
	}
	old, now := testFile("f", "1", page), testFile("f", "2", page)
	fill(t, s, old)
	fill(t, s, now)
	s.upkeep()
	if n := len(d.superseded); n != 1 {
		t.Fatalf("%d older versions are kept, 1 is there", n)
	}
	if p := d.nextSuperseded(); p != s.lookup(old.ID) {
		t.Fatal("the older version is no victim")
	}
	d.supersede(s.lookup(old.ID))
	d.fail(d.unusable(syscall.EIO))
	s.takeOut(d)
	if len(d.superseded) != 0 {
		t.Fatal("a failed directory keeps what it had in memory")
	}
}

// TestSupersededMakeRoomForMoves: a mover that needs room gives up older
// versions before it moves anything down.
func TestSupersededMakeRoomForMoves(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	var files []File
	for _, name := range []string{"a", "b", "c", "d", "e", "x", "g"} {
		f := testFile(name, "1", mib/2)
		if name == "x" { // room for the other and its directory
			f = testFile(name, "1", mib*5/8)
		}
		fillIn(t, s, "mem", f)
		files = append(files, f)
	}
	fillIn(t, s, "ssd", testFile("x", "2", 1000))
	f := testFile("up", "1", mib/2)
	fillIn(t, s, "ssd", f)
	mem := dirNamed(t, s, "mem")
	st := mem.ledger.state()
	full := st.limit - st.used
	mem.ledger.add(full, 0)
	if _, err := s.move(t.Context(), s.lookup(f.ID), mem, s.roomByMoving(t.Context(), mem)); err != nil {
		t.Fatal(err)
	}
	mem.ledger.free(full, 0)
	wantAt(t, s, f, "mem")
	for _, f := range files {
		want := "mem"
		if f.Path == "x" {
			want = ""
		}
		wantAt(t, s, f, want)
	}
	checkLedger(t, s)
}

// TestSyncFailsBesideAll: a sync that fails while a page is filled or checked
// leaves that page to be checked again, for the kernel may have thrown its
// bytes away.
func TestSyncFailsBesideAll(t *testing.T) {
	ffs := vfs.Faulty(quick())
	hook := &hookFS{FS: ffs}
	s := openStore(t, t.TempDir(), 16*mib, withFS(hook))
	d := s.dirs[0]
	f := testFile("f", "1", 2*page)
	syncFails := func() {
		ffs.Set(rule(t, "syncfs err=EIO"))
		defer ffs.Set()
		if err := d.checkpoint(flagClean); err == nil {
			t.Error("nothing failed")
		}
	}
	hook.then(syncFails)
	fill(t, s, f)
	if verified(s, f, 0) || !verified(s, f, 1) {
		t.Error("filled: the wrong page counts as checked")
	}
	d.unverifyAll()
	hook.then(syncFails)
	mustRead(t, s, f, 2)
	if verified(s, f, 0) || !verified(s, f, 1) {
		t.Error("read: the wrong page counts as checked")
	}
	d.unverifyAll()
	h := acquire(t, s, f, f.Geometry().Whole())
	hook.then(syncFails)
	if err := h.checkUnchecked(); err != nil {
		t.Fatal(err)
	}
	if verified(s, f, 0) || !verified(s, f, 1) {
		t.Error("handed out: the wrong page counts as checked")
	}
	d.unverifyAll()
	hook.then(syncFails)
	pass(t, s)
	if verified(s, f, 0) || !verified(s, f, 1) {
		t.Error("scrubbed: the wrong page counts as checked")
	}
}

// TestRepairComesTooLate: a page that a reader dropped while it was fetched
// was not repaired.
func TestRepairComesTooLate(t *testing.T) {
	var s *Store
	f := testFile("f", "1", 3*page)
	s = openStore(t, t.TempDir(), 16*mib, withFS(quick()), func(o *Options, _ *Config) {
		o.Refetch = func(context.Context, File, int64) ([]byte, error) {
			if _, err := readPages(s, f); !errors.Is(err, errs.Corrupt) {
				t.Errorf("a reader found no damage: %v", err)
			}
			return pageBytes(f, 1), nil
		}
	})
	fill(t, s, f)
	flip(t, s, f, 1)
	pass(t, s)
	if st := s.Stats(); st.RepairedPages != 0 || st.ScrubDropped != 0 {
		t.Errorf("%+v", st)
	}
	mustRead(t, s, f, 2)
	checkLedger(t, s)
}

// TestAllAtOnce lets readers, fills, new versions, drops, descriptors, moves,
// the scrubber and directories that fail and come back meet. What is told of
// the blocks in the end is what there is.
func TestAllAtOnce(t *testing.T) {
	var mu sync.Mutex
	told := map[string]BlockState{}
	key := func(b BlockState) string { return fmt.Sprint(b.File, b.Index) }
	specs := []spec{{"mem", Memory, 5 * mib}, {"ssd", SSD, 7 * mib}, {"hdd", HDD, 8 * mib}}
	s := openTiers(t, t.TempDir(), specs, func(o *Options, c *Config) {
		strict(o, c)
		c.OpenFiles = 4
		o.Moves = DefaultMoves()
		o.Moves.PromoteHits = 1
		o.Refetch = func(_ context.Context, f File, page int64) ([]byte, error) { return pageBytes(f, page), nil }
		o.OnChange = func(b BlockState) {
			mu.Lock()
			defer mu.Unlock()
			if told[key(b)] = b; b.CachedBytes == 0 {
				delete(told, key(b))
			}
		}
	})
	draw := func(rnd *rand.Rand) File {
		i := rnd.IntN(30)
		if i == 0 {
			return testFileBlocks("large", fmt.Sprint(rnd.IntN(2)), wholeLimit+9, 2*page)
		}
		return testFileBlocks(fmt.Sprintf("d%d/%d", i%3, i), fmt.Sprint(rnd.IntN(2)), int64(i)*20_000, page)
	}
	stop := make(chan struct{})
	going := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	var others, readers sync.WaitGroup
	for range 2 { // movers
		others.Go(func() {
			for going() {
				select {
				case p := <-s.moves.parts:
					s.promote(t.Context(), p)
				case <-stop:
				}
			}
		})
	}
	others.Go(func() { // disks that fail
		for n := 0; going(); n++ {
			if i := n % 3; n < 30 {
				d := s.current()[i]
				d.fail(d.unusable(syscall.EIO))
				s.takeOut(d)
				if err := s.bringBack(i); err != nil {
					t.Error(err)
					return
				}
			}
			s.upkeep()
			for _, d := range s.current() {
				newScrubber(d).step(t.Context())
				if err := d.compact(n%4 == 0); err != nil && !errors.Is(err, errs.NoSpace) {
					t.Error(err)
				}
			}
		}
	})
	for w := range 4 {
		readers.Go(func() {
			rnd := newRand(uint64(w))
			for range 100 {
				f := draw(rnd)
				pages := f.Geometry().Pages()
				first := rnd.Int64N(pages) * rnd.Int64N(2)
				e := f.Geometry().PagesExtent(first, min(pages, first+4))
				err := readThrough(s, f, e)
				switch errs.KindOf(err) {
				case errs.Unavailable, errs.NoSpace, errs.NotCached, errs.Corrupt: // that the read begins anew
				default:
					if err != nil {
						t.Errorf("%s: %v", f.Path, err)
					}
				}
				switch rnd.IntN(12) {
				case 0:
					if _, _, err := s.Drop(1, f.Path); err != nil {
						t.Error(err)
					}
				case 1, 2:
					if fd, err := handOut(t, s, f); err == nil {
						sameBytes(t, fd, f)
						_ = fd.Close()
					}
				case 3:
					s.Touch(f.ID, 1)
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	others.Wait()
	checkLedger(t, s)
	there := map[string]BlockState{}
	for b := range s.Blocks() {
		there[key(b)] = b
	}
	if diff := cmp.Diff(there, told); diff != "" {
		t.Errorf("the blocks that are there, and those that are told: %s", diff)
	}
	st := s.Stats()
	if st.ChecksumErrors != 0 {
		t.Errorf("%+v", st)
	}
	for i := range s.shards {
		for _, p := range s.shards[i].parts {
			if p.refs != 0 || p.dirIndex != noDir && !slices.Contains(s.current(), s.dirOf(p)) {
				t.Errorf("%s: %d uses, in a directory that failed", p.path(), p.refs)
			}
		}
	}
	if files, size := s.Usage(1, ""); int64(files) != st.CachedFiles || size != st.CachedBytes {
		t.Errorf("%d files, %d bytes: %+v", files, size, st)
	}
	for _, d := range s.current() {
		if len(d.copies) != 0 {
			t.Errorf("%d copies are under way", len(d.copies))
		}
		for _, u := range d.queue.units() {
			if s.lookup(u.part.id) != u.part || s.dirOf(u.part) != d {
				t.Errorf("a victim of %s that nobody finds: %s", d.root, u.part.path())
			}
		}
	}
}
