package blockio

import "millrace/block"

// pageSums computes the checksums of the pages that ranges hold whole, as
// their bytes arrive: right behind the receiving they are still close to the
// processor. Pages are numbered as END does it: those that the ranges touch,
// in the order of the ranges.
type pageSums struct {
	sums []pageCRC // ascending

	at     int   // the range that holds the next page
	next   int64 // that page, of those that the range touches
	before int64 // pages that the ranges before touch
}

// reset makes s one of other ranges.
func (s *pageSums) reset() { *s = pageSums{sums: s.sums[:0]} }

// arrived computes the sums of what is there: all of the ranges before at, and
// in bytes of that one.
func (s *pageSums) arrived(g block.Geometry, ranges []Range, at, in int) {
	for ; s.at < len(ranges) && s.at <= at; s.at++ {
		r := ranges[s.at]
		have := len(r.Buf)
		if s.at == at {
			have = in
		}
		e := block.Extent{Offset: r.Off, Length: int64(len(r.Buf))}
		first, end := g.PageRange(e)
		for ; s.next < end-first; s.next++ {
			p := g.Page(first + s.next)
			if p.Offset < e.Offset || p.End() > e.End() {
				continue
			}
			if p.End()-e.Offset > int64(have) {
				return
			}
			s.sums = append(s.sums, pageCRC{
				Page: uint32(s.before + s.next),
				CRC:  block.Checksum(r.Buf[p.Offset-e.Offset : p.End()-e.Offset]),
			})
		}
		if have < len(r.Buf) {
			return
		}
		s.before, s.next = s.before+end-first, 0
	}
}

// compare holds the server's checksums, which ascend, against ours. known is
// false if one is of a page that no range holds whole.
func (s *pageSums) compare(told []pageCRC) (wrong []pageCRC, known bool) {
	sums := s.sums
	for i, c := range told {
		for len(sums) > 0 && sums[0].Page < c.Page {
			sums = sums[1:]
		}
		if len(sums) == 0 || sums[0].Page != c.Page {
			return nil, false
		}
		if sums[0].CRC != c.CRC {
			return told[i : i+1], true
		}
	}
	return nil, true
}
