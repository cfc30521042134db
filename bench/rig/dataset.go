package rig

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// Object is one object of a data set.
type Object struct {
	Key  string
	Size int64
}

// Dataset is a named set of objects that are read in one phase.
type Dataset struct {
	Name    string
	Objects []Object
}

// Bytes returns the sum of the objects' sizes.
func (d Dataset) Bytes() int64 {
	var n int64
	for _, o := range d.Objects {
		n += o.Size
	}
	return n
}

// Big makes a data set of n objects of size bytes under big/.
func Big(n int, size int64) Dataset {
	d := Dataset{Name: "big"}
	for i := range n {
		d.Objects = append(d.Objects, Object{fmt.Sprintf("big/%d.bin", i), size})
	}
	return d
}

// Small makes a data set of n objects of size bytes in folders of 100 under
// small/.
func Small(n int, size int64) Dataset {
	d := Dataset{Name: "small"}
	for i := range n {
		d.Objects = append(d.Objects, Object{fmt.Sprintf("small/%03d/%03d.jpg", i/100, i%100), size})
	}
	return d
}

// Fill puts the objects into the bucket, a few at a time.
func (b *Bare) Fill(ctx context.Context, sets ...Dataset) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, d := range sets {
		for _, o := range d.Objects {
			g.Go(func() error {
				if err := b.put(ctx, o); err != nil {
					return fmt.Errorf("put %s: %w", o.Key, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// contentReader is the io.ReadSeeker over a Content that an upload wants.
type contentReader struct {
	*io.SectionReader
}

type contentAt struct{ *Content }

func (c contentAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), c.size-off))
	c.Content.ReadAt(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func newContentReader(o Object) contentReader {
	return contentReader{io.NewSectionReader(contentAt{NewContent(o.Key, o.Size)}, 0, o.Size)}
}
