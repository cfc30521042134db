package tier

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/internal/vfs"
)

// TestWorld lets happen to a store all that can happen to it: fills, reads
// and drops at will, failing and full disks, other processes that have its
// files open, compaction at any time, kill -9 between and within operations,
// and power cuts. `go test -run World -rapid.checks=20000` runs it for long;
// a failure prints the seed that repeats it.
//
//   - What is read is right, or an error.
//   - What others have open keeps its bytes.
//   - kill -9 loses nothing that was shown.
//   - No ledger has less than its disk, or more than its capacity; without
//     faults each is exact.
//   - When all is let go, nothing is held.
func TestWorld(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			m := vfs.NewMem(worldRoom, 4000)
			w := newWorld(t, rt, m, "/cache")
			w.mem = m
			w.run()
		})
	})
	machine := func(t *testing.T, base string) {
		t.Helper()
		rapid.Check(t, func(rt *rapid.T) {
			root, err := os.MkdirTemp(base, "millrace-world-") //nolint:usetesting // each check wants one of its own
			if err != nil {
				rt.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(root) }()
			newWorld(t, rt, quick(), root).run()
		})
	}
	t.Run("disk", func(t *testing.T) { machine(t, t.TempDir()) })
	t.Run("tmpfs", func(t *testing.T) {
		testenv.Require(t, testenv.Tmpfs)
		machine(t, testenv.TmpfsDir)
	})
}

const (
	worldRoom     = 12 * mib // of the file system
	worldCapacity = 4 * mib  // of each of one or two directories
)

type world struct {
	t     *testing.T
	rt    *rapid.T
	base  vfs.FS     // without faults
	mem   *vfs.MemFS // base as this process sees it; nil on a real file system
	ffs   *vfs.FaultyFS
	root  string
	dirs  int
	s     *Store
	boot  byte
	files []File

	handles []*worldHandle
	outside []*outsider
	filler  vfs.File // what others have on the file system; nil if little

	faulty bool // something failed since the store was opened
	exact  bool // the ledger is expected to be exact
}

type worldHandle struct {
	f File
	h *Handle
	e block.Extent
}

// outsider is a descriptor that another process got while pages were there.
type outsider struct {
	f     File
	file  vfs.File
	pages []int64
}

func newWorld(t *testing.T, rt *rapid.T, base vfs.FS, root string) *world {
	t.Helper()
	w := &world{t: t, rt: rt, base: base, ffs: vfs.Faulty(base), root: root, boot: 1}
	w.dirs = rapid.IntRange(1, 2).Draw(rt, "dirs")
	for i, length := range []int64{1, 4096, 100_000, page + 1, 3 * page, 10*page - 5} {
		name := fmt.Sprintf("d%d/f%d", i%2, i)
		w.files = append(w.files, testFileBlocks(name, "v1", length, 4*page), testFileBlocks(name, "v2", length+1, 4*page))
	}
	w.files = append(w.files, largeFile("large"), testFileBlocks("large", "2", wholeLimit+9, 2*page))
	if err := base.MkdirAll(root, 0o700); err != nil {
		rt.Fatal(err)
	}
	return w
}

func (w *world) run() {
	w.open()
	defer w.end()
	w.rt.Repeat(map[string]func(*rapid.T){
		"":        func(*rapid.T) { w.check() },
		"acquire": w.acquire,
		"fill":    w.fill,
		"load":    w.load,
		"load2":   w.load,
		"load3":   w.load,
		"flood":   w.flood,
		"flood2":  w.flood,
		"read":    w.read,
		"release": w.release,
		"drop":    w.drop,
		"upkeep":  func(*rapid.T) { w.s.upkeep() },
		"compact": w.compact,
		"share":   w.share,
		"share2":  w.share,
		"unshare": w.unshare,
		"fault":   w.fault,
		"heal":    func(*rapid.T) { w.heal() },
		"squeeze": w.squeeze,
		"settle":  w.settle,
		"reopen":  w.reopen,
		"kill":    w.kill,
		"die":     w.die,
		"crash":   w.crash,
	})
}

