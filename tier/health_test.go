package tier

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/vfs"
)

func strict(_ *Options, c *Config) { c.MaxErrors, c.ProbeInterval = 4, size.Duration(10*time.Second) }

// states are the states of the directories, in the store's order.
func states(s *Store) string {
	var all []string
	for _, d := range s.Status() {
		all = append(all, d.State)
	}
	return strings.Join(all, " ")
}

// TestWhatFailsADirectory: a few errors in a minute, or one that says that
// there is nothing to be done; but not what is for others to put right.
func TestWhatFailsADirectory(t *testing.T) {
	for text, fills := range map[string]struct {
		n    int
		fail bool
	}{
		"write path~data/ err=EIO":                    {4, true},
		"write path~data/ nth=1 err=EIO":              {8, false},
		"write path~index/ err=EIO":                   {4, true},
		"write,truncate path~index/ err=EIO":          {1, true},
		"write,truncate path~index/ err=ENOSPC":       {1, true},
		"write path~data/ err=EROFS":                  {1, true},
		"open path~data/ err=EROFS":                   {1, true},
		"write path~data/ err=ENOSPC":                 {20, false},
		"write path~data/ err=EDQUOT":                 {20, false},
		"open path~data/ err=EMFILE":                  {20, false},
		"fallocate,write,mkdir path~data/ err=ENOSPC": {20, false},
	} {
		t.Run(text, func(t *testing.T) {
			ffs := vfs.Faulty(quick())
			s := openStore(t, t.TempDir(), 16*mib, withFS(ffs), strict)
			ffs.Set(rule(t, text))
			for i := range fills.n {
				if st := states(s); st != StateOK {
					t.Fatalf("%s after %d fills", st, i)
				}
				f := testFile(fmt.Sprint(i), "1", page)
				if err := fillRange(s, f, f.Geometry().Whole()); err != nil && errs.KindOf(err) != errs.NoSpace && errs.KindOf(err) != errs.Unavailable {
					t.Fatal(err)
				}
			}
			if ffs.Fired() == 0 {
				t.Fatal("the fault did not fire")
			}
			st := s.Status()[0]
			if fills.fail != (st.State == StateFailed) || fills.fail != (st.Reason != nil) {
				t.Fatalf("%+v", st)
			}
			if fills.fail && !strings.Contains(st.Reason.Error(), s.dirs[0].root) {
				t.Errorf("the reason does not name the directory: %v", st.Reason)
			}
		})
	}
}

// TestUnreadablePagesFailADirectory: reads count as writes do.
func TestUnreadablePagesFailADirectory(t *testing.T) {
	ffs := vfs.Faulty(quick())
	s := openStore(t, t.TempDir(), 16*mib, withFS(ffs), strict)
	f := testFile("f", "1", 8*page)
	fill(t, s, f)
	ffs.Set(rule(t, "read path~data/ err=EIO"))
	for range 3 {
		if _, err := readPages(s, f); !errors.Is(err, errs.Corrupt) {
			t.Fatal(err)
		}
	}
	if states(s) != StateOK {
		t.Fatal("3 of 4 errors failed it")
	}
	_, _ = readPages(s, f)
	if states(s) != StateFailed {
		t.Fatal("4 errors did not fail it")
	}
}

// TestRareErrorsAreForgiven: it is the errors of one minute that count.
func TestRareErrorsAreForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ffs := vfs.Faulty(quick())
		s := openStore(t, t.TempDir(), 16*mib, withFS(ffs), strict)
		ffs.Set(rule(t, "write path~data/ err=EIO"))
		for i := range 20 {
			f := testFile(fmt.Sprint(i), "1", page)
			if err := fillRange(s, f, f.Geometry().Whole()); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(21 * time.Second)
		}
		if states(s) != StateOK {
			t.Fatal("an error each 21 s failed it")
		}
	})
}

// fullFS is a file system of which others take free's negative.
type fullFS struct {
	vfs.FS

	free atomic.Int64
}

func (f *fullFS) Statfs(name string) (vfs.Room, error) {
	room, err := f.FS.Statfs(name)
	if n := f.free.Load(); n != 0 {
		room.Free = n
	}
	return room, err
}

