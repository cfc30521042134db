package tier

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"millrace/block"
	"millrace/internal/errs"
)

// TestModel runs random operations against a map of what was ever filled, in
// one directory and in several with moves between them. Whatever is present
// must have the right bytes; what a handle saw present stays so while it is
// pinned; the ledgers and the disks agree.
func TestModel(t *testing.T) {
	for name, specs := range map[string][]spec{
		"one":     {{"a", SSD, modelCapacity}},
		"several": {{"mem", Memory, modelCapacity}, {"a", SSD, modelCapacity}, {"b", SSD, modelCapacity}},
	} {
		t.Run(name, func(t *testing.T) { testModel(t, specs) })
	}
}

func testModel(t *testing.T, specs []spec) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t, rt, specs)
		defer m.end()
		rt.Repeat(map[string]func(*rapid.T){
			"":        func(*rapid.T) { m.check() },
			"acquire": m.acquire,
			"load":    m.load,
			"load2":   m.load,
			"load3":   m.load,
			"fill":    m.fill,
			"read":    m.read,
			"release": m.release,
			"drop":    m.drop,
			"upkeep":  func(*rapid.T) { m.s.upkeep() },
			"compact": m.compact,
			"move":    m.move,
			"promote": m.promote,
			"reopen":  m.reopen,
			"kill":    m.kill,
			"corrupt": m.corrupt,
		})
	})
}

type modelHandle struct {
	f       File
	h       *Handle
	e       block.Extent
	present map[int64]bool // pages seen since it was acquired
}

type model struct {
	t       *testing.T
	rt      *rapid.T
	root    string
	specs   []spec
	s       *Store
	files   []File
	handles []*modelHandle
	events  map[block.Key]BlockState
	harmed  map[block.FileID]map[int64]bool // pages overwritten on the disk
}

const modelCapacity = 4 * mib

func newModel(t *testing.T, rt *rapid.T, specs []spec) *model {
	t.Helper()
	m := &model{t: t, rt: rt, root: t.TempDir(), specs: specs, harmed: map[block.FileID]map[int64]bool{}}
	for i, length := range []int64{1, 4096, 100_000, page, page + 1, 3 * page, 10*page - 5, 40 * page} {
		name := fmt.Sprintf("d%d/f%d", i%3, i)
		m.files = append(m.files, testFileBlocks(name, "v1", length, 4*page), testFileBlocks(name, "v2", length+1, 4*page))
	}
	m.files = append(m.files, testFileBlocks("large", "v1", wholeLimit+9*page+1, 4*page))
	m.open()
	return m
}

func (m *model) open() {
	m.events = map[block.Key]BlockState{}
	s, err := tryOpenTiers(m.root, m.specs, func(o *Options, _ *Config) {
		o.OnChange = func(b BlockState) { m.events[block.Key{File: b.File, Index: b.Index}] = b }
	})
	if err != nil {
		m.rt.Fatal(err)
	}
	m.s = s
	for b := range s.Blocks() {
		m.events[block.Key{File: b.File, Index: b.Index}] = b
	}
}

func (m *model) end() {
	m.releaseAll()
	if err := m.s.Close(); err != nil {
		m.rt.Fatal(err)
	}
}

func (m *model) releaseAll() {
	for _, h := range m.handles {
		h.h.Release()
	}
	m.handles = nil
}

// file draws a file, as one that is owned or as a replica.
func (m *model) file(rt *rapid.T) File {
	f := rapid.SampledFrom(m.files).Draw(rt, "file")
	f.Replica = rapid.Bool().Draw(rt, "replica")
	return f
}

func (m *model) extent(rt *rapid.T, f File) block.Extent {
	pages := f.Geometry().Pages()
	first := rapid.Int64Range(0, pages-1).Draw(rt, "first")
	n := rapid.Int64Range(1, min(8, pages-first)).Draw(rt, "pages")
	return f.Geometry().PagesExtent(first, first+n)
}

func (m *model) acquire(rt *rapid.T) {
	if len(m.handles) >= 6 {
		rt.Skip("enough handles")
	}
	f := m.file(rt)
	e := m.extent(rt, f)
	h, err := m.s.Acquire(f, e)
	if err != nil {
		rt.Fatal(err)
	}
	m.handles = append(m.handles, &modelHandle{f: f, h: h, e: e, present: map[int64]bool{}})
}

func (m *model) handle(rt *rapid.T) *modelHandle {
	if len(m.handles) == 0 {
		rt.Skip("no handle")
	}
	return rapid.SampledFrom(m.handles).Draw(rt, "handle")
}

func (m *model) fill(rt *rapid.T) {
	h := m.handle(rt)
	err := fillMissing(h.h, h.f)
	if err != nil && !errors.Is(err, errs.NoSpace) {
		rt.Fatal(err)
	}
}

// load fills a range through a handle of its own.
func (m *model) load(rt *rapid.T) {
	f := m.file(rt)
	if err := fillRange(m.s, f, m.extent(rt, f)); err != nil && !errors.Is(err, errs.NoSpace) {
		rt.Fatal(err)
	}
}

// read checks every byte of the handle's present pages.
func (m *model) read(rt *rapid.T) {
	h := m.handle(rt)
	first, end := h.f.Geometry().PageRange(h.e)
	for p := first; p < end; p++ {
		if !h.h.Has(p) {
			if h.present[p] && !m.harmed[h.f.ID][p] {
				rt.Fatalf("page %d of %s was given up while it was pinned", p, h.f.Path)
			}
			continue
		}
		e := h.f.Geometry().Page(p)
		skip := rapid.Int64Range(0, e.Length-1).Draw(rt, "skip")
		want := pageBytes(h.f, p)[skip:]
		got := make([]byte, len(want))
		switch _, err := h.h.ReadAt(got, e.Offset+skip); {
		case errors.Is(err, errs.Corrupt) && m.harmed[h.f.ID][p]:
			if h.h.Has(p) {
				rt.Fatalf("page %d of %s is corrupt and still present", p, h.f.Path)
			}
			delete(h.present, p)
		case err != nil:
			rt.Fatal(err)
		case !bytes.Equal(got, want):
			rt.Fatalf("wrong bytes in page %d of %s", p, h.f.Path)
		default:
			h.present[p] = true
		}
	}
}