func (w *world) open() {
	var cfgs []Config
	for _, c := range []struct {
		name   string
		medium Medium
	}{{"a", SSD}, {"b", HDD}} {
		cfg := testConfig(filepath.Join(w.root, c.name), worldCapacity)
		cfg.Medium, cfg.OpenFiles = c.medium, 3
		cfgs = append(cfgs, cfg)
	}
	cfgs = cfgs[:w.dirs]
	opts := Options{FS: w.ffs, BootID: [16]byte{w.boot}}
	s, err := Open(cfgs, opts, slog.New(slog.DiscardHandler), nil)
	if errors.Is(err, errs.NoSpace) && w.filler != nil { // there was nothing to give up
		w.unsqueeze()
		s, err = Open(cfgs, opts, slog.New(slog.DiscardHandler), nil)
	}
	if err != nil {
		w.rt.Fatalf("open: %v", err)
	}
	// Room that no record knows stays charged while others have the file.
	w.exact = !w.faulty || len(w.outside) == 0
	w.s, w.faulty = s, false
}

func (w *world) end() {
	w.heal()
	w.releaseAll()
	w.unshareAll()
	if err := w.s.Close(); err != nil {
		w.rt.Fatal(err)
	}
}

func (w *world) releaseAll() {
	for _, h := range w.handles {
		h.h.Release()
	}
	w.handles = nil
}

func (w *world) unshareAll() {
	for _, o := range w.outside {
		if err := o.file.Close(); err != nil {
			w.rt.Fatal(err)
		}
	}
	w.outside = nil
}

// allowed reports whether an operation may fail so.
func (w *world) allowed(err error) bool {
	switch {
	case err == nil, errors.Is(err, errs.NoSpace):
		return true
	case errs.KindOf(err) == errs.Unknown:
		return false
	}
	return w.faulty || w.ffs.Fired() > 0 || w.filler != nil
}

func (w *world) file(rt *rapid.T) File {
	return w.files[rapid.IntRange(0, len(w.files)-1).Draw(rt, "file")]
}

func (w *world) extent(rt *rapid.T, f File) block.Extent {
	pages := f.Geometry().Pages()
	first := rapid.Int64Range(0, min(pages-1, 12)).Draw(rt, "first")
	return f.Geometry().PagesExtent(first, first+rapid.Int64Range(1, min(10, pages-first)).Draw(rt, "pages"))
}

func (w *world) acquire(rt *rapid.T) {
	if len(w.handles) >= 4 {
		rt.Skip("enough handles")
	}
	f := w.file(rt)
	e := w.extent(rt, f)
	h, err := w.s.Acquire(f, e)
	if err != nil {
		rt.Fatal(err)
	}
	w.handles = append(w.handles, &worldHandle{f, h, e})
}

func (w *world) handle(rt *rapid.T) *worldHandle {
	if len(w.handles) == 0 {
		rt.Skip("no handle")
	}
	return rapid.SampledFrom(w.handles).Draw(rt, "handle")
}

func (w *world) fill(rt *rapid.T) {
	h := w.handle(rt)
	if err := fillMissing(h.h, h.f); !w.allowed(err) {
		rt.Fatal(err)
	}
}

func (w *world) load(rt *rapid.T) {
	f := w.file(rt)
	if err := fillRange(w.s, f, w.extent(rt, f)); !w.allowed(err) {
		rt.Fatal(err)
	}
}

// flood loads more than there is room for.
func (w *world) flood(rt *rapid.T) {
	from := rapid.IntRange(0, len(w.files)-1).Draw(rt, "from")
	for i := range w.files {
		f := w.files[(from+i)%len(w.files)]
		if err := fillRange(w.s, f, block.Extent{Length: min(f.Length, 10*page)}); !w.allowed(err) {
			rt.Fatal(err)
		}
	}
}

