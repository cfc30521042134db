package tier

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// BenchmarkOpen measures the start of a store that holds many small files,
// after a clean end and after kill -9, and the memory that it takes. It makes
// 20,000 files of 4 KiB; MILLRACE_TIER_FILES asks for more, such as 1,000,000,
// which want 5 GB below TMPDIR and some minutes.
func BenchmarkOpen(b *testing.B) {
	n := 20_000
	if text := os.Getenv("MILLRACE_TIER_FILES"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	capacity := int64(n)*16_000 + 64*mib
	open := func() *Store { // not openStore, which would keep it in memory
		s, err := tryOpen(dir, capacity, withFS(quick()))
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	s := open()
	fillMany(b, s, n)
	abandon(b, s)
	for _, how := range []string{"killed", "closed", "compacted"} {
		b.Run(how, func(b *testing.B) {
			var took, cpu time.Duration
			for range b.N {
				b.StopTimer()
				s := open()
				if how == "compacted" {
					if err := s.dirs[0].compact(true); err != nil {
						b.Fatal(err)
					}
				}
				if how == "killed" {
					abandon(b, s)
				} else if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				resetPeak(b)
				b.StartTimer()
				start, before := time.Now(), cpuTime(b)
				s = open()
				took, cpu = took+time.Since(start), cpu+cpuTime(b)-before
				b.StopTimer()
				if got := s.Stats().CachedFiles; got != int64(n) {
					b.Fatalf("%d of %d files are cached", got, n)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
			perMillion := 1e6 / float64(b.N) / float64(n)
			b.ReportMetric(took.Seconds()*perMillion, "s/1M-files")
			b.ReportMetric(cpu.Seconds()*perMillion, "cpu-s/1M-files")
			b.ReportMetric(float64(peak(b))/float64(n), "peak-B/file")
		})
	}
}

// fillMany caches n files of 4 KiB.
func fillMany(tb testing.TB, s *Store, n int) {
	tb.Helper()
	data := bytes.Repeat([]byte("millrace"), 512)
	for i := range n {
		f := testFile(fmt.Sprintf("train/%03d/%08d.jpg", i*7919%1000, i), "0123456789abcdef0123456789abcdef", int64(len(data)))
		h, err := s.Acquire(f, f.Geometry().Whole())
		if err != nil {
			tb.Fatal(err)
		}
		r, err := h.Reserve(f.Geometry().Whole())
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := r.Fill(0, data); err != nil {
			tb.Fatal(err)
		}
		r.Release()
		h.Release()
		if i%4096 == 0 {
			s.upkeep()
		}
	}
}

// cpuTime is what this process has used of the processors.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resetPeak starts the kernel's count of the peak of memory anew.
func resetPeak(tb testing.TB) {
	tb.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil {
		tb.Logf("the peak is that of the whole run: %v", err)
	}
}

// peak returns the highest resident memory, in bytes.
func peak(tb testing.TB) int64 {
	tb.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", "self", "status"))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		var kib int64
		if _, err := fmt.Sscanf(string(line), "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	tb.Fatal("no VmHWM")
	return 0
}
