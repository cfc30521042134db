package block_test

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/block"
)

// sorted yields m in the order of its keys.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

func TestFileIDText(t *testing.T) {
	id := block.DeriveFileID(1, "a", "t", 1, block.DefaultBlockSize)
	for _, text := range []string{id.String(), strings.ToUpper(id.String())} {
		if got, err := block.ParseFileID(text); err != nil || got != id {
			t.Errorf("ParseFileID(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", id.String()[1:], id.String() + "0", "g" + id.String()[1:], strings.Repeat("é", 16)} {
		if got, err := block.ParseFileID(text); err == nil {
			t.Errorf("ParseFileID(%q) = %v, want an error", text, got)
		}
	}
	if got, want := (block.Key{File: id, Index: 7}).String(), id.String()+"/7"; got != want {
		t.Errorf("key is %q, want %q", got, want)
	}
}

func TestFileIDKind(t *testing.T) {
	if k := block.MintFileID([16]byte{}).Kind(); k != block.Minted {
		t.Errorf("a minted ID has kind %d", k)
	}
	for i := range 1000 {
		if id := block.DeriveFileID(uint64(i), "a", "t", 1, block.DefaultBlockSize); id.Kind() != block.Derived {
			t.Fatalf("derived ID %v has kind %d", id, id.Kind())
		}
	}
	if !(block.FileID{}).IsZero() || block.MintFileID([16]byte{}).IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestGeometryValidate(t *testing.T) {
	for _, tc := range []struct {
		g  block.Geometry
		ok bool
	}{
		{block.Geometry{Length: 0, BlockSize: block.DefaultBlockSize}, true},
		{block.Geometry{Length: block.MaxFileLength, BlockSize: block.MaxBlockSize}, true},
		{block.Geometry{Length: 1, BlockSize: block.MinBlockSize}, true},
		{block.Geometry{Length: -1, BlockSize: block.DefaultBlockSize}, false},
		{block.Geometry{Length: block.MaxFileLength + 1, BlockSize: block.MaxBlockSize}, false},
		{block.Geometry{Length: 1, BlockSize: 0}, false},
		{block.Geometry{Length: 1, BlockSize: -block.PageSize}, false},
		{block.Geometry{Length: 1, BlockSize: block.PageSize + 1}, false},
		{block.Geometry{Length: 1, BlockSize: block.MaxBlockSize + block.PageSize}, false},
		{block.Geometry{Length: block.MaxFileLength, BlockSize: block.MinBlockSize}, false}, // too many blocks
	} {
		if err := tc.g.Validate(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v, want ok %v", tc.g, err, tc.ok)
		}
	}
}

func TestExtent(t *testing.T) {
	for _, tc := range []struct{ a, b, want block.Extent }{
		{block.Extent{0, 10}, block.Extent{5, 10}, block.Extent{5, 5}},
		{block.Extent{5, 10}, block.Extent{0, 10}, block.Extent{5, 5}},
		{block.Extent{0, 10}, block.Extent{2, 3}, block.Extent{2, 3}},
		{block.Extent{0, 10}, block.Extent{10, 5}, block.Extent{0, 0}},
		{block.Extent{20, 10}, block.Extent{0, 5}, block.Extent{20, 0}},
		{block.Extent{3, 0}, block.Extent{0, 5}, block.Extent{3, 0}},
		{block.Extent{10, math.MaxInt64}, block.Extent{0, 100}, block.Extent{10, 90}},
		{block.Extent{math.MaxInt64, math.MaxInt64}, block.Extent{0, 100}, block.Extent{math.MaxInt64, 0}},
	} {
		if got := tc.a.Intersect(tc.b); got != tc.want {
			t.Errorf("%v and %v: %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
	if got := (block.Extent{5, 10}).String(); got != "[5,15)" {
		t.Errorf("String is %q", got)
	}
}

// TestGeometryProperties draws geometries and extents and holds the answers
// against those of the definition, page by page.
func TestGeometryProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := block.Geometry{
			Length:    rapid.Int64Range(0, 40*block.PageSize).Draw(t, "length"),
			BlockSize: rapid.Int64Range(1, 5).Draw(t, "pages in a block") * block.PageSize,
		}
		e := block.Extent{
			Offset: rapid.Int64Range(0, 50*block.PageSize).Draw(t, "offset"),
			Length: rapid.Int64Range(0, 50*block.PageSize).Draw(t, "extent"),
		}
		checkTiles(t, g.Length, g.Pages(), g.Page)
		checkTiles(t, g.Length, g.Blocks(), g.Block)
		first, end := g.PageRange(e)
		checkTouched(t, e, g.Pages(), g.Page, first, end)
		first, end = g.BlockRange(e)
		checkTouched(t, e, g.Blocks(), g.Block, first, end)
		if e.Offset < g.Length {
			if !covers(g.Page(g.PageOf(e.Offset)), e.Offset) || !covers(g.Block(g.BlockOf(e.Offset)), e.Offset) {
				t.Fatalf("PageOf or BlockOf of %d is wrong", e.Offset)
			}
		}
		if got := g.PagesExtent(0, g.Pages()); got != g.Whole() {
			t.Fatalf("all pages are %v, the file is %v", got, g.Whole())
		}
	})
}

func covers(e block.Extent, off int64) bool { return e.Offset <= off && off < e.End() }

// checkTiles checks that n pieces follow each other and cover [0, length).
func checkTiles(t *rapid.T, length, n int64, piece func(int64) block.Extent) {
	var next int64
	for i := range n {
		e := piece(i)
		if e.Offset != next || e.IsEmpty() {
			t.Fatalf("piece %d of %d is %v, want one that starts at %d", i, n, e, next)
		}
		next = e.End()
	}
	if next != length {
		t.Fatalf("%d pieces end at %d, the file at %d", n, next, length)
	}
}

// checkTouched checks that [first, end) are the pieces that e touches.
func checkTouched(t *rapid.T, e block.Extent, n int64, piece func(int64) block.Extent, first, end int64) {
	for i := range n {
		want := !piece(i).Intersect(e).IsEmpty()
		if got := first <= i && i < end; got != want {
			t.Fatalf("%v touches piece %d %v: %v, but the range is [%d,%d)", e, i, piece(i), want, first, end)
		}
	}
	if end > n && end != first {
		t.Fatalf("range [%d,%d) passes the end, %d", first, end, n)
	}
}

// keys returns n keys of distinct files.
func keys(n int) []block.Key {
	ks := make([]block.Key, n)
	for i := range ks {
		ks[i] = block.Key{File: block.DeriveFileID(1, fmt.Sprintf("dir/%d", i), "t", 1, block.DefaultBlockSize), Index: uint32(i % 7)}
	}
	return ks
}

func workers(n int) []block.PlacedWorker {
	ws := make([]block.PlacedWorker, n)
	for i := range ws {
		ws[i] = block.PlacedWorker{ID: block.WorkerID(fmt.Sprintf("01JWORKER%017d", i)), Weight: 1 << 40}
	}
	return ws
}

const large = 1 << 40 // a file's length above each limit here

// TestPlacementMovesLittle adds a worker to n: about 1/(n+1) of the keys must
// move, all of them to the new one.
func TestPlacementMovesLittle(t *testing.T) {
	const count = 5_000
	ks := keys(count)
	for _, n := range []int{1, 2, 3, 10, 50} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			all := workers(n + 1)
			before, after := block.Placement{Workers: all[:n]}, block.Placement{Workers: all}
			moved := 0
			for _, k := range ks {
				was, is := before.Owners(k, large, n), after.Owners(k, large, n+1)
				if was[0] != is[0] {
					moved++
					if is[0] != all[n].ID {
						t.Fatalf("%v moved from %s to %s, which is not the new worker", k, was[0], is[0])
					}
				}
				// The others keep their order: they are the new list without
				// the new worker.
				rest := slices.DeleteFunc(slices.Clone(is), func(id block.WorkerID) bool { return id == all[n].ID })
				if !slices.Equal(was, rest) {
					t.Fatalf("%v: owners %v became %v", k, was, is)
				}
			}
			checkShare(t, "moved keys", moved, count, 1/float64(n+1))
		})
	}
}

