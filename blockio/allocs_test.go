//go:build !race

// The race detector makes sync.Pool forget at random, so that allocations can
// be counted only without it: `make test` runs this file by itself.

package blockio

import (
	"testing"

	"millrace/block"
)

// A read that is served from the cache allocates nothing, client and server
// together, however it is sent.
func TestReadsDoNotAllocate(t *testing.T) {
	const length = 4 << 20
	data := pattern(length)
	for _, tr := range transports() {
		f := &testFile{data: data, hook: serveTold(&testFile{data: data})}
		if tr.disk {
			f.disk = onDisk(t, data)
		}
		for name, h := range map[string]Handler{"": oneFile(f), "/at once": (&promptFile{testFile: f}).handler()} {
			t.Run(tr.name+name, func(t *testing.T) { readsDoNotAllocate(t, tr, h, length) })
		}
	}
}

func readsDoNotAllocate(t *testing.T, tr transport, files Handler, length int) {
	t.Helper()
	c := startServer(t, tr.network, DefaultServerConfig(), files).dial(t)
	h := mustOpen(t, c, "f", length)
	small, page, large := make([]byte, 4096), make([]byte, block.PageSize), make([]byte, 2<<20)
	vector := make([]Range, MaxRanges)
	for i := range vector {
		vector[i] = Range{Off: int64(i * 50_000), Buf: make([]byte, 4096)}
	}
	for name, read := range map[string]func() error{
		"4 KiB":     func() error { _, err := c.ReadAt(t.Context(), h, small, 5, ReadOptions{}); return err },
		"a page":    func() error { _, err := c.ReadAt(t.Context(), h, page, block.PageSize, ReadOptions{}); return err },
		"2 MiB":     func() error { _, err := c.ReadAt(t.Context(), h, large, 1<<20, ReadOptions{}); return err },
		"64 ranges": func() error { _, err := c.ReadV(t.Context(), h, vector, ReadOptions{}); return err },
	} {
		// What is rounded away is a garbage collection that empties a pool.
		if n := testing.AllocsPerRun(200, func() {
			if err := read(); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Reads in place allocate nothing, on either side.
func TestReadInPlaceDoesNotAllocate(t *testing.T) {
	data := pattern(1 << 20)
	f := &placedFile{promptFile: &promptFile{testFile: &testFile{data: data}}, comes: 1 << 20}
	f.there.Store(1 << 20)
	c := startPlaced(t, f).dial(t)
	h := mustOpen(t, c, "f", len(data))
	p := make([]byte, 1<<19)
	read := func() {
		if inPlace, err := c.ReadInPlace(t.Context(), h, p, 1<<19, testMark, ReadOptions{}); !inPlace || err != nil {
			t.Fatal(inPlace, err)
		}
	}
	read()
	if n := testing.AllocsPerRun(200, read); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