// TestFullDiskShrinks: when others take the room, the directory gives up some
// of its own and stays in service.
func TestFullDiskShrinks(t *testing.T) {
	room := &fullFS{FS: quick()}
	s := openStore(t, t.TempDir(), 16*mib, withFS(room), strict)
	for i := range 16 {
		fill(t, s, testFile(fmt.Sprint(i), "1", mib/2))
	}
	room.free.Store(-4 * mib)
	s.upkeep()
	st := s.Status()[0]
	if st.State != StateOK || st.Used > 8*mib || s.Stats().EvictedBytes < 3*mib {
		t.Fatalf("%+v, %d bytes were evicted", st, s.Stats().EvictedBytes)
	}
	checkLedger(t, s)
}

// TestFailedDirectoryIsForgotten: what it had is absent for new readers and
// those under way, is told, and comes into another directory.
func TestFailedDirectoryIsForgotten(t *testing.T) {
	root := t.TempDir()
	ffs := vfs.Faulty(quick())
	told := map[block.FileID]int64{}
	specs := []spec{{"one", SSD, 128 * mib}, {"b", HDD, 8 * mib}}
	s := openTiers(t, root, specs, func(o *Options, c *Config) {
		strict(o, c)
		o.FS = ffs
		o.OnChange = func(b BlockState) { told[b.File] = b.CachedBytes }
	})
	several, one := testFile("several", "1", 3*page), testFile("one", "1", 1000)
	large := testFileBlocks("large", "1", wholeLimit+page, 2*page)
	fill(t, s, several)
	fill(t, s, one)
	if err := fillRange(s, large, block.Extent{Length: 3 * page}); err != nil {
		t.Fatal(err)
	}
	files := []File{several, one, large}
	var handles []*Handle
	for _, f := range files {
		wantAt(t, s, f, "one")
		h, err := s.Acquire(f, f.Geometry().Page(0))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.ReadAt(make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		handles = append(handles, h)
	}
	dropped := testFile("dropped", "1", page) // and still in use
	fill(t, s, dropped)
	held, err := s.Acquire(dropped, dropped.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := s.Drop(1, "dropped"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	h2, err := s.Acquire(several, several.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	room, err := h2.Reserve(several.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}

	s.dirs[0].fail(s.dirs[0].unusable(syscall.EIO))
	f := testFile("late", "1", page)
	fill(t, s, f)
	wantAt(t, s, f, "b")
	s.takeOut(s.dirs[0])
	s.takeOut(s.dirs[0])
	for i, f := range files {
		if told[f.ID] != 0 {
			t.Errorf("%s: %d bytes are told", f.Path, told[f.ID])
		}
		if handles[i].Has(0) {
			t.Errorf("%s: a handle still has it", f.Path)
		}
		if _, err := handles[i].ReadAt(make([]byte, 100), 0); !errors.Is(err, errs.NotCached) {
			t.Errorf("%s: %v", f.Path, err)
		}
		mustRead(t, s, f, 0)
	}
	fill(t, s, several)
	wantAt(t, s, several, "b")
	mustRead(t, s, several, 3)
	if _, err := room.Fill(1, pageBytes(several, 1)); errs.KindOf(err) != errs.Unavailable && errs.KindOf(err) != errs.NoSpace {
		t.Errorf("a fill into the failed directory: %v", err)
	}
	if st := s.Stats(); states(s) != "failed ok" || st.CachedFiles != 2 || st.CachedBytes != 4*page {
		t.Errorf("%s, %+v", states(s), st)
	}
	s.upkeep()
	checkLedger(t, s)
	room.Release()
	h2.Release()
	held.Release()
	for _, h := range handles {
		h.Release()
	}
	checkLedger(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestComeback: a directory comes back with what it had, each page checked
// anew; files that were kept elsewhere meanwhile stay there.
func TestComeback(t *testing.T) {
	root := t.TempDir()
	ffs := vfs.Faulty(quick())
	told := map[block.FileID]int64{}
	s := openTiers(t, root, []spec{{"one", SSD, 128 * mib}, {"b", HDD, 8 * mib}}, func(o *Options, c *Config) {
		strict(o, c)
		o.FS = ffs
		o.OnChange = func(b BlockState) { told[b.File] = b.CachedBytes }
	})
	var files []File
	for i := range 6 {
		f := testFile(fmt.Sprint(i), "1", 2*page+int64(i))
		fill(t, s, f)
		wantAt(t, s, f, "one")
		files = append(files, f)
	}
	old, err := s.Acquire(files[0], files[0].Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.dirs[0].checkpoint(0); err != nil {
		t.Fatal(err)
	}
	flip(t, s, files[1], 1)
	d := s.dirs[0]
	ffs.Set(rule(t, "any path~/one err=EIO"))
	d.fail(d.unusable(syscall.EIO))
	s.takeOut(d)
	if err := s.bringBack(0); err == nil {
		t.Fatal("it came back from a dead disk")
	}
	fill(t, s, files[2])
	wantAt(t, s, files[2], "b")
	if _, _, err := s.Drop(1, "5"); err != nil {
		t.Fatal(err)
	}
	newer := testFile("3", "2", page) // of a path that the failed one has, too
	fill(t, s, newer)
	ffs.Set()
	if err := s.bringBack(0); err != nil {
		t.Fatal(err)
	}
	if states(s) != "ok ok" || s.dirs[0] == d {
		t.Fatal(states(s))
	}
	wantAt(t, s, files[2], "b")
	mustRead(t, s, files[5], 0) // dropped meanwhile
	for _, i := range []int{0, 3, 4} {
		wantAt(t, s, files[i], "one")
		if verified(s, files[i], 0) {
			t.Errorf("%d: a page counts as checked", i)
		}
		if told[files[i].ID] != files[i].Length {
			t.Errorf("%d: %d bytes are told", i, told[files[i].ID])
		}
		mustRead(t, s, files[i], int(files[i].Geometry().Pages()))
	}
	if _, err := readPages(s, files[1]); !errors.Is(err, errs.Corrupt) {
		t.Errorf("a page that changed meanwhile: %v", err)
	}
	if p := s.lookup(files[3].ID); p.state.Load()&unitSuperseded == 0 {
		t.Error("an older version that came back is not the first victim")
	}
	if p := s.lookup(newer.ID); p.state.Load()&unitSuperseded != 0 {
		t.Error("the newer version is a first victim")
	}
	checkLedger(t, s)
	old.Release()
	fill(t, s, testFile("more", "1", 4*page))
	s.upkeep()
	checkLedger(t, s)
	abandon(t, s)
	s = openTiers(t, root, []spec{{"one", SSD, 128 * mib}, {"b", HDD, 8 * mib}})
	for _, f := range files[2:5] {
		mustRead(t, s, f, 3)
	}
	checkLedger(t, s)
}

// blockingFS lets a test hold a write to a file up, and fail it.
type blockingFS struct {
	vfs.FS

	within  string // part of the files' names; "" for backing files
	mu      sync.Mutex
	arrived chan struct{} // set: the next write says so and waits
	release chan error
}

func (b *blockingFS) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := b.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.Contains(name, cmp.Or(b.within, "/"+dataDir+"/")) {
		return f, err
	}
	return &blockingFile{f, b}, nil
}

type blockingFile struct {
	vfs.File

	fs *blockingFS
}

func (f *blockingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	arrived, release := f.fs.arrived, f.fs.release
	f.fs.arrived = nil
	f.fs.mu.Unlock()
	if arrived != nil {
		close(arrived)
		if err := <-release; err != nil {
			return 0, err
		}
	}
	return f.File.WriteAt(p, off)
}

// TestLateFillHarmsNobody: a fill that hangs in a failing disk, and ends when
// its directory is back, takes nothing from it.
func TestLateFillHarmsNobody(t *testing.T) {
	for name, late := range map[string]error{"fails": syscall.EIO, "succeeds": nil} {
		t.Run(name, func(t *testing.T) {
			bfs := &blockingFS{FS: quick(), release: make(chan error)}
			s := openStore(t, t.TempDir(), 16*mib, withFS(bfs), strict)
			f := testFile("f", "1", 3*page)
			if err := fillRange(s, f, block.Extent{Length: page}); err != nil {
				t.Fatal(err)
			}
			arrived := make(chan struct{})
			bfs.mu.Lock()
			bfs.arrived = arrived
			bfs.mu.Unlock()
			ended := make(chan error, 1)
			go func() { ended <- fillRange(s, f, block.Extent{Offset: page, Length: page}) }()
			<-arrived
			s.dirs[0].fail(s.dirs[0].unusable(syscall.EIO))
			s.takeOut(s.dirs[0])
			if err := s.bringBack(0); err != nil {
				t.Fatal(err)
			}
			fill(t, s, f)
			bfs.release <- late
			if err := <-ended; err == nil {
				t.Error("the late fill succeeded")
			}
			for i := range int64(3) {
				e := f.Geometry().Page(i)
				b := make([]byte, e.Length)
				h, err := s.Acquire(f, e)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := h.ReadAt(b, e.Offset); err != nil || !bytes.Equal(b, pageBytes(f, i)) {
					t.Errorf("page %d: %v", i, err)
				}
				h.Release()
			}
			checkLedger(t, s)
		})
	}
}

// TestStartWithABadDisk: the others serve; it comes back by itself.
func TestStartWithABadDisk(t *testing.T) {
	for _, text := range []string{
		"any path~/bad/ err=EIO", "open path~/bad/lock err=EROFS", "mkdir path~/bad err=EIO", "read path~/bad/index err=EIO",
		"readdir path~/bad/data err=EIO",
	} {
		t.Run(text, func(t *testing.T) {
			root := t.TempDir()
			specs := []spec{{"bad", SSD, 64 * mib}, {"good", SSD, 16 * mib}}
			s := openTiers(t, root, specs)
			f := testFile("f", "1", 2*page)
			fill(t, s, f)
			wantAt(t, s, f, "bad")
			abandon(t, s)
			ffs := vfs.Faulty(quick(), rule(t, text))
			if _, err := tryOpenTiers(root, specs[:1], withFS(ffs)); err == nil {
				t.Fatal("a store of nothing but a bad disk was opened")
			}
			s = openTiers(t, root, specs, withFS(ffs), strict)
			if states(s) != "failed ok" {
				t.Fatal(states(s))
			}
			mustRead(t, s, f, 0)
			g := testFile("g", "1", 2*page)
			fill(t, s, g)
			wantAt(t, s, g, "good")
			s.upkeep()
			if err := s.bringBack(0); err == nil {
				t.Fatal("it is back")
			}
			ffs.Set()
			if err := s.bringBack(0); err != nil {
				t.Fatal(err)
			}
			wantAt(t, s, f, "bad")
			mustRead(t, s, f, 2)
			checkLedger(t, s)
		})
	}
}

// TestStartWithoutAnyDisk names all of them.
func TestStartWithoutAnyDisk(t *testing.T) {
	ffs := vfs.Faulty(quick(), rule(t, "open path~/lock err=EROFS"))
	_, err := tryOpenTiers(t.TempDir(), []spec{{"a", SSD, 8 * mib}, {"b", HDD, 8 * mib}}, withFS(ffs))
	if err == nil || !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "/a: ") || !strings.Contains(err.Error(), "/b: ") {
		t.Fatal(err)
	}
}

// TestRemovedDirectory takes a directory away under the running store: it is
// not made again in whatever is there now, but used when it is.
func TestRemovedDirectory(t *testing.T) {
	root := filepath.Join(t.TempDir(), "cache")
	s := openStore(t, root, 16*mib, strict)
	f := testFile("f", "1", page)
	fill(t, s, f)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	g := testFile("g", "1", page)
	if err := fillRange(s, g, g.Geometry().Whole()); err == nil {
		t.Fatal("a file was kept nowhere")
	}
	s.upkeep()
	if states(s) != StateFailed {
		t.Fatal(states(s))
	}
	s.takeOut(s.dirs[0])
	if err := s.bringBack(0); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.bringBack(0); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, f, 0)
	fill(t, s, f)
	mustRead(t, s, f, 1)
	checkLedger(t, s)
	// Somebody else's directory in its place.
	if err := errors.Join(os.Rename(root, root+"2"), os.Mkdir(root, 0o700), os.WriteFile(filepath.Join(root, lockFile), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.upkeep()
	if states(s) != StateFailed {
		t.Fatal("another directory is taken for the store's")
	}
}

// TestTend: a failed directory is looked at after 10 s, and then each time
// after twice as long, up to 32 times that; when it serves again it is as new.
func TestTend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ffs := vfs.Faulty(quick())
		s := openStore(t, dir, 16*mib, withFS(ffs), strict)
		f := testFile("f", "1", page)
		fill(t, s, f)
		run(t, s)
		time.Sleep(time.Second + time.Millisecond)
		ffs.Set(rule(t, "open path~/lock err=EROFS"), rule(t, "write path~/data/ err=EROFS"))
		g := testFile("g", "1", page)
		start := time.Now()
		if err := fillRange(s, g, g.Geometry().Whole()); errs.KindOf(err) != errs.Unavailable {
			t.Fatal(err)
		}
		synctest.Wait()
		mustRead(t, s, f, 0)
		var looks []int
		for fired := ffs.Fired(); len(looks) < 8; time.Sleep(time.Second) {
			synctest.Wait()
			if n := ffs.Fired(); n != fired {
				fired = n
				looks = append(looks, int(time.Since(start).Seconds()))
			}
		}
		want := []int{10, 30, 70, 150, 310, 630, 950, 1270}
		if !slices.Equal(looks, want) {
			t.Errorf("it was looked at after %v s, want %v", looks, want)
		}
		ffs.Set()
		time.Sleep(321 * time.Second)
		synctest.Wait()
		if states(s) != StateOK {
			t.Fatal(states(s))
		}
		mustRead(t, s, f, 1)
		fill(t, s, g)
	})
}

// TestNumbersRunOut: a store that had too many directories in one run has the
// last ones stay out.
func TestNumbersRunOut(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib, strict)
	s.dirs[0].fail(s.dirs[0].unusable(syscall.EIO))
	s.takeOut(s.dirs[0])
	if err := s.bringBack(0); err != nil {
		t.Fatal(err)
	}
	for ok := true; ok; {
		_, ok = s.takeNumber()
	}
	s.dirs[0].fail(s.dirs[0].unusable(syscall.EIO))
	s.takeOut(s.dirs[0])
	if err := s.bringBack(0); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "restart the worker") {
		t.Fatal(err)
	}
}

// TestClusterOfAFailedDirectory: it is bound when it is back.
func TestClusterOfAFailedDirectory(t *testing.T) {
	root := t.TempDir()
	s := openTiers(t, root, []spec{{"a", SSD, 8 * mib}, {"b", SSD, 8 * mib}}, strict)
	s.dirs[0].fail(s.dirs[0].unusable(syscall.EIO))
	s.takeOut(s.dirs[0])
	if err := s.BindCluster("ours"); err != nil {
		t.Fatal(err)
	}
	if err := s.bringBack(0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		data, err := os.ReadFile(filepath.Join(root, name, formatFile))
		if err != nil || !strings.Contains(string(data), `"cluster_id":"ours"`) {
			t.Errorf("%s: %s, %v", name, data, err)
		}
	}
}

// TestEvictionBeforeAdoption: of a directory that comes back, a part may be a
// victim before it is counted.
func TestEvictionBeforeAdoption(t *testing.T) {
	s := openStore(t, t.TempDir(), 16*mib)
	f := testFileBlocks("large", "1", wholeLimit+page, 2*page)
	if err := fillRange(s, f, block.Extent{Length: 4 * page}); err != nil {
		t.Fatal(err)
	}
	p, d := s.lookup(f.ID), s.dirs[0]
	s.cachedBytes.Store(0)
	s.cachedFiles.Store(0)
	s.paths.remove(p)
	p.flags &^= partIndexed
	if !d.evict(p.unitOf(0)) {
		t.Fatal("it was not evicted")
	}
	p.mu.Lock()
	delete(s.shardOf(p.id).parts, p.id)
	adopted := s.adoptPart(p)
	p.mu.Unlock()
	if !adopted {
		t.Fatal("it was not adopted")
	}
	checkLedger(t, s)
}

// TestFailuresBesideAll fails directories and brings them back while files
// are filled, read, evicted and dropped.
func TestFailuresBesideAll(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"a", SSD, 6 * mib}, {"b", SSD, 6 * mib}}
	s := openTiers(t, root, specs, strict)
	var files []File
	for i := range 16 {
		files = append(files, testFileBlocks(fmt.Sprint(i), "1", int64(i+1)*100_000, page))
	}
	files = append(files, testFileBlocks("large", "1", wholeLimit+9, 2*page))
	var g sync.WaitGroup
	stop := make(chan struct{})
	g.Go(func() {
		for n := range 150 {
			i := n % 2
			select {
			case <-stop:
				return
			default:
			}
			d := s.current()[i]
			d.fail(d.unusable(syscall.EIO))
			s.takeOut(d)
			if err := s.bringBack(i); err != nil {
				t.Error(err)
				return
			}
			s.upkeep()
		}
	})
	var readers sync.WaitGroup
	for w := range 3 {
		readers.Go(func() {
			rnd := newRand(uint64(w))
			for range 150 {
				f := files[rnd.IntN(len(files))]
				first := rnd.Int64N(f.Geometry().Pages())
				e := f.Geometry().PagesExtent(first, min(first+4, f.Geometry().Pages()))
				err := readThrough(s, f, e)
				switch errs.KindOf(err) {
				case errs.Unavailable, errs.NoSpace, errs.NotCached, errs.Corrupt: // that the read begins anew
				default:
					if err != nil {
						t.Errorf("%s: %v", f.Path, err)
					}
				}
				if rnd.IntN(20) == 0 {
					if _, _, err := s.Drop(1, f.Path); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	g.Wait()
	checkLedger(t, s)
	if n := s.Stats().ChecksumErrors; n != 0 {
		t.Errorf("%d pages were damaged", n)
	}
}
