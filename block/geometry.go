package block

import (
	"fmt"
	"math"
)

// Sizes of the pieces of a file, in bytes.
const (
	PageSize         int64 = 256 << 10 // unit of presence, checksum and fetch
	DefaultBlockSize int64 = 64 << 20  // unit of placement, location and load task
	MinBlockSize           = PageSize
	MaxBlockSize     int64 = 1 << 30
)

// MaxFileLength bounds the length of a file, in bytes: 1 EiB.
const MaxFileLength int64 = 1 << 60

// Extent is a range of bytes of a file. Offset and Length are not negative.
type Extent struct {
	Offset, Length int64
}

// End returns the offset of the first byte behind the extent; the greatest
// int64 where the sum would be more.
func (e Extent) End() int64 {
	end := e.Offset + e.Length
	if e.Length > 0 && end < e.Offset {
		return math.MaxInt64
	}
	return end
}

// IsEmpty reports whether the extent holds no byte.
func (e Extent) IsEmpty() bool { return e.Length <= 0 }

// Intersect returns the bytes that are in both extents; an empty extent at
// e's offset if there are none.
func (e Extent) Intersect(o Extent) Extent {
	start, end := max(e.Offset, o.Offset), min(e.End(), o.End())
	if end <= start {
		return Extent{Offset: e.Offset}
	}
	return Extent{Offset: start, Length: end - start}
}

// String returns "[offset,end)".
func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Offset, e.End()) }

// Geometry divides a file of one length into blocks and pages. BlockSize is a
// multiple of PageSize; the last block and the last page may be short. A file
// of length 0 has no blocks and no pages.
type Geometry struct {
	Length    int64
	BlockSize int64
}

// Validate reports whether the geometry is one that this release can handle.
func (g Geometry) Validate() error {
	switch {
	case g.Length < 0 || g.Length > MaxFileLength:
		return fmt.Errorf("file length %d is out of range [0, %d]", g.Length, MaxFileLength)
	case g.BlockSize < MinBlockSize || g.BlockSize > MaxBlockSize || g.BlockSize%PageSize != 0:
		return fmt.Errorf("block size %d is not a multiple of %d in [%d, %d]", g.BlockSize, PageSize, MinBlockSize, MaxBlockSize)
	case g.Length/g.BlockSize >= 1<<32-1:
		return fmt.Errorf("a file of %d bytes has too many blocks of %d bytes", g.Length, g.BlockSize)
	}
	return nil
}

// Blocks returns the number of blocks.
func (g Geometry) Blocks() int64 { return ceilDiv(g.Length, g.BlockSize) }

// Pages returns the number of pages.
func (g Geometry) Pages() int64 { return ceilDiv(g.Length, PageSize) }

// Whole returns the extent of the whole file.
func (g Geometry) Whole() Extent { return Extent{Length: g.Length} }

// BlockOf returns the index of the block that holds the byte at off.
func (g Geometry) BlockOf(off int64) int64 { return off / g.BlockSize }

// Block returns the extent of block i, cut at the file's end.
func (g Geometry) Block(i int64) Extent {
	return Extent{Offset: i * g.BlockSize, Length: g.BlockSize}.Intersect(g.Whole())
}

// PageOf returns the index of the page that holds the byte at off.
func (g Geometry) PageOf(off int64) int64 { return off / PageSize }

// Page returns the extent of page i, cut at the file's end.
func (g Geometry) Page(i int64) Extent {
	return Extent{Offset: i * PageSize, Length: PageSize}.Intersect(g.Whole())
}

// PageRange returns the first page and the page behind the last one that e
// touches. For an empty extent they are equal.
func (g Geometry) PageRange(e Extent) (first, end int64) {
	e = e.Intersect(g.Whole())
	if e.IsEmpty() {
		p := e.Offset / PageSize
		return p, p
	}
	return e.Offset / PageSize, ceilDiv(e.End(), PageSize)
}

// BlockRange returns the first block and the block behind the last one that e
// touches. For an empty extent they are equal.
func (g Geometry) BlockRange(e Extent) (first, end int64) {
	e = e.Intersect(g.Whole())
	if e.IsEmpty() {
		b := e.Offset / g.BlockSize
		return b, b
	}
	return e.Offset / g.BlockSize, ceilDiv(e.End(), g.BlockSize)
}

// PagesExtent returns the bytes of pages [first, end), cut at the file's end.
func (g Geometry) PagesExtent(first, end int64) Extent {
	return Extent{Offset: first * PageSize, Length: (end - first) * PageSize}.Intersect(g.Whole())
}

func ceilDiv(a, b int64) int64 {
	if a <= 0 {
		return 0
	}
	return (a-1)/b + 1
}