func (w *world) read(rt *rapid.T) {
	h := w.handle(rt)
	w.readPages(h.h, h.f, h.e)
}

// readPages checks what is present of e, and returns which pages are right.
func (w *world) readPages(h *Handle, f File, e block.Extent) (right []int64) {
	first, end := f.Geometry().PageRange(e)
	for p := first; p < end; p++ {
		if !h.Has(p) {
			continue
		}
		pe := f.Geometry().Page(p)
		got := make([]byte, pe.Length)
		_, err := h.ReadAt(got, pe.Offset)
		switch {
		case err == nil && !bytes.Equal(got, pageBytes(f, p)):
			w.rt.Fatalf("wrong bytes in page %d of %s %s", p, f.Path, f.Tag)
		case err == nil:
			right = append(right, p)
		case w.boot == 1 && !w.allowed(err): // a power cut may leave damaged pages
			w.rt.Fatalf("read of page %d of %s %s: %v", p, f.Path, f.Tag, err)
		}
	}
	return right
}

func (w *world) release(rt *rapid.T) {
	h := w.handle(rt)
	h.h.Release()
	w.handles = slices.DeleteFunc(w.handles, func(o *worldHandle) bool { return o == h })
}

func (w *world) drop(rt *rapid.T) {
	path := rapid.SampledFrom([]string{"", "d0", "d1/f1", "large"}).Draw(rt, "path")
	if _, _, err := w.s.Drop(1, path); !w.allowed(err) {
		rt.Fatal(err)
	}
}

func (w *world) compact(rt *rapid.T) {
	d := w.s.dirs[rapid.IntRange(0, w.dirs-1).Draw(rt, "dir")]
	if err := d.compact(true); err != nil && !isNoSpace(err) && !w.allowed(errs.Wrap(err, "compact", d.root)) && w.ffs.Fired() == 0 {
		rt.Fatal(err)
	}
}

// share opens a backing file as another process does that was handed it.
func (w *world) share(rt *rapid.T) {
	if len(w.outside) >= 3 {
		rt.Skip("enough descriptors")
	}
	f := w.file(rt)
	p := w.s.lookup(f.ID)
	if p == nil || p.empty() {
		rt.Skip("not cached")
	}
	h, err := w.s.Acquire(f, block.Extent{Length: min(f.Length, 16*page)})
	if err != nil {
		rt.Fatal(err)
	}
	defer h.Release()
	pages := w.readPages(h, f, block.Extent{Length: min(f.Length, 16*page)})
	fsys := w.base
	if w.mem != nil {
		fsys = w.mem.View()
	}
	file, err := fsys.OpenFile(w.s.dirOf(p).partName(f.ID), os.O_RDONLY|syscall.O_NOATIME, 0)
	if errors.Is(err, fs.ErrNotExist) && w.faulty {
		rt.Skip("the file is gone")
	}
	if err != nil {
		rt.Fatal(err)
	}
	w.outside = append(w.outside, &outsider{f, file, pages})
}

func (w *world) unshare(rt *rapid.T) {
	if len(w.outside) == 0 {
		rt.Skip("no descriptor")
	}
	i := rapid.IntRange(0, len(w.outside)-1).Draw(rt, "descriptor")
	if err := w.outside[i].file.Close(); err != nil {
		rt.Fatal(err)
	}
	w.outside = slices.Delete(w.outside, i, i+1)
}

