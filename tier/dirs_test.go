package tier

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"millrace/internal/errs"
)

// spec is a directory of a store with several.
type spec struct {
	name     string
	medium   Medium
	capacity int64
}

func openTiers(t testing.TB, root string, specs []spec, opts ...opener) *Store {
	t.Helper()
	s, err := tryOpenTiers(root, specs, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tryOpenTiers(root string, specs []spec, opts ...opener) (*Store, error) {
	o := testOptions()
	o.FS = quick()
	var cfgs []Config
	for _, d := range specs {
		c := testConfig(filepath.Join(root, d.name), d.capacity)
		c.Medium = d.medium
		for _, opt := range opts {
			opt(&o, &c)
		}
		cfgs = append(cfgs, c)
	}
	return Open(cfgs, o, slog.New(slog.DiscardHandler), nil)
}

// where names the directory that a file lies in; "" for none.
func where(s *Store, f File) string {
	p := s.lookup(f.ID)
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := s.dirOf(p)
	if d == nil || p.empty() {
		return ""
	}
	if _, err := os.Stat(d.partName(f.ID)); err != nil {
		return "no file in " + filepath.Base(d.root)
	}
	return filepath.Base(d.root)
}

func wantAt(t testing.TB, s *Store, f File, dir string) {
	t.Helper()
	if got := where(s, f); got != dir {
		t.Fatalf("%s is in %q, want %q", f.Path, got, dir)
	}
}

func TestPlacement(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"hdd", HDD, 16 * mib}, {"mem", Memory, 8 * mib}, {"ssd", SSD, 8 * mib}})
	large := testFile("large", "1", mib+page) // over an eighth of the memory
	fill(t, s, large)
	wantAt(t, s, large, "ssd")
	var at []string
	for i := range 40 {
		f := testFile(fmt.Sprint(i), "1", mib/2)
		fill(t, s, f)
		at = append(at, where(s, f))
	}
	// Each tier is filled before the next one is touched, and what does not
	// fit anywhere pushes out what the slowest one has.
	order, last := "", ""
	for _, dir := range at {
		if dir != last {
			order, last = order+" "+dir, dir
		}
	}
	if order != " mem ssd hdd" {
		t.Fatalf("filled in the order%s: %v", order, at)
	}
	if st := s.Stats(); st.EvictedFiles != 0 {
		t.Fatalf("%d files were given up while there was room", st.EvictedFiles)
	}
	before := s.Status()
	for i := range 40 {
		f := testFile(fmt.Sprint("more", i), "1", mib/2)
		fill(t, s, f)
		wantAt(t, s, f, "hdd")
	}
	after := s.Status()
	if after[0].Used != before[0].Used || after[1].Used != before[1].Used || s.Stats().EvictedFiles == 0 {
		t.Fatalf("before %+v\nafter %+v", before, after)
	}
	checkLedger(t, s)
}

// TestMemoryAlone: where there is nothing but memory, large files may go there.
func TestMemoryAlone(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"mem", Memory, 8 * mib}})
	f := testFile("large", "1", 2*mib)
	fill(t, s, f)
	wantAt(t, s, f, "mem")
}

func TestDirectoriesOfATierAreBalanced(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"a", SSD, 8 * mib}, {"b", SSD, 16 * mib}})
	for i := range 60 {
		fill(t, s, testFile(fmt.Sprint(i), "1", mib/4))
		if st := s.Status(); i > 10 && i < 50 {
			a, b := float64(st[0].Used)/float64(8*mib), float64(st[1].Used)/float64(16*mib)
			if a-b > 0.1 || b-a > 0.1 {
				t.Fatalf("after %d files the one is %v full, the other %v", i+1, a, b)
			}
		}
	}
	checkLedger(t, s)
}

// TestFullDirectoryIsPassedBy: where a directory can give nothing up, another
// one takes the file, and the last refusal is told.
func TestFullDirectoryIsPassedBy(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"ssd", SSD, 8 * mib}, {"hdd", HDD, 8 * mib}})
	pinAll := func(dir string) {
		for i := range 60 {
			f := testFile(fmt.Sprint(dir, i), "1", mib/2)
			h, err := s.Acquire(f, f.Geometry().Whole())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Release)
			if err := fillMissing(h, f); err != nil {
				break
			}
		}
	}
	fill(t, s, testFile("b", "1", 3*mib))
	evictable := testFile("evictable", "1", 3*mib) // as the newest, it is the next victim
	fill(t, s, evictable)
	wantAt(t, s, evictable, "ssd")
	hdd := s.dirs[1]
	if !hdd.ledger.reserve(hdd.ledger.state().limit-hdd.ledger.state().used, 0) { // all of it is in use
		t.Fatal("no room")
	}
	f := testFile("c", "1", 3*mib)
	fill(t, s, f)
	wantAt(t, s, f, "ssd")
	wantAt(t, s, evictable, "")
	pinAll("pinned")
	last := testFile("last", "1", 6*mib)
	if err := fillRange(s, last, last.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
}