func TestPlacementRespectsWeights(t *testing.T) {
	const count = 5_000
	ws := workers(5)
	total := 0.0
	for i := range ws {
		ws[i].Weight = uint64(i) << 38 // the first has none
		total += float64(ws[i].Weight)
	}
	owned := map[block.WorkerID]int{}
	p := block.Placement{Workers: ws}
	for _, k := range keys(count) {
		owners := p.Owners(k, large, 10)
		if len(owners) != 4 {
			t.Fatalf("owners are %v, want the 4 with a weight", owners)
		}
		owned[owners[0]]++
	}
	for _, w := range ws {
		checkShare(t, string(w.ID), owned[w.ID], count, float64(w.Weight)/total)
	}
}

// checkShare checks that got of n is the wanted share, within five standard
// deviations of a fair draw. The keys are fixed, so it says the same each time.
func checkShare(t *testing.T, what string, got, n int, share float64) {
	t.Helper()
	want := share * float64(n)
	if off := math.Abs(float64(got) - want); off > 5*math.Sqrt(want*(1-share)) {
		t.Errorf("%s: %d of %d, want about %.0f", what, got, n, want)
	}
}

func TestPlacementOfWholeFiles(t *testing.T) {
	p := block.Placement{WholeFileLimit: 100 << 20, Workers: workers(10)}
	file := keys(1)[0].File
	owner := func(index uint32, length int64) block.WorkerID {
		return p.Owners(block.Key{File: file, Index: index}, length, 1)[0]
	}
	spread := map[block.WorkerID]bool{}
	for i := range uint32(100) {
		if owner(i, 100<<20) != owner(0, 0) {
			t.Fatalf("block %d of a file at the limit has another owner", i)
		}
		spread[owner(i, 100<<20+1)] = true
	}
	if len(spread) < 5 {
		t.Errorf("100 blocks of a file above the limit are on %d of 10 workers", len(spread))
	}
}

