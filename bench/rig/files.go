package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
)

// File is what a reader needs of an open file.
type File interface {
	io.ReaderAt
	io.Closer
}

// Source opens the objects of a data set by key: a directory, or the SDK.
type Source func(ctx context.Context, key string) (File, error)

// Dir is the source of the files below a directory.
func Dir(root string) Source {
	return func(_ context.Context, key string) (File, error) {
		return os.Open(filepath.Join(root, filepath.FromSlash(key)))
	}
}

// readSize is the length in bytes of each read of a file.
const readSize = 1 << 20

// ReadFiles reads every file of the set to its end with that many readers at
// once, one file a reader. With check, every byte is compared.
func ReadFiles(ctx context.Context, src Source, d Dataset, readers int, check bool) error {
	buffers := sync.Pool{New: func() any {
		b := make([]byte, 2*readSize)
		return &b
	}}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, o := range d.Objects {
		g.Go(func() error {
			buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // the pool holds nothing else
			defer buffers.Put(buf)
			if err := readFile(ctx, src, o, *buf, check); err != nil {
				return fmt.Errorf("read %s: %w", o.Key, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func readFile(ctx context.Context, src Source, o Object, buf []byte, check bool) error {
	f, err := src(ctx, o.Key)
	if err != nil {
		return err
	}
	var content *Content
	if check {
		content = NewContent(o.Key, o.Size)
	}
	page, scratch := buf[:readSize], buf[readSize:]
	for off := int64(0); off < o.Size; {
		n, err := f.ReadAt(page[:min(readSize, o.Size-off)], off)
		if err != nil && (!errors.Is(err, io.EOF) || off+int64(n) < o.Size) {
			return errors.Join(err, f.Close())
		}
		if check {
			if err := content.Check(page[:n], off, scratch); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		off += int64(n)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), f.Close())
		}
	}
	return f.Close()
}

// DropCaches makes the kernel forget clean pages, dentries and inodes, so
// that the next read shows the file system and not the page cache. It needs
// root.
func DropCaches() error {
	syncAll()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}
