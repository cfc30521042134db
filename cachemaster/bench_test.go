package cachemaster

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	"millrace/api"
	"millrace/ufs"
)

// benchDirs directories of benchFiles files each are what the benchmarks look
// at.
const (
	benchDirs  = 100
	benchFiles = 100
)

func benchTree() (files map[string]string, paths []string) {
	files = make(map[string]string)
	for d := range benchDirs {
		for f := range benchFiles {
			p := fmt.Sprintf("dataset/part-%05d/image-%08d.jpeg", d, f)
			files[p] = `"d41d8cd98f00b204e9800998ecf8427e"`
			paths = append(paths, "/"+p)
		}
	}
	return files, paths
}

func benchCluster(b *testing.B) (*cluster, []string) {
	b.Helper()
	files, paths := benchTree()
	c := start(b, b.TempDir(), map[string]*memStore{"s": newMemStore(files)}, DefaultConfig())
	c.mount(b, "/", "mem://s", map[string]string{"freshness": "never"})
	for d := range benchDirs {
		if _, err := c.list(b, &api.ListRequest{Path: fmt.Appendf(nil, "/dataset/part-%05d", d)}); err != nil {
			b.Fatal(err)
		}
	}
	return c, paths
}

// cpu measures what the process takes, for this machine's other load is in
// the time that passes.
type cpu struct{ began int64 }

func startCPU() cpu { return cpu{cpuTime()} }

// report gives the time since the start for each of n things.
func (c cpu) report(b *testing.B, n int, unit string) {
	b.Helper()
	b.ReportMetric(float64(cpuTime()-c.began)/1000/float64(n), "cpu-µs/"+unit)
}

// cpuTime returns the nanoseconds that the process has taken.
func cpuTime() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkStat is a look at a file that the metadata cache knows: all of the
// way over a connection with both of its ends, and the master's own work.
func BenchmarkStat(b *testing.B) {
	c, paths := benchCluster(b)
	req := func(i int) *api.StatRequest {
		return &api.StatRequest{Path: []byte(paths[i%len(paths)]), WithTicket: true}
	}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		took := startCPU()
		for i := 0; b.Loop(); i++ {
			if _, err := c.ns.Stat(b.Context(), req(i)); err != nil {
				b.Fatal(err)
			}
		}
		took.report(b, b.N, "op")
	})
	b.Run("parallel=8", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(4)
		took := startCPU()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := c.ns.Stat(b.Context(), req(i)); err != nil {
					b.Error(err)
				}
			}
		})
		took.report(b, b.N, "op")
	})
	b.Run("master", func(b *testing.B) {
		b.ReportAllocs()
		s := &namespaceService{m: c.m}
		took := startCPU()
		for i := 0; b.Loop(); i++ {
			if _, err := s.Stat(b.Context(), req(i)); err != nil {
				b.Fatal(err)
			}
		}
		took.report(b, b.N, "op")
	})
}

// BenchmarkMetadataMemory states what a file of a listing takes in the
// metadata cache.
func BenchmarkMetadataMemory(b *testing.B) {
	const files = 50_000
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		children := make([]ufs.Info, files)
		for i := range children {
			children[i] = ufs.Info{
				Path: fmt.Sprintf("dataset/part-00042/image-%08d.jpeg", i), Type: ufs.File, Size: 100 << 10,
				MTime: time.Unix(1_700_000_000, 0), Tag: fmt.Sprintf("%032x", i),
			}
		}
		c := newMetaCache(1<<40, time.Now)
		c.putListing(1, "dataset/part-00042", children, time.Time{}, time.Now().Add(time.Minute))
		b.ReportMetric(float64(heap()-before)/files, "B/file")
		_, accounted := c.size()
		b.ReportMetric(float64(accounted)/files, "accounted-B/file")
		runtime.KeepAlive(c)
	}
}

// BenchmarkList is one entry of a listing with tickets; a "cached" one is of a
// directory that the metadata cache knows.
func BenchmarkList(b *testing.B) {
	c, _ := benchCluster(b)
	for name, r := range map[string]*api.ListRequest{
		"cached":    {Path: []byte("/dataset/part-00042"), WithTickets: true},
		"recursive": {Path: []byte("/dataset"), WithTickets: true, Recursive: true},
	} {
		b.Run(name, func(b *testing.B) {
			entries := 0
			took := startCPU()
			for b.Loop() {
				stream, err := c.ns.List(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				for {
					batch, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					entries += len(batch.GetEntries())
				}
			}
			took.report(b, entries, "entry")
		})
	}
}

// BenchmarkJob is one file of a load job, from the listing to the result: the
// master, and a worker that does nothing.
func BenchmarkJob(b *testing.B) {
	for range b.N {
		c, paths := benchCluster(b)
		c.join(b, newFakeWorker(b, "w1"))
		took := startCPU()
		job := c.await(b, c.submit(b, "/"))
		took.report(b, len(paths), "file")
		if job.GetState() != api.JobState_JOB_STATE_SUCCEEDED || job.GetFiles().GetLoaded() != int64(len(paths)) {
			b.Errorf("job %v", job)
		}
		c.stop()
	}
}