// TestNothingIsPlacedByAcquire: no directory is chosen before there is
// something to keep, and a refused reservation leaves the choice open.
func TestNothingIsPlacedByAcquire(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"ssd", SSD, 8 * mib}, {"hdd", HDD, 8 * mib}})
	f := testFile("f", "1", mib)
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	var rooms []func()
	for _, d := range s.dirs {
		n := d.ledger.state().limit - d.ledger.state().used
		if !d.ledger.reserve(n, 0) {
			t.Fatal("no room")
		}
		rooms = append(rooms, func() { d.ledger.cancel(n, 0) })
	}
	if _, err := h.Reserve(f.Geometry().Whole()); !errors.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
	if h.p.dirIndex != noDir {
		t.Fatal("a directory was chosen")
	}
	rooms[1]()
	if err := fillMissing(h, f); err != nil {
		t.Fatal(err)
	}
	wantAt(t, s, f, "hdd")
	rooms[0]()
	checkLedger(t, s)
}

// TestFirstFillsAtOnce: readers that fill different pages of a new file at
// once fill one backing file.
func TestFirstFillsAtOnce(t *testing.T) {
	s := openTiers(t, t.TempDir(), []spec{{"a", SSD, 16 * mib}, {"b", SSD, 16 * mib}})
	for i := range 20 {
		f := testFile(fmt.Sprint(i), "1", 4*page)
		var wg sync.WaitGroup
		for n := range int64(4) {
			wg.Go(func() {
				if err := fillRange(s, f, f.Geometry().PagesExtent(n, n+1)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		mustRead(t, s, f, 4)
		checkLedger(t, s)
	}
}

func TestSeveralDirectoriesSurviveRestart(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"mem", Memory, 8 * mib}, {"ssd", SSD, 16 * mib}}
	s := openTiers(t, root, specs)
	var files []File
	for i := range 30 {
		f := testFile(fmt.Sprint(i), "1", mib/2)
		fill(t, s, f)
		files = append(files, f)
	}
	old, fresh := testFile("a", "1", page), testFile("a", "2", page)
	fill(t, s, old)
	fill(t, s, fresh)
	places := map[string]string{}
	for _, f := range files {
		places[f.Path] = where(s, f)
	}
	stats := s.Stats()
	for _, kill := range []bool{false, true} {
		if kill {
			abandon(t, s)
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openTiers(t, root, specs)
		for _, f := range files {
			wantAt(t, s, f, places[f.Path])
			mustRead(t, s, f, 2)
		}
		if got := s.Stats(); got.CachedFiles != stats.CachedFiles || got.CachedBytes != stats.CachedBytes {
			t.Fatalf("before %+v\nafter %+v", stats, got)
		}
		if s.lookup(old.ID).state.Load()&unitSuperseded == 0 || s.lookup(fresh.ID).state.Load()&unitSuperseded != 0 {
			t.Fatal("the older version does not count as such")
		}
		checkLedger(t, s)
	}
}

// TestSupersededElsewhere: the newer version of a file lies in another
// directory, in which its serial is lower than the older one's own.
func TestSupersededElsewhere(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"mem", Memory, 8 * mib}, {"ssd", SSD, 16 * mib}}
	s := openTiers(t, root, specs)
	for i := range 5 {
		fill(t, s, testFile(fmt.Sprint(i), "1", page))
	}
	old, fresh := testFile("a", "1", page), testFile("a", "2", 2*mib)
	fill(t, s, old)
	fill(t, s, fresh)
	wantAt(t, s, old, "mem")
	wantAt(t, s, fresh, "ssd")
	abandon(t, s)
	s = openTiers(t, root, specs)
	if len(s.dirs[0].superseded) != 1 || s.dirs[0].superseded[0].id != old.ID || len(s.dirs[1].superseded) != 0 {
		t.Fatalf("superseded are %v and %v", s.dirs[0].superseded, s.dirs[1].superseded)
	}
}

// TestTwoCopies: a crash in the middle of a move leaves a file in two
// directories.
func TestTwoCopies(t *testing.T) {
	for _, tc := range []struct {
		name     string
		mem, ssd int64 // pages
		want     string
	}{
		{"the fuller one stays", 1, 3, "ssd"},
		{"the fuller one stays, in memory", 3, 2, "mem"},
		{"the faster one stays", 3, 3, "mem"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			specs := []spec{{"mem", Memory, 8 * mib}, {"ssd", SSD, 8 * mib}}
			f := testFile("f", "1", 3*page)
			for i, pages := range []int64{tc.mem, tc.ssd} {
				s := openTiers(t, root, specs[i:i+1])
				fill(t, s, testFile(fmt.Sprint("other", i), "1", page))
				if err := fillRange(s, f, f.Geometry().PagesExtent(0, pages)); err != nil {
					t.Fatal(err)
				}
				abandon(t, s)
			}
			for range 2 { // the choice is the directories', not this run's alone
				s := openTiers(t, root, specs)
				mustRead(t, s, f, int(max(tc.mem, tc.ssd)))
				wantAt(t, s, f, tc.want)
				if n := s.Stats().CachedFiles; n != 3 {
					t.Fatalf("%d files are cached", n)
				}
				if files, _ := s.Usage(1, "f"); files != 1 {
					t.Fatalf("the path has %d files", files)
				}
				for _, d := range s.dirs {
					if d.ledger.state().held != 0 {
						t.Fatal("the other copy is still held")
					}
					_, err := os.Stat(d.partName(f.ID))
					if there := err == nil; there != (filepath.Base(d.root) == tc.want) {
						t.Fatalf("%s: %v", d.root, err)
					}
				}
				checkLedger(t, s)
				abandon(t, s)
			}
		})
	}
}

