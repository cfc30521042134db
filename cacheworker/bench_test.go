package cacheworker

import (
	"fmt"
	"syscall"
	"testing"

	"millrace/block"
	"millrace/blockio"
)

// BenchmarkHit is what files that are cached cost, client and worker in one
// process, one request at a time over the Unix socket: one READ of 4 KiB and
// of a whole small file, OPEN_READ of one, and OPEN, FD and CLOSE.
func BenchmarkHit(b *testing.B) {
	const files, length = 2000, 100 << 10 // more than the worker keeps open
	r := newRig(b, rigOptions{capacity: 512 * mib})
	tickets := make([]*block.Ticket, files)
	handles := make([]uint32, files)
	for i := range tickets {
		tickets[i] = r.store.put(fmt.Sprint("f", i), "v1", length)
		handles[i] = r.open(r.unix, tickets[i])
		if err := r.read(r.unix, tickets[i], handles[i], tickets[i].Geometry().Whole()); err != nil {
			b.Fatal(err)
		}
	}
	p := make([]byte, length)
	run := func(name string, few int, op func(i int) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			start := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				if err := op(i % few); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-start)/1000)/float64(b.N), "cpu-µs/op")
		})
	}
	for _, few := range []int{100, files} {
		in := fmt.Sprintf("/%d files", few)
		run("read 4 KiB"+in, few, func(i int) error {
			_, err := r.unix.ReadAt(b.Context(), handles[i], p[:4096], 8192, blockio.ReadOptions{})
			return err
		})
		run("read 100 KiB"+in, few, func(i int) error {
			_, err := r.unix.ReadAt(b.Context(), handles[i], p, 0, blockio.ReadOptions{})
			return err
		})
		run("open and read 100 KiB"+in, few, func(i int) error {
			h, err := r.unix.OpenRead(b.Context(), tickets[i], p, 0, blockio.ReadOptions{})
			r.unix.CloseHandle(h)
			return err
		})
		run("descriptor"+in, few, func(i int) error {
			fd, _, err := r.unix.Descriptor(b.Context(), handles[i], blockio.DescriptorOptions{})
			if err != nil {
				return err
			}
			return fd.Close()
		})
		run("descriptor and read 100 KiB"+in, few, func(i int) error {
			fd, base, err := r.unix.Descriptor(b.Context(), handles[i], blockio.DescriptorOptions{})
			if err != nil {
				return err
			}
			if _, err := fd.ReadAt(p, base); err != nil {
				return err
			}
			return fd.Close()
		})
	}
}

// cpuTime is the processor time that this process has used, in ns.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