func TestPlacementCounts(t *testing.T) {
	p := block.Placement{Workers: workers(3)}
	k := keys(1)[0]
	all := p.Owners(k, large, 3)
	for n, want := range map[int]int{-1: 0, 0: 0, 1: 1, 2: 2, 3: 3, 4: 3} {
		if got := p.Owners(k, large, n); len(got) != want || !slices.Equal(got, all[:want]) {
			t.Errorf("%d owners are %v of %v", n, got, all)
		}
	}
	// The order in which the workers are listed says nothing.
	slices.Reverse(p.Workers)
	if got := p.Owners(k, large, 3); !slices.Equal(got, all) {
		t.Errorf("owners are %v, with the list reversed %v", all, got)
	}
}

// TestUnit: a file up to the limit is placed as one, a longer one by its
// blocks; what it is placed by has the same owners.
func TestUnit(t *testing.T) {
	p := block.Placement{WholeFileLimit: 100, Workers: []block.PlacedWorker{{ID: "a", Weight: 1}, {ID: "b", Weight: 1}, {ID: "c", Weight: 1}}}
	k := block.Key{File: block.FileID{1}, Index: 3}
	whole := block.Key{File: k.File, Index: block.WholeFile}
	for length, want := range map[int64]block.Key{100: whole, 101: k} {
		got := p.Unit(k, length)
		if got != want {
			t.Errorf("a file of %d bytes is placed by %v, want %v", length, got, want)
		}
		if a, b := p.Owners(k, length, 3), p.Owners(got, length, 3); !slices.Equal(a, b) {
			t.Errorf("a block of a file of %d bytes belongs to %v, what it is placed by to %v", length, a, b)
		}
	}
}
