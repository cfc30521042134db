package blockio

import "millrace/block"

// pageFinder finds the pages that END numbers: those that the ranges touch,
// in the order of the ranges. It is asked for ascending numbers.
type pageFinder struct {
	ranges   []Range
	geometry block.Geometry
	before   int64 // pages of the ranges that were passed
}

// count returns how many pages the ranges touch.
func (f *pageFinder) count() (n int64) {
	for _, r := range f.ranges {
		first, end := f.geometry.PageRange(block.Extent{Offset: r.Off, Length: int64(len(r.Buf))})
		n += end - first
	}
	return n
}

// find returns the page of the file that has the number n and its bytes. False
// if there is none, or if its range does not hold it whole.
func (f *pageFinder) find(n uint32) (page int64, bytes []byte, ok bool) {
	for len(f.ranges) > 0 {
		r := f.ranges[0]
		e := block.Extent{Offset: r.Off, Length: int64(len(r.Buf))}
		first, end := f.geometry.PageRange(e)
		if i := int64(n) - f.before; i >= 0 && i < end-first {
			p := f.geometry.Page(first + i)
			if p.Offset < e.Offset || p.End() > e.End() {
				return 0, nil, false
			}
			return first + i, r.Buf[p.Offset-e.Offset : p.End()-e.Offset], true
		}
		f.before += end - first
		f.ranges = f.ranges[1:]
	}
	return 0, nil, false
}
