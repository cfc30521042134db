package tier

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestSortPaths compares it with the plain order, on paths that share much,
// end within one another and hold zero bytes.
func TestSortPaths(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	heads := []string{"", "a", "train/0000/", "train/0001/", "train/0001", "train/0001/00000001.jpg", strings.Repeat("deep/", 30)}
	tails := []string{"", "\x00", "\x00\x00", "a", "a\x00", "/", ".jpg", "\xff", "00000001.jpg", "00000002.jpg"}
	for range 50 {
		parts := make([]*part, 1+r.IntN(2000))
		for i := range parts {
			path := heads[r.IntN(len(heads))] + tails[r.IntN(len(tails))] + tails[r.IntN(len(tails))]
			if r.IntN(3) == 0 {
				path += fmt.Sprint(r.IntN(1000))
			}
			parts[i] = &part{mountID: uint64(r.IntN(2)), text: path + "tag", tagLen: 3, serial: uint64(r.IntN(5)), id: [16]byte{byte(i), byte(i >> 8)}}
		}
		want := slices.Clone(parts)
		slices.SortFunc(want, comparePaths)
		sortPaths(parts)
		if !slices.Equal(parts, want) {
			t.Fatal("not in order")
		}
	}
}