func TestDirectoriesThatCannotBeUsedTogether(t *testing.T) {
	for _, tc := range []struct {
		name  string
		specs []spec
		want  string
	}{
		{"none", nil, "no cache directory"},
		{"twice", []spec{{"a", SSD, 8 * mib}, {"b", SSD, 8 * mib}, {"x/../a", HDD, 8 * mib}}, "[2].dir: "},
		{"inside", []spec{{"a", SSD, 8 * mib}, {"a/b", HDD, 8 * mib}}, "[1].dir: "},
		{"around", []spec{{"a/b", SSD, 8 * mib}, {"a", HDD, 8 * mib}}, "[1].dir: "},
		{"wrong", []spec{{"a", SSD, 8 * mib}, {"b", "tape", 8 * mib}}, "[1].medium: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tryOpenTiers(t.TempDir(), tc.specs)
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v does not say %q", err, tc.want)
			}
		})
	}
	s := openTiers(t, t.TempDir(), []spec{{"a", SSD, 8 * mib}, {"ab", SSD, 8 * mib}})
	if len(s.Status()) != 2 {
		t.Fatal("not two directories")
	}
}

// TestClusterOfAll: either all directories are bound to a cluster or none.
func TestClusterOfAll(t *testing.T) {
	root := t.TempDir()
	specs := []spec{{"a", SSD, 8 * mib}, {"b", SSD, 8 * mib}}
	cluster := func(id string) opener { return func(o *Options, _ *Config) { o.ClusterID = id } }
	s := openTiers(t, root, specs[1:], cluster("other"))
	abandon(t, s)
	free := func() {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(root, "a", formatFile))
		if err != nil || !strings.Contains(string(data), `"cluster_id":""`) {
			t.Fatalf("%s, %v", data, err)
		}
	}
	if _, err := tryOpenTiers(root, specs, cluster("ours")); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), filepath.Join(root, "b")) {
		t.Fatal(err)
	}
	free()
	s = openTiers(t, root, specs)
	if err := s.BindCluster("ours"); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	free()
	if err := s.BindCluster("other"); err != nil {
		t.Fatal(err)
	}
	abandon(t, s)
	openTiers(t, root, specs, cluster("other"))
}

// TestOpenLeavesNothingBehind: when one directory cannot be opened, the locks
// of the others are free again.
func TestOpenLeavesNothingBehind(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := tryOpenTiers(root, []spec{{"a", Memory, 8 * mib}, {"b", SSD, 8 * mib}})
	if err == nil || !strings.Contains(err.Error(), filepath.Join(root, "b")) {
		t.Fatalf("%v does not name the directory", err)
	}
	openTiers(t, root, []spec{{"a", Memory, 8 * mib}})
}
