package tier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/vfs"
)

// twoTiers has room for a few small files in memory and for all on the disk.
func twoTiers(t testing.TB, root string, opts ...opener) *Store {
	t.Helper()
	return openTiers(t, root, []spec{{"mem", Memory, 6 * mib}, {"ssd", SSD, 64 * mib}}, opts...)
}

// fillIn fills a file into one directory, as if the others had no room.
func fillIn(t testing.TB, s *Store, dir string, f File) {
	t.Helper()
	var undo []func()
	for _, d := range s.dirs {
		if st := d.ledger.state(); filepath.Base(d.root) != dir {
			n := max(st.limit-st.used, 0)
			d.ledger.add(n, 0)
			undo = append(undo, func() { d.ledger.free(n, 0) })
		}
	}
	fill(t, s, f)
	for _, fn := range undo {
		fn()
	}
	wantAt(t, s, f, dir)
}

func dirNamed(t testing.TB, s *Store, name string) *dir {
	t.Helper()
	for _, d := range s.dirs {
		if filepath.Base(d.root) == name {
			return d
		}
	}
	t.Fatalf("no directory %s", name)
	return nil
}

// promoteQueued does the movers' work that is waiting.
func promoteQueued(t testing.TB, s *Store) (n int) {
	t.Helper()
	for {
		select {
		case p := <-s.moves.parts:
			s.promote(t.Context(), p)
			n++
		default:
			return n
		}
	}
}

func moveTo(t testing.TB, s *Store, f File, dir string) error {
	t.Helper()
	d := dirNamed(t, s, dir)
	_, err := s.move(t.Context(), s.lookup(f.ID), d, d.makeRoom)
	return err
}

// TestPromotion reads a file from its start until it is often enough.
func TestPromotion(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	f := testFile("f", "1", 2*page+5)
	fillIn(t, s, "ssd", f)
	readRest := func() {
		h, err := s.Acquire(f, block.Extent{Offset: 1, Length: f.Length - 1})
		if err != nil {
			t.Fatal(err)
		}
		h.Release()
	}
	for i := range 3 {
		for range 5 {
			readRest() // the rest of a reading counts for nothing
		}
		if n := promoteQueued(t, s); n != 0 {
			t.Fatalf("queued after %d readings", i)
		}
		mustRead(t, s, f, 3)
	}
	if n := promoteQueued(t, s); n != 1 {
		t.Fatalf("%d are queued", n)
	}
	wantAt(t, s, f, "mem")
	mustRead(t, s, f, 3)
	st := s.Stats()
	if st.PromotedFiles != 1 || st.PromotedBytes != f.Length || st.CachedFiles != 1 || st.CachedBytes != f.Length || st.FilledPages != 3 {
		t.Fatalf("%+v", st)
	}
	if files, size := s.Usage(1, "f"); files != 1 || size != f.Length {
		t.Fatal(files, size)
	}
	for range 9 {
		mustRead(t, s, f, 3)
	}
	if n := promoteQueued(t, s); n != 0 {
		t.Fatal("a file in the fastest tier is queued")
	}
	checkLedger(t, s)
}

// TestPromotionWindow: readings that are too far apart do not add up.
func TestPromotionWindow(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	f := testFile("f", "1", page)
	fillIn(t, s, "ssd", f)
	window := time.Duration(s.opts.Moves.PromoteWindow)
	for i := range 5 {
		s.moves.turn(time.Duration(i) * window)
		mustRead(t, s, f, 1)
		mustRead(t, s, f, 1)
	}
	if n := promoteQueued(t, s); n != 0 {
		t.Fatal("queued")
	}
	mustRead(t, s, f, 1)
	if n := promoteQueued(t, s); n != 1 {
		t.Fatal("not queued")
	}
}

// TestTouchPromotes: readings that the store is told of count for a move.
func TestTouchPromotes(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	f := testFile("f", "1", page)
	s.Touch(f.ID, 3)
	fillIn(t, s, "ssd", f)
	s.Touch(f.ID, 2)
	s.Touch(f.ID, -1)
	if s.lookup(f.ID).state.Load()&unitVisited == 0 {
		t.Fatal("the policy was not told")
	}
	if n := promoteQueued(t, s); n != 0 {
		t.Fatal("queued")
	}
	s.Touch(f.ID, 1<<40)
	if n := promoteQueued(t, s); n != 1 {
		t.Fatal("not queued")
	}
	wantAt(t, s, f, "mem")
	s.Touch(f.ID, 5)
}

