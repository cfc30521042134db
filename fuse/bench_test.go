package fuse

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"millrace/internal/size"
)

// BenchmarkRead is what a READ of the kernel costs this process by its
// length, in µs of CPU, when the file is in the memory of this host. Another
// process reads, past the kernel's cache.
func BenchmarkRead(b *testing.B) {
	for from, spliced := range map[string]span{"pread": {1, 0}, "splice": {0, spliceWorth.to}} {
		for _, n := range []size.Bytes{4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1<<20 - 8192, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%v", from, n), func(b *testing.B) {
				c := newFake(time.Hour)
				c.put("/x", 64<<20, "v1")
				dir, err := os.MkdirTemp("/dev/shm", "millrace-fuse-") //nolint:usetesting // in memory
				if err != nil {
					b.Skip("SKIPPED, NOT TESTED: ", err)
				}
				defer os.RemoveAll(dir)
				c.local = dir
				m := startMount(b, c, "", func(m *Mount) { m.spliced, m.log = spliced, slogDiscard() }, copyPath)
				if err := readDirect(filepath.Join(m.dir, "x"), "4096", "1"); err != nil { // makes the local file
					b.Fatal(err)
				}
				cmd := helperCmd(b, "direct", filepath.Join(m.dir, "x"))
				cmd.Args = append(cmd.Args, strconv.Itoa(int(n)), strconv.Itoa(b.N))
				before := cpu()
				if out, err := output(cmd); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
				b.SetBytes(int64(n))
			})
		}
	}
}

func output(cmd *exec.Cmd) ([]byte, error) {
	cmd.Stderr = nil
	return cmd.CombinedOutput()
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func readDirect(name, length, times string) error {
	n, err := strconv.Atoi(length)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// On a page, so that a request has no page more than its length.
	buf := make([]byte, n+4096)
	buf = buf[-uintptr(unsafe.Pointer(&buf[0]))%4096:][:n]
	off := int64(0)
	for range count {
		got, err := unix.Pread(fd, buf, off)
		if err != nil || got != n {
			return fmt.Errorf("%d of %d bytes at %d: %w", got, n, off, err)
		}
		if off += int64(n); off+int64(n) > 64<<20 {
			off = 0
		}
	}
	return nil
}
