package blockio

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"millrace/block"
)

// cpuTime is the processor time of this process: server and client together.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRead4K reads 4 KiB at a time on one connection, from 1 and from 64
// goroutines.
func BenchmarkRead4K(b *testing.B) {
	for _, tr := range transports() {
		b.Run(tr.name+"/1", func(b *testing.B) { benchmarkRead(b, tr, 4096, 1) })
		b.Run(tr.name+"/64", func(b *testing.B) { benchmarkRead(b, tr, 4096, 64) })
	}
}

// BenchmarkRead1M reads 1 MiB at a time, one after the other.
func BenchmarkRead1M(b *testing.B) {
	for _, tr := range transports() {
		b.Run(tr.name, func(b *testing.B) { benchmarkRead(b, tr, 1<<20, 1) })
	}
}

func benchmarkRead(b *testing.B, tr transport, size, readers int) {
	const length = 64 << 20
	f := &testFile{data: pattern(length)}
	if tr.disk {
		f.disk = onDisk(b, f.data)
	}
	f.hook = serveTold(f)
	c := startServer(b, tr.network, DefaultServerConfig(), oneFile(f)).dial(b)
	h := mustOpen(b, c, "f", length)
	bufs := make([][]byte, readers)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	before := cpuTime(b)
	for _, p := range bufs {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				off := i * int64(size) % length
				if n, err := c.ReadAt(b.Context(), h, p, off, ReadOptions{}); n != size || err != nil {
					b.Errorf("%d, %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// serveTold serves f with the checksums of its pages, computed before.
func serveTold(f *testFile) readHook {
	g := block.Geometry{Length: int64(len(f.data)), BlockSize: block.DefaultBlockSize}
	crcs := make([]uint32, g.Pages())
	for i := range crcs {
		e := g.Page(int64(i))
		crcs[i] = block.Checksum(f.data[e.Offset:e.End()])
	}
	return func(_ context.Context, f *testFile, req ReadRequest, w Responder) error {
		first, end := g.PageRange(req.Extent)
		for p := first; p < end; p++ {
			w.PageCRC(p, crcs[p])
		}
		if f.disk != nil {
			return w.SendFile(f.disk, req.Extent.Offset, req.Extent.Length)
		}
		return w.Write(f.data[req.Extent.Offset:req.Extent.End()])
	}
}
