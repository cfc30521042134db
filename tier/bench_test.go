package tier

import (
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"millrace/block"
)

func BenchmarkHit(b *testing.B) {
	f := testFile("f", "1", 32*mib)
	s := openStore(b, b.TempDir(), 64*mib)
	fill(b, s, f)
	for _, size := range []int64{4 << 10, page} {
		b.Run(fmt.Sprintf("ReadAt%dKiB", size>>10), func(b *testing.B) {
			h, err := s.Acquire(f, f.Geometry().Whole())
			if err != nil {
				b.Fatal(err)
			}
			defer h.Release()
			b.ReportAllocs()
			b.SetBytes(size)
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, size)
				off := int64(0)
				for pb.Next() {
					if _, err := h.ReadAt(buf, off); err != nil {
						b.Error(err)
						return
					}
					off = (off + size) % f.Length
				}
			})
		})
	}
	b.Run("AcquireReadRelease4KiB", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 4<<10)
		for i := 0; b.Loop(); i++ {
			off := int64(i%8000) * 4096
			h, err := s.Acquire(f, block.Extent{Offset: off, Length: 4096})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := h.ReadAt(buf, off); err != nil {
				b.Fatal(err)
			}
			h.Release()
		}
	})
}

func BenchmarkFill(b *testing.B) {
	for _, length := range []int64{100 << 10, 16 * mib} {
		b.Run(fmt.Sprintf("%dKiBFiles", length>>10), func(b *testing.B) {
			s := openStore(b, b.TempDir(), 256*mib, withFS(quick()))
			data := make([]byte, page)
			b.ReportAllocs()
			b.SetBytes(min(length, page))
			b.ResetTimer()
			for n, i := 0, 0; n < b.N; i++ {
				f := testFile(fmt.Sprint("f", i), "1", length)
				h, err := s.Acquire(f, f.Geometry().Whole())
				if err != nil {
					b.Fatal(err)
				}
				r, err := h.Reserve(f.Geometry().Whole())
				if err != nil {
					b.Fatal(err)
				}
				for p := int64(0); p < f.Geometry().Pages() && n < b.N; p++ {
					if _, err := r.Fill(p, data[:f.Geometry().Page(p).Length]); err != nil {
						b.Fatal(err)
					}
					n++
				}
				r.Release()
				h.Release()
			}
		})
	}
}

// BenchmarkMemoryPerFile reports the heap that a cached file of one page
// costs, its path and tag apart.
func BenchmarkMemoryPerFile(b *testing.B) {
	const n = 300_000
	// Open files have a bound of their own.
	s := openStore(b, b.TempDir(), 64*mib, func(_ *Options, c *Config) { c.OpenFiles = 1024 })
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	b.ResetTimer()
	{ // one round says it all, however many are asked for
		before := heap()
		texts := int64(0)
		d := s.dirs[0]
		for i := range n {
			f := testFile(fmt.Sprintf("train/%03d/%08d.jpg", i*7919%1000, i), "0123456789abcdef0123456789abcdef", 100<<10)
			p := s.newPart(f)
			texts += int64(len(p.text)+15) / 16 * 16
			s.shardOf(p.id).parts[p.id] = p
			p.setPage(0, uint32(i), false)
			s.paths.add(p)
			d.queue.add(&p.unit)
		}
		b.ReportMetric(float64(heap()-before-texts)/n, "bytes/file")
		b.ReportMetric(float64(texts)/n, "string-bytes/file")
		runtime.KeepAlive(s)
	}
}

func TestPartSize(t *testing.T) {
	if n := unsafe.Sizeof(part{}); n > 128 {
		t.Fatalf("a part has %d bytes: the next size class costs each cached file 16 more", n)
	}
}
