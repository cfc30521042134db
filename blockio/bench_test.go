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

// BenchmarkReadV4K reads 64 ranges of 4 KiB with one request, one after the
// other. An op is one range.
func BenchmarkReadV4K(b *testing.B) {
	for _, tr := range transports() {
		b.Run(tr.name, func(b *testing.B) {
			const length = 64 << 20
			c, h := benchmarkConn(b, tr, length)
			rs := make([]Range, MaxRanges)
			for i := range rs {
				rs[i].Buf = make([]byte, 4096)
			}
			b.SetBytes(4096)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime(b)
			for i := 0; i < b.N; i += len(rs) {
				for j := range rs {
					rs[j].Off = int64((i+j)*7919) % (length / 4096) * 4096
				}
				if _, err := c.ReadV(b.Context(), h, rs, ReadOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			reportCPU(b, cpuTime(b)-before, "cpu-µs/op")
		})
	}
}

// BenchmarkOpenRead4K opens and reads a file of 4 KiB with one request, and
// closes it.
func BenchmarkOpenRead4K(b *testing.B) {
	for _, tr := range transports() {
		b.Run(tr.name, func(b *testing.B) {
			c, _ := benchmarkConn(b, tr, 4096)
			ticket, p := ticketOf("f", 4096), make([]byte, 4096)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime(b)
			for range b.N {
				h, err := c.OpenRead(b.Context(), ticket, p, 0, ReadOptions{})
				if err != nil {
					b.Fatal(err)
				}
				c.CloseHandle(h)
			}
			reportCPU(b, cpuTime(b)-before, "cpu-µs/op")
		})
	}
}

// BenchmarkRead1M reads 1 MiB at a time, one after the other.
func BenchmarkRead1M(b *testing.B) {
	for _, tr := range transports() {
		b.Run(tr.name, func(b *testing.B) { benchmarkRead(b, tr, 1<<20, 1) })
	}
}

// benchmarkConn returns a connection to a server in this process, and an open
// file of length bytes.
func benchmarkConn(b *testing.B, tr transport, length int) (*Conn, uint32) {
	b.Helper()
	f := &testFile{data: pattern(length)}
	if tr.disk {
		f.disk = onDisk(b, f.data)
	}
	f.hook = serveTold(f)
	c := startServer(b, tr.network, DefaultServerConfig(), oneFile(f)).dial(b)
	return c, mustOpen(b, c, "f", length)
}

func reportCPU(b *testing.B, d time.Duration, unit string) {
	b.Helper()
	b.ReportMetric(float64(d.Nanoseconds())/1e3/float64(b.N), unit)
}

func benchmarkRead(b *testing.B, tr transport, size, readers int) {
	const length = 64 << 20
	c, h := benchmarkConn(b, tr, length)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	readAll(b, c, h, length, size, readers)
	reportCPU(b, cpuTime(b)-before, "cpu-µs/op")
}

// readAll does b.N reads of size bytes with several readers.
func readAll(b *testing.B, c *Conn, h uint32, length, size, readers int) {
	b.Helper()
	bufs := make([][]byte, readers)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	b.SetBytes(int64(size))
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, p := range bufs {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				off := i * int64(size) % int64(length)
				if n, err := c.ReadAt(b.Context(), h, p, off, ReadOptions{}); n != size || err != nil {
					b.Errorf("%d, %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
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

// BenchmarkParseHeader decodes the header of a frame.
func BenchmarkParseHeader(b *testing.B) {
	encoded := appendHeader(nil, &header{Op: opRead, Length: readPayloadSize, RequestID: 1, Handle: 2, PlacementEpoch: 3})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseHeader(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