// TestMoveQueueIsBounded: what does not fit in the queue stays where it is.
func TestMoveQueueIsBounded(t *testing.T) {
	s := twoTiers(t, t.TempDir(), func(o *Options, _ *Config) {
		o.Moves = MoveConfig{Movers: 1, MoveQueue: 2, PromoteHits: 1, PromoteWindow: size.Duration(time.Second)}
	})
	for i := range 5 {
		f := testFile(fmt.Sprint(i), "1", page)
		fillIn(t, s, "ssd", f)
		mustRead(t, s, f, 1)
	}
	if n := s.Stats().MovesDropped; n != 3 {
		t.Fatalf("%d are dropped", n)
	}
	if n := promoteQueued(t, s); n != 2 {
		t.Fatalf("%d were queued", n)
	}
}

// TestLargeStays: no directory takes more than an eighth of itself by
// promotion, blocks of a large file only together.
func TestLargeStays(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"ssd", SSD, 8 * mib}, {"hdd", HDD, 64 * mib}})
	f := testFile("f", "1", mib+1)
	large := testFileBlocks("large", "1", wholeLimit+page, 4*page)
	fillIn(t, s, "hdd", f)
	if err := fillRange(s, large, large.Geometry().PagesExtent(0, 2)); err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, large, "hdd")
	for range 9 {
		mustRead(t, s, f, 5)
		mustRead(t, s, large, 2)
	}
	s.Touch(large.ID, 9)
	promoteQueued(t, s)
	wantAt(t, s, f, "hdd")
	wantAt(t, s, large, "hdd")
}

// TestLargeMoves moves a part that is evicted by block, all its blocks at once.
func TestLargeMoves(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"ssd", SSD, 600 * mib}, {"hdd", HDD, 64 * mib}}
	s := openTiers(t, root, specs)
	large := testFileBlocks("large", "1", wholeLimit+page, 4*page)
	for _, first := range []int64{0, 5, 100, 256} {
		if err := fillRange(s, large, large.Geometry().PagesExtent(first, min(first+3, 257))); err != nil {
			t.Fatal(err)
		}
	}
	if err := moveTo(t, s, large, "hdd"); err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, large, "hdd")
	mustRead(t, s, large, 10)
	checkLedger(t, s)
	ssd := dirNamed(t, s, "ssd")
	_, err := s.move(t.Context(), s.lookup(large.ID), ssd, func(bytes, inodes int64) error {
		if err := ssd.compact(true); err != nil { // with some of the copy in the index
			t.Fatal(err)
		}
		return ssd.takeFree(bytes, inodes)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, large, "ssd")
	mustRead(t, s, large, 10)
	checkLedger(t, s)
	abandon(t, s)
	s = openTiers(t, root, specs)
	wantAt(t, s, large, "ssd")
	mustRead(t, s, large, 10)
	checkLedger(t, s)
}

// TestMoveUnderHandle: who reads the old file goes on, and keeps its room.
func TestMoveUnderHandle(t *testing.T) {
	s := twoTiers(t, t.TempDir(), withFS(vfs.OS()))
	f := testFile("f", "1", 3*page)
	fillIn(t, s, "ssd", f)
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	sent, _, ok := h.Section(0, f.Length)
	if !ok {
		t.Fatal("no section")
	}
	if err := moveTo(t, s, f, "mem"); err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, f, "mem")
	for range 2 {
		b := make([]byte, f.Length)
		if _, err := h.ReadAt(b, 0); err != nil || !bytes.Equal(b[page:2*page], pageBytes(f, 1)) {
			t.Fatal(err)
		}
		if _, err := sent.ReadAt(b, 0); err != nil || !bytes.Equal(b[page:2*page], pageBytes(f, 1)) {
			t.Fatal(err)
		}
		mustRead(t, s, f, 3)
		s.upkeep()
	}
	if n := dirNamed(t, s, "ssd").ledger.state().held; n < f.Length {
		t.Fatalf("%d bytes are held", n)
	}
	checkLedger(t, s)
	h.Release()
	if n := dirNamed(t, s, "ssd").ledger.state().held; n != 0 {
		t.Fatalf("%d bytes are still held", n)
	}
	checkLedger(t, s)
}