// fault makes one operation fail, some time from now, or all from then on.
func (w *world) fault(rt *rapid.T) {
	r := vfs.Rule{
		Ops: []string{rapid.SampledFrom([]string{
			"open", "mkdir", "rename", "remove", "read", "write", "truncate", "syncfs", "syncdir", "fallocate", "punch", "lease",
		}).Draw(rt, "op")},
		Path: rapid.SampledFrom([]string{"", "index/", "data/"}).Draw(rt, "path"),
		Err:  rapid.SampledFrom([]string{"EIO", "ENOSPC"}).Draw(rt, "error"),
	}
	if rapid.Bool().Draw(rt, "once") {
		r.Nth = rapid.IntRange(1, 5).Draw(rt, "nth")
	}
	if r.Ops[0] == "write" {
		r.Short = rapid.SampledFrom([]int{0, 20, 5000}).Draw(rt, "short")
	}
	w.setFaults(r)
}

func (w *world) setFaults(rules ...vfs.Rule) {
	w.faulty = w.faulty || w.ffs.Fired() > 0
	w.exact = w.exact && !w.faulty
	w.ffs.Set(rules...)
}

func (w *world) heal() { w.setFaults() }

// squeeze lets others fill the file system, or give it back.
func (w *world) squeeze(rt *rapid.T) {
	if w.mem == nil {
		rt.Skip("a real file system")
	}
	if w.filler != nil {
		w.unsqueeze()
		return
	}
	room, err := w.mem.Statfs(w.root)
	if err != nil {
		rt.Fatal(err)
	}
	f, err := w.mem.View().OpenFile(filepath.Join("/", "filler"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		rt.Skip("no room")
	}
	if err := f.Fallocate(0, max(room.Free-rapid.Int64Range(0, mib).Draw(rt, "left"), 4096)); err != nil {
		rt.Skip("no room")
	}
	w.filler, w.exact = f, false
}

func (w *world) unsqueeze() {
	if err := w.filler.Truncate(0); err != nil {
		w.rt.Fatal(err)
	}
	w.filler = nil
}

// settle lets all go: then nothing is held.
func (w *world) settle(*rapid.T) {
	w.heal()
	w.releaseAll()
	w.unshareAll()
	w.s.upkeep()
	w.s.upkeep()
	for _, d := range w.s.dirs {
		if n := d.ledger.state().held; n != 0 && !w.faulty {
			w.rt.Fatalf("%d bytes are held in %s, and nobody has them", n, d.root)
		}
	}
}

func (w *world) reopen(*rapid.T) {
	w.heal()
	w.releaseAll()
	before := w.pages()
	if err := w.s.Close(); err != nil {
		w.rt.Skip("it cannot be closed") // the index failed for good
	}
	w.restart(before, 0)
}

// kill ends the process between two operations.
func (w *world) kill(*rapid.T) { w.killLosing(0) }

func (w *world) killLosing(files int) {
	before := w.pages()
	w.setFaults()
	if w.mem != nil {
		w.s.closed.Store(true)
		w.mem.Kill()
		w.handles = nil
	} else {
		w.releaseAll()
		abandon(w.t, w.s)
	}
	w.restart(before, files)
}

// restart opens the directories again: all pages are there, but for those of
// some files, and without faults no others.
func (w *world) restart(before map[pageKey]bool, mayLose int) {
	faulty, squeezed := w.faulty, w.filler != nil
	w.open()
	after := w.pages()
	if st := w.s.Stats(); squeezed || st.EvictedBytes > 0 || st.EvictedFiles > 0 {
		return // a full directory gave something up for the new run's index
	}
	lost := map[block.FileID]bool{}
	for k := range before {
		if !after[k] {
			lost[k.file] = true
		}
	}
	if len(lost) > mayLose {
		w.rt.Fatalf("pages of these files were lost: %v", slices.Collect(maps.Keys(lost)))
	}
	if !faulty && !maps.Equal(before, after) {
		w.rt.Fatalf("%d pages were there, %d are", len(before), len(after))
	}
}

// die ends the process within an operation: from some call on nothing reaches
// the disk. What it gave up then may be on the disk, although it went on to
// say that it could not.
func (w *world) die(rt *rapid.T) {
	w.setFaults(vfs.Rule{
		Ops: []string{"any"}, From: rapid.IntRange(1, 12).Draw(rt, "from"), Err: "EIO",
		Short: rapid.SampledFrom([]int{0, 20, 5000}).Draw(rt, "short"),
	})
	f, lose := w.file(rt), 1
	switch rapid.SampledFrom([]string{"fill", "drop", "compact", "upkeep"}).Draw(rt, "last") {
	case "fill":
		_ = fillRange(w.s, f, w.extent(rt, f))
	case "drop":
		_, _, _ = w.s.Drop(1, f.Path)
		lose = w.dirs // a version in each
	case "compact":
		_ = w.s.dirs[0].compact(true)
	case "upkeep":
		w.s.upkeep()
	}
	w.killLosing(lose)
}

// crash cuts the power. What others had open went with the machine.
func (w *world) crash(rt *rapid.T) {
	if w.mem == nil {
		rt.Skip("a real file system")
	}
	w.setFaults()
	w.mem = w.mem.Crash(rapid.Uint64().Draw(rt, "seed"))
	w.s.closed.Store(true)
	w.base, w.ffs = w.mem, vfs.Faulty(w.mem)
	w.handles, w.outside = nil, nil
	if err := w.mem.MkdirAll(w.root, 0o700); err != nil { // others' names survive
		rt.Skip("no room")
	}
	w.filler = nil
	if err := w.mem.Remove("/filler"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		rt.Fatal(err)
	}
	w.boot++
	w.open()
	w.check()
	for _, f := range w.files {
		h, err := w.s.Acquire(f, block.Extent{Length: min(f.Length, 20*page)})
		if err != nil {
			rt.Fatal(err)
		}
		w.readPages(h, f, block.Extent{Length: min(f.Length, 20*page)})
		h.Release()
	}
}

type pageKey struct {
	file block.FileID
	page int64
}

// pages returns all pages that are present.
func (w *world) pages() map[pageKey]bool {
	all := map[pageKey]bool{}
	for _, f := range w.files {
		p := w.s.lookup(f.ID)
		if p == nil {
			continue
		}
		for i := range f.Geometry().Pages() {
			if p.unitOf(i).hasPage(i) {
				all[pageKey{f.ID, i}] = true
			}
		}
	}
	return all
}

func (w *world) check() {
	for _, o := range w.outside {
		for _, p := range o.pages {
			want := pageBytes(o.f, p)
			got := make([]byte, len(want))
			if _, err := o.file.ReadAt(got, o.f.Geometry().Page(p).Offset); err != nil || !bytes.Equal(got, want) {
				w.rt.Fatalf("page %d of %s %s changed under a descriptor: %v", p, o.f.Path, o.f.Tag, err)
			}
		}
	}
	w.checkRoom()
	if w.exact && !w.faulty && w.ffs.Fired() == 0 {
		checkLedger(w.rt, w.s)
		return
	}
	for _, d := range w.s.dirs {
		st := d.ledger.state()
		if du := fsUse(w.rt, w.base, d.root); du > st.used {
			w.rt.Fatalf("%s has %d bytes, its ledger %d", d.root, du, st.used)
		}
	}
}

// checkRoom compares the ledgers with what the file system says, which knows
// of files without a name that somebody has open.
func (w *world) checkRoom() {
	if w.mem == nil {
		return
	}
	room, err := w.mem.Statfs("/")
	if err != nil {
		w.rt.Fatal(err)
	}
	taken := room.Total - room.Free - 2*room.BlockSize // of the directories above
	if w.filler != nil {
		fi, err := w.filler.Stat()
		if err != nil {
			w.rt.Fatal(err)
		}
		taken -= vfs.Allocated(fi)
	}
	var charged int64
	for _, d := range w.s.dirs {
		charged += d.ledger.state().used
	}
	if taken > charged {
		w.rt.Fatalf("the file system has %d bytes of ours, the ledgers %d", taken, charged)
	}
}
