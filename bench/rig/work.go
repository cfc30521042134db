package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// What the benchmarks do to files, by plain system calls: what is measured is
// the file system, and the same is done to each.

// page is the length in bytes of a random read.
const page = 4 << 10

// Sequential reads a file from its beginning to its end, 1 MiB at a time.
func Sequential(ctx context.Context, path string) error {
	return withFile(path, func(fd int) error {
		_, err := drain(ctx, fd, make([]byte, readSize))
		return err
	})
}

func drain(ctx context.Context, fd int, buf []byte) (sum int64, err error) {
	for ctx.Err() == nil {
		n, err := read(fd, buf)
		if n == 0 || err != nil {
			return sum, err
		}
		sum += int64(n)
	}
	return sum, context.Cause(ctx)
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func withFile(path string, work func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := work(fd); err != nil {
		return errors.Join(&os.PathError{Op: "read", Path: path, Err: err}, unix.Close(fd))
	}
	return unix.Close(fd)
}

// Random reads n pages of 4 KiB of a file of size bytes with that many readers
// at once, each with a descriptor of its own. No page is read twice, and the
// kernel is told not to read ahead; seed decides which pages.
func Random(ctx context.Context, path string, size int64, n, readers int, seed uint64) error {
	pages := rand.New(rand.NewPCG(seed, 0)).Perm(int(size / page))
	if n > len(pages) {
		return fmt.Errorf("%d pages of %s: it has %d", n, path, len(pages))
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range readers {
		mine := pages[i*n/readers : (i+1)*n/readers]
		g.Go(func() error {
			return withFile(path, func(fd int) error { return readPages(ctx, fd, mine) })
		})
	}
	return g.Wait()
}

func readPages(ctx context.Context, fd int, pages []int) error {
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	buf := make([]byte, page)
	for _, p := range pages {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Pread(fd, buf, int64(p)*page)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Pread(fd, buf, int64(p)*page)
		}
		if err != nil {
			return err
		}
		if n != page {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// Epoch reads every file of the set below root whole, in an order that seed
// decides, with that many readers at once, as a training job does.
func Epoch(ctx context.Context, root string, d Dataset, readers int, seed uint64) error {
	order := rand.New(rand.NewPCG(seed, 0)).Perm(len(d.Objects))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range readers {
		g.Go(func() error {
			buf := make([]byte, readSize)
			for i := next.Add(1) - 1; i < int64(len(order)); i = next.Add(1) - 1 {
				o := d.Objects[order[i]]
				path := filepath.Join(root, filepath.FromSlash(o.Key))
				err := withFile(path, func(fd int) error {
					n, err := drain(ctx, fd, buf)
					if err == nil && n != o.Size {
						err = fmt.Errorf("%d bytes of %d", n, o.Size)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// StatTree lists root and what is below it and asks for every file's
// attributes, as `find -ls` does.
func StatTree(ctx context.Context, root string) (files int, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		if e.IsDir() {
			below, err := StatTree(ctx, path)
			if err != nil {
				return 0, err
			}
			files += below
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		files++
	}
	return files, nil
}

// OpenClose opens and closes the first n files of the set, one after the
// other.
func OpenClose(ctx context.Context, root string, d Dataset, n int) error {
	for _, o := range d.Objects[:n] {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := withFile(filepath.Join(root, filepath.FromSlash(o.Key)), func(int) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile writes n bytes to a file and waits until they are on the disk.
func WriteFile(ctx context.Context, path string, n int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, readSize)
	for at := int64(0); at < n; at += int64(len(buf)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := f.Write(buf[:min(int64(len(buf)), n-at)]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// CopySet writes the files of a set, with their content, below root.
func CopySet(ctx context.Context, root string, d Dataset) error {
	buf := make([]byte, readSize)
	for _, o := range d.Objects {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		path := filepath.Join(root, filepath.FromSlash(o.Key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeContent(path, o, buf); err != nil {
			return err
		}
	}
	return nil
}

func writeContent(path string, o Object, buf []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content := NewContent(o.Key, o.Size)
	for off := int64(0); off < o.Size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), o.Size-off)]
		content.ReadAt(p, off)
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	return nil
}