func (m *model) release(rt *rapid.T) {
	h := m.handle(rt)
	h.h.Release()
	m.handles = slices.DeleteFunc(m.handles, func(o *modelHandle) bool { return o == h })
}

func (m *model) drop(rt *rapid.T) {
	path := rapid.SampledFrom([]string{"", "d0", "d1/f1", "large", "d"}).Draw(rt, "path")
	files, bytes := 0, int64(0)
	for _, p := range m.s.paths.below(1, path) {
		files, bytes = files+1, bytes+p.cachedBytes()
	}
	gotFiles, gotBytes, err := m.s.Drop(1, path)
	if err != nil || gotFiles != files || gotBytes != bytes {
		rt.Fatalf("drop of %d files, %d bytes dropped %d, %d: %v", files, bytes, gotFiles, gotBytes, err)
	}
	if files, bytes := m.s.Usage(1, path); files != 0 || bytes != 0 {
		rt.Fatalf("%d files, %d bytes are left", files, bytes)
	}
}

func (m *model) compact(rt *rapid.T) {
	d := rapid.SampledFrom(m.s.dirs).Draw(rt, "directory")
	if err := d.compact(true); err != nil && !errors.Is(err, errs.NoSpace) {
		rt.Fatal(err)
	}
}

// move takes a file to any directory, by the ways of promotion or demotion.
func (m *model) move(rt *rapid.T) {
	p := m.s.lookup(m.file(rt).ID)
	d := rapid.SampledFrom(m.s.dirs).Draw(rt, "directory")
	if p == nil || m.s.dirOf(p) == nil || m.s.dirOf(p) == d {
		rt.Skip("nothing to move")
	}
	room := d.takeFree
	if rapid.Bool().Draw(rt, "evict") {
		room = m.s.roomByMoving(m.t.Context(), d)
	}
	if _, err := m.s.move(m.t.Context(), p, d, room); err != nil && !errors.Is(err, errs.NoSpace) && !errors.Is(err, errMove) {
		rt.Fatal(err)
	}
}

// promote has a file read often, and the movers at work.
func (m *model) promote(rt *rapid.T) {
	m.s.Touch(m.file(rt).ID, 9)
	promoteQueued(m.t, m.s)
}

func (m *model) blocks() []BlockState {
	all := slices.Collect(m.s.Blocks())
	slices.SortFunc(all, func(a, b BlockState) int {
		return slices.Compare(append(a.File[:], byte(a.Index>>8), byte(a.Index)), append(b.File[:], byte(b.Index>>8), byte(b.Index)))
	})
	return all
}

func (m *model) reopen(rt *rapid.T) {
	m.releaseAll()
	before := m.blocks()
	if err := m.s.Close(); err != nil {
		rt.Fatal(err)
	}
	m.restart(rt, before)
}

func (m *model) kill(rt *rapid.T) {
	m.releaseAll()
	before := m.blocks()
	abandon(m.t, m.s)
	m.restart(rt, before)
}

// restart opens the store again: all is there, but for what a full directory
// gave up for the index of the new run.
func (m *model) restart(rt *rapid.T, before []BlockState) {
	m.open()
	after := m.blocks()
	if st := m.s.Stats(); st.EvictedFiles > 0 || st.EvictedBytes > 0 {
		before = slices.DeleteFunc(before, func(b BlockState) bool { return !slices.Contains(after, b) })
	}
	if !slices.Equal(before, after) {
		rt.Fatalf("before %v\nafter %v", before, after)
	}
}

// corrupt overwrites a present page that was not read yet, behind the
// store's back, in a store that was just opened.
func (m *model) corrupt(rt *rapid.T) {
	f := m.file(rt)
	if f.Length < 4 {
		rt.Skip("short file")
	}
	m.kill(rt) // so that no page counts as read
	for p := range f.Geometry().Pages() {
		part := m.s.lookup(f.ID)
		if part == nil || !part.unitOf(p).hasPage(p) {
			continue
		}
		part.mu.Lock()
		of, err := m.s.dirOf(part).openPart(part)
		if err == nil {
			_, err = of.WriteAt([]byte("harm"), f.Geometry().Page(p).Offset)
		}
		part.mu.Unlock()
		if err != nil {
			rt.Fatal(err)
		}
		if m.harmed[f.ID] == nil {
			m.harmed[f.ID] = map[int64]bool{}
		}
		m.harmed[f.ID][p] = true
		break
	}
	m.check()
}

func (m *model) check() {
	checkLedger(m.t, m.s)
	for _, d := range m.s.dirs {
		if n := d.replicas.bytes(); n > modelCapacity/2 {
			m.rt.Fatalf("%d bytes of replicas in a directory of %d", n, modelCapacity)
		}
	}
	have := map[block.Key]BlockState{}
	for b := range m.s.Blocks() {
		have[block.Key{File: b.File, Index: b.Index}] = b
	}
	for k, b := range m.events {
		if b.CachedBytes != have[k].CachedBytes || b.Whole != have[k].Whole {
			m.rt.Fatalf("last event of %v says %+v, the store %+v", k, b, have[k])
		}
		delete(have, k)
	}
	if len(have) != 0 {
		m.rt.Fatalf("no event told of %v", have)
	}
}
