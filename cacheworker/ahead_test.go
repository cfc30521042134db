package cacheworker

import (
	"math/rand/v2"
	"testing"

	"millrace/block"
)

func TestReadAheadIsSequentialOnly(t *testing.T) {
	const length, limit = 64 << 20, 8 << 20
	t.Run("sequential", func(t *testing.T) {
		r := readAhead{limit: limit}
		var asked, last int64
		calls := 0
		for off := int64(0); off < length; off += 128 << 10 {
			e := r.note(block.Extent{Offset: off, Length: 128 << 10}, length)
			if e.IsEmpty() {
				continue
			}
			calls++
			if e.Offset < last {
				t.Fatalf("%v was asked for behind %d", e, last)
			}
			if e.End() > length || e.End() > off+(128<<10)+limit+block.PageSize {
				t.Fatalf("at %d it fetches %v ahead", off, e)
			}
			asked, last = asked+e.Length, e.End()
		}
		if last != length || asked < length-(1<<20) || calls > 40 {
			t.Errorf("%d bytes in %d calls up to %d", asked, calls, last)
		}
	})
	t.Run("slightly out of order", func(t *testing.T) {
		r := readAhead{limit: limit}
		const n = 128 << 10
		var last int64
		for i := int64(0); i < 64; i += 4 {
			for _, j := range []int64{1, 0, 3, 2} {
				if e := r.note(block.Extent{Offset: (i + j) * n, Length: n}, length); !e.IsEmpty() {
					last = e.End()
				}
			}
		}
		if last < 64*n+limit/2 {
			t.Errorf("fetched ahead up to %d of %d", last, 64*n+limit)
		}
	})
	t.Run("random", func(t *testing.T) {
		r := readAhead{limit: limit}
		rng := rand.New(rand.NewPCG(1, 2))
		var ahead int64
		for range 10_000 {
			off := rng.Int64N(length/4096) * 4096
			ahead += r.note(block.Extent{Offset: off, Length: 4096}, length).Length
		}
		if ahead > 2*block.PageSize { // two reads side by side may happen
			t.Errorf("10,000 random reads fetch %d bytes ahead", ahead)
		}
	})
	t.Run("dropped", func(t *testing.T) {
		r := readAhead{limit: limit}
		for off := int64(0); off < 8<<20; off += 1 << 20 {
			r.note(block.Extent{Offset: off, Length: 1 << 20}, length)
		}
		for off := int64(40 << 20); off < 42<<20; off += 1 << 20 {
			if e := r.note(block.Extent{Offset: off, Length: 4096}, length); !e.IsEmpty() {
				t.Errorf("a jump to %d fetches %v ahead", off, e)
			}
		}
	})
	t.Run("many readers", func(t *testing.T) {
		r := readAhead{limit: limit}
		const n, readers = 128 << 10, 8
		var last [readers]int64
		for i := range int64(32) {
			for reader := range int64(readers) {
				start := reader * (length / readers)
				if e := r.note(block.Extent{Offset: start + i*n, Length: n}, length); !e.IsEmpty() {
					last[reader] = e.End() - start
				}
			}
		}
		for reader, ahead := range last {
			if ahead < 32*n {
				t.Errorf("reader %d was fetched for up to %d", reader, ahead)
			}
		}
		if len(r.streams) != readers {
			t.Errorf("%d streams for %d readers", len(r.streams), readers)
		}
	})
	t.Run("off", func(t *testing.T) {
		r := readAhead{}
		for off := int64(0); off < 8<<20; off += 1 << 20 {
			if e := r.note(block.Extent{Offset: off, Length: 1 << 20}, length); !e.IsEmpty() {
				t.Fatalf("fetches %v ahead", e)
			}
		}
	})
}

func TestAheadsAreForgotten(t *testing.T) {
	a := newAheads(1)
	one, two := block.FileID{1}, block.FileID{2}
	first := a.enter(one)
	if a.enter(one) != first || a.enter(two) == first {
		t.Error("files and their readers are mixed up")
	}
	a.leave(one)
	a.leave(two)
	if len(a.files) != 1 {
		t.Errorf("%d files", len(a.files))
	}
	a.leave(one)
	if len(a.files) != 0 {
		t.Errorf("%d files", len(a.files))
	}
}