// TestMoveWithFills: pages that come while others are copied are copied too; a
// part with a fill under way is not switched.
func TestMoveWithFills(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	f := testFile("f", "1", 4*page)
	d, mem := dirNamed(t, s, "ssd"), dirNamed(t, s, "mem")
	n := mem.ledger.state().limit - mem.ledger.state().used
	mem.ledger.add(n, 0)
	if err := fillRange(s, f, f.Geometry().PagesExtent(2, 4)); err != nil {
		t.Fatal(err)
	}
	mem.ledger.free(n, 0)
	late := int64(0) // behind what is copied just then
	_, err := s.move(t.Context(), s.lookup(f.ID), mem, func(bytes, inodes int64) error {
		if late < 2 {
			if err := fillRange(s, f, f.Geometry().PagesExtent(late, late+1)); err != nil {
				t.Fatal(err)
			}
			late++
		}
		return mem.takeFree(bytes, inodes)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, f, "mem")
	mustRead(t, s, f, 4)
	checkLedger(t, s)

	g := testFile("g", "1", 4*page)
	fillIn(t, s, "ssd", g)
	h, err := s.Acquire(g, g.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.Reserve(g.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	before := mem.ledger.state().used
	if err := moveTo(t, s, g, "mem"); err == nil {
		t.Fatal("moved under a fill")
	}
	wantAt(t, s, g, "ssd")
	if used := mem.ledger.state(); used.held != 0 || used.used > before+d.block*2 {
		t.Fatalf("the copy is still charged: %+v, before %d", used, before)
	}
	r.Release()
	h.Release()
	if err := moveTo(t, s, g, "mem"); err != nil {
		t.Fatal(err)
	}
	checkLedger(t, s)
}

// TestCorruptPageIsNotMoved: neither one that was never read nor one that went
// bad after it was.
func TestCorruptPageIsNotMoved(t *testing.T) {
	for _, verified := range []bool{true, false} {
		s := twoTiers(t, t.TempDir())
		f := testFile("f", "1", 3*page)
		fillIn(t, s, "ssd", f)
		p := s.lookup(f.ID)
		p.mu.Lock()
		if !verified {
			p.unverify()
		}
		_, err := p.file.WriteAt([]byte("harm"), page+7)
		p.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := moveTo(t, s, f, "mem"); err != nil {
			t.Fatal(err)
		}
		wantAt(t, s, f, "mem")
		mustRead(t, s, f, 2)
		if st := s.Stats(); st.ChecksumErrors != 1 || st.CachedBytes != 2*page {
			t.Fatalf("%+v", st)
		}
		fill(t, s, f)
		mustRead(t, s, f, 3)
		checkLedger(t, s)
	}
}

// TestDemotion: what makes room in the fast tier goes down if there is room,
// and is given up if there is none.
func TestDemotion(t *testing.T) {
	for _, room := range []bool{true, false} {
		s := twoTiers(t, t.TempDir())
		var small []File
		for i := range 30 {
			f := testFile(fmt.Sprint(i), "1", mib/2)
			fill(t, s, f)
			if where(s, f) != "mem" {
				break
			}
			small = append(small, f)
		}
		young, old := small[len(small)-1], small[:len(small)-1]
		hot := testFile("hot", "1", mib/2)
		fillIn(t, s, "ssd", hot)
		if !room {
			d := dirNamed(t, s, "ssd")
			d.ledger.add(d.ledger.state().limit-d.ledger.state().used, 0)
		}
		s.Touch(hot.ID, 9)
		promoteQueued(t, s)
		wantAt(t, s, hot, "mem")
		st := s.Stats()
		if room {
			wantAt(t, s, young, "ssd")
			mustRead(t, s, young, 2)
			if st.DemotedFiles != 1 || st.DemotedBytes != mib/2 || st.EvictedFiles != 0 {
				t.Fatalf("%+v", st)
			}
			checkLedger(t, s)
		} else {
			wantAt(t, s, young, "")
			if st.DemotedFiles != 0 || st.EvictedFiles != 1 {
				t.Fatalf("%+v", st)
			}
		}
		for _, f := range old {
			wantAt(t, s, f, "mem")
		}
	}
}

// TestOpenElsewhereIsNotMoved: whoever has the file open would keep it, and
// its room.
func TestOpenElsewhereIsNotMoved(t *testing.T) {
	s := twoTiers(t, t.TempDir())
	f := testFile("f", "1", page)
	fillIn(t, s, "ssd", f)
	d := dirNamed(t, s, "ssd")
	if !d.canLease.Load() {
		t.Skip("SKIPPED: this file system has no leases")
	}
	reader, err := os.Open(d.partName(f.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := moveTo(t, s, f, "mem"); !errors.Is(err, errMove) {
		t.Fatal(err)
	}
	wantAt(t, s, f, "ssd")
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if err := moveTo(t, s, f, "mem"); err != nil {
		t.Fatal(err)
	}
	checkLedger(t, s)
}

// TestMoveMeetsOthers: what else happens to a file while it is copied.
func TestMoveMeetsOthers(t *testing.T) {
	f, newer := testFile("f", "1", 2*page), testFile("f", "2", page)
	for _, tc := range []struct {
		name      string
		meanwhile func(t *testing.T, s *Store, cancel func())
		moved     bool
		check     func(t *testing.T, s *Store)
	}{
		{"dropped", func(t *testing.T, s *Store, _ func()) {
			t.Helper()
			if files, _, err := s.Drop(1, "f"); err != nil || files != 1 {
				t.Fatal(files, err)
			}
		}, false, func(t *testing.T, s *Store) {
			t.Helper()
			wantAt(t, s, f, "")
		}},
		{"superseded", func(t *testing.T, s *Store, _ func()) {
			t.Helper()
			fill(t, s, newer)
		}, false, func(t *testing.T, s *Store) {
			t.Helper()
			wantAt(t, s, f, "ssd")
			d := dirNamed(t, s, "ssd")
			if n := len(d.superseded); n != 1 || d.superseded[0].id != f.ID || s.lookup(newer.ID).state.Load()&unitSuperseded != 0 {
				t.Fatalf("%d are superseded", n)
			}
		}},
		{"dropped and filled anew", func(t *testing.T, s *Store, _ func()) {
			t.Helper()
			if files, _, err := s.Drop(1, "f"); err != nil || files != 1 {
				t.Fatal(files, err)
			}
			// Into the directory that the copy goes to: not under its name.
			if err := fillRange(s, f, f.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
				t.Fatal(err)
			}
		}, false, func(t *testing.T, s *Store) {
			t.Helper()
			fill(t, s, f)
			wantAt(t, s, f, "mem")
			mustRead(t, s, f, 2)
		}},
		{"canceled", func(_ *testing.T, _ *Store, cancel func()) { cancel() }, false, func(t *testing.T, s *Store) {
			t.Helper()
			wantAt(t, s, f, "ssd")
			mustRead(t, s, f, 2)
		}},
		{"moved twice", func(t *testing.T, s *Store, _ func()) {
			t.Helper()
			if err := moveTo(t, s, f, "mem"); !errors.Is(err, errMove) {
				t.Fatal(err)
			}
		}, true, func(t *testing.T, s *Store) {
			t.Helper()
			wantAt(t, s, f, "mem")
		}},
		{"compacted", func(t *testing.T, s *Store, _ func()) {
			t.Helper()
			for _, d := range s.dirs {
				if err := d.compact(true); err != nil {
					t.Fatal(err)
				}
			}
		}, true, func(t *testing.T, s *Store) {
			t.Helper()
			wantAt(t, s, f, "mem")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			s := twoTiers(t, root)
			fillIn(t, s, "ssd", f)
			mem := dirNamed(t, s, "mem")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := false
			_, err := s.move(ctx, s.lookup(f.ID), mem, func(bytes, inodes int64) error {
				if !done {
					done = true
					tc.meanwhile(t, s, cancel)
				}
				return mem.takeFree(bytes, inodes)
			})
			if (err == nil) != tc.moved {
				t.Fatal(err)
			}
			tc.check(t, s)
			checkLedger(t, s)
			if st := mem.ledger.state(); st.held != 0 {
				t.Fatalf("%d bytes are held", st.held)
			}
			abandon(t, s)
			s = twoTiers(t, root)
			tc.check(t, s)
			checkLedger(t, s)
		})
	}
}

// TestCrashInMove: killed at any time between the first page and the switch,
// the store has the file once, with all its pages.
func TestCrashInMove(t *testing.T) {
	f := testFile("f", "1", 4*page)
	for _, compact := range []bool{false, true} {
		for pages := range int64(5) {
			root := t.TempDir()
			s := twoTiers(t, root)
			fillIn(t, s, "ssd", f)
			p, mem := s.lookup(f.ID), dirNamed(t, s, "mem")
			m := &move{s: s, from: dirNamed(t, s, "ssd"), to: mem, new: s.copyOf(p, mem), room: mem.takeFree, buf: make([]byte, page)}
			var err error
			if m.old, err = s.beginMove(p); err != nil {
				t.Fatal(err)
			}
			m.old.end = pages
			if err := m.copyPages(t.Context()); err != nil {
				t.Fatal(err)
			}
			if compact {
				if err := mem.compact(true); err != nil {
					t.Fatal(err)
				}
			}
			copyTree(t, filepath.Join(root, "mem"), filepath.Join(root, "kept", "mem"))
			copyTree(t, filepath.Join(root, "ssd"), filepath.Join(root, "kept", "ssd"))
			m.giveUp()
			m.old.end = 4
			m.old.Release()
			m.new.Release()
			checkLedger(t, s)
			s = twoTiers(t, filepath.Join(root, "kept"))
			mustRead(t, s, f, 4)
			want := "ssd"
			if pages == 4 {
				want = "mem"
			}
			wantAt(t, s, f, want)
			checkLedger(t, s)
		}
	}
}

// TestMoveFaults: a move that fails leaves the file as it was.
func TestMoveFaults(t *testing.T) {
	for _, text := range []string{
		"open path~mem/data nth=1 err=EIO",
		"open path~ssd/data nth=1 err=EIO",
		"write path~mem/data nth=1 err=EIO",
		"write path~mem/data nth=2 err=ENOSPC",
		"write path~mem/index nth=1 err=EIO",
		"write path~mem/index nth=2 err=ENOSPC",
		"write path~ssd/index nth=1 err=EIO",
		"truncate path~mem/data nth=1 err=EIO",
		"mkdir path~mem/data nth=1 err=ENOSPC",
		"rename path~ssd/data nth=1 err=EIO",
		"remove path~ssd/held nth=1 err=EIO",
		"read path~ssd/data nth=1 err=EIO",
	} {
		t.Run(text, func(t *testing.T) {
			root := t.TempDir()
			ffs := vfs.Faulty(quick())
			s := twoTiers(t, root, withFS(ffs))
			f := testFile("f", "1", 3*page)
			fillIn(t, s, "ssd", f)
			p := s.lookup(f.ID)
			p.mu.Lock()
			dirNamed(t, s, "ssd").letGo(p)
			p.mu.Unlock()
			ffs.Set(rule(t, text))
			err := moveTo(t, s, f, "mem")
			if ffs.Fired() == 0 {
				t.Fatal("nothing failed")
			}
			if s.Stats().IOErrors == 0 {
				t.Error("the error is not counted")
			}
			ffs.Set()
			n, readErr := readPages(s, f)
			if readErr != nil || n < 2 {
				t.Fatalf("%d pages are left: %v (move: %v)", n, readErr, err)
			}
			if err == nil {
				wantAt(t, s, f, "mem")
			} else {
				wantAt(t, s, f, "ssd")
			}
			for _, d := range s.dirs {
				if du, used := diskUse(t, d.root), d.ledger.state().used; du > used {
					t.Fatalf("disk has %d bytes, ledger %d", du, used)
				}
			}
			abandon(t, s)
			s = twoTiers(t, root)
			mustRead(t, s, f, n)
			checkLedger(t, s)
			if err := moveTo(t, s, f, "mem"); err != nil && where(s, f) != "mem" {
				t.Fatal(err)
			}
			checkLedger(t, s)
		})
	}
}

// TestMovers runs the store: what is read often goes up, and Run ends with
// its movers.
func TestMovers(t *testing.T) {
	moved := make(chan struct{}, 100)
	var s *Store
	f := testFile("f", "1", page)
	var once sync.Once
	s = twoTiers(t, t.TempDir(), func(o *Options, _ *Config) {
		o.OnChange = func(b BlockState) {
			if b.File == f.ID && s.Stats().CachedFiles == 1 && s.dirOf(s.lookup(f.ID)).cfg.Medium == Memory {
				once.Do(func() { close(moved) })
			}
		}
	})
	fillIn(t, s, "ssd", f)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	s.Touch(f.ID, 3)
	<-moved
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, f, "mem")
}

// TestMovesAtOnce lets readers, fills, drops and moves in all directions meet.
func TestMovesAtOnce(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"mem", Memory, 5 * mib}, {"ssd", SSD, 8 * mib}, {"hdd", HDD, 10 * mib}}
	s := openTiers(t, root, specs, func(o *Options, c *Config) {
		c.OpenFiles = 4
		o.Moves = DefaultMoves()
		o.Moves.PromoteHits = 1
	})
	var files []File
	for i := range 40 {
		files = append(files, testFileBlocks(fmt.Sprintf("d%d/%d", i%3, i), "1", int64(i+1)*30_000, 2*page))
	}
	files = append(files, testFileBlocks("large", "1", wholeLimit+5, 4*page))
	ctx, cancel := context.WithCancel(t.Context())
	var movers, readers sync.WaitGroup
	movers.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for g := range 6 {
		readers.Go(func() {
			rnd := newRand(uint64(g))
			for i := range 150 {
				f := files[rnd.IntN(len(files))]
				pages := f.Geometry().Pages()
				first := rnd.Int64N(pages) * rnd.Int64N(2)
				e := f.Geometry().PagesExtent(first, min(pages, first+1+rnd.Int64N(4)))
				h, err := s.Acquire(f, e)
				if err != nil {
					t.Error(err)
					return
				}
				err = fillMissing(h, f)
				if err == nil {
					got, want := make([]byte, e.Length), make([]byte, e.Length)
					content(f, want, e.Offset)
					if _, err = h.ReadAt(got, e.Offset); err == nil && !bytes.Equal(got, want) {
						err = errors.New("wrong bytes")
					}
				}
				h.Release()
				if err != nil && !errors.Is(err, errs.NoSpace) {
					t.Errorf("%s %v: %v", f.Path, e, err)
					return
				}
				switch {
				case i%40 == 7:
					if _, _, err := s.Drop(1, fmt.Sprintf("d%d", g%3)); err != nil {
						t.Error(err)
					}
				case g == 0 && i%25 == 3:
					s.upkeep()
				case g == 1 && i%50 == 9:
					for _, d := range s.dirs {
						if err := d.compact(true); err != nil && !errors.Is(err, errs.NoSpace) {
							t.Error(err)
						}
					}
				}
			}
		})
	}
	readers.Wait()
	cancel()
	movers.Wait()
	st := s.Stats()
	if st.PromotedFiles == 0 || st.ChecksumErrors != 0 || st.IOErrors != 0 {
		t.Fatalf("%+v", st)
	}
	checkLedger(t, s)
	abandon(t, s)
	s = openTiers(t, root, specs)
	for _, f := range files {
		if _, err := readPages(s, f); err != nil {
			t.Fatal(err)
		}
	}
	// A start's new segment of the index may need the room of a victim.
	after := s.Stats()
	kept, count := after.CachedBytes+after.EvictedBytes, after.CachedFiles+after.EvictedFiles
	if kept != st.CachedBytes || count != st.CachedFiles || after.EvictedFiles > int64(len(specs)) || after.ChecksumErrors != 0 {
		t.Fatalf("before %+v\nafter %+v", st, after)
	}
	checkLedger(t, s)
}

// TestDropMeetsMove: a file that is moved while others are dropped does not
// slip through.
func TestDropMeetsMove(t *testing.T) {
	var s *Store
	first := testFile("d/a", "1", page)
	later := testFile("d/b", "1", page)
	for i := 0; later.ID[15]%shardCount == first.ID[15]%shardCount; i++ { // their events must not wait for each other
		later = testFile(fmt.Sprint("d/b", i), "1", page)
	}
	moved := false
	s = twoTiers(t, t.TempDir(), func(o *Options, _ *Config) {
		o.OnChange = func(b BlockState) {
			if b.File == first.ID && b.CachedBytes == 0 {
				moved = moveTo(t, s, later, "mem") == nil
			}
		}
	})
	fillIn(t, s, "ssd", first)
	fillIn(t, s, "ssd", later)
	if files, n, err := s.Drop(1, "d"); err != nil || files != 2 || n != 2*page || !moved {
		t.Fatalf("dropped %d files, %d bytes, moved %v: %v", files, n, moved, err)
	}
	wantAt(t, s, later, "")
	checkLedger(t, s)
}

// TestFailedSyncOfOneDirectory: what others hold still counts as checked.
func TestFailedSyncOfOneDirectory(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := twoTiers(t, t.TempDir(), withFS(ffs))
	a, b := testFile("a", "1", page), testFile("b", "1", page)
	fillIn(t, s, "mem", a)
	fillIn(t, s, "ssd", b)
	ffs.Set(rule(t, "syncfs path~/ssd/ err=EIO"))
	s.upkeep()
	if ffs.Fired() == 0 {
		t.Fatal("nothing failed")
	}
	if !s.lookup(a.ID).isVerified(0) || s.lookup(b.ID).isVerified(0) {
		t.Fatal("the wrong pages are to be checked again")
	}
}
