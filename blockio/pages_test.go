package blockio

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
)

// TestPageSums: the pages that ranges hold whole have their sums when, and
// only when, all of their bytes arrived, in whatever pieces those come.
func TestPageSums(t *testing.T) {
	const page = int(block.PageSize)
	data := pattern(5*page + 77)
	g := block.Geometry{Length: int64(len(data)), BlockSize: block.DefaultBlockSize}
	sum := func(number uint32, page int64) pageCRC {
		e := g.Page(page)
		return pageCRC{Page: number, CRC: block.Checksum(data[e.Offset:e.End()])}
	}
	for name, tc := range map[string]struct {
		ranges []Range
		want   []pageCRC
	}{
		"nothing":       {nil, nil},
		"empty":         {filled(data, [2]int{5, 0}), nil},
		"part":          {filled(data, [2]int{1, page - 1}), nil},
		"one":           {filled(data, [2]int{page, page}), []pageCRC{sum(0, 1)}},
		"not at a page": {filled(data, [2]int{1, 3 * page}), []pageCRC{sum(1, 1), sum(2, 2)}},
		"short last":    {filled(data, [2]int{5*page - 1, 78}), []pageCRC{sum(1, 5)}},
		"several": {
			filled(data, [2]int{4 * page, page}, [2]int{7, 0}, [2]int{page - 1, page + 1}, [2]int{0, page}),
			[]pageCRC{sum(0, 4), sum(2, 1), sum(3, 0)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 1))
			for _, most := range []int{1 << 10, page / 2, page, 10 * page} {
				ranges := slices.Clone(tc.ranges)
				for i := range ranges {
					ranges[i].Buf = make([]byte, len(ranges[i].Buf))
				}
				var s pageSums
				for at, r := range ranges {
					for in := 0; in < len(r.Buf); {
						in += copy(r.Buf[in:min(in+1+rnd.IntN(most), len(r.Buf))], tc.ranges[at].Buf[in:])
						s.arrived(g, ranges, at, in)
					}
				}
				if d := cmp.Diff(tc.want, s.sums); d != "" {
					t.Fatal(d)
				}
			}
		})
	}
}

// filled returns ranges that hold the bytes of data, each given by its offset
// and length.
func filled(data []byte, all ...[2]int) []Range {
	var ranges []Range
	for _, r := range all {
		ranges = append(ranges, Range{Off: int64(r[0]), Buf: data[r[0] : r[0]+r[1]]})
	}
	return ranges
}
