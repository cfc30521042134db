package blockmap

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/block"
)

// reportBlocks is how many blocks a worker sends in one report.
const reportBlocks = 10_000

// reports are full reports of n blocks.
func reports(n int) []Report {
	all := make([]uint64, n)
	for i := range all {
		all[i] = keyOf(i).LocationHash() | wholeBit
	}
	slices.Sort(all)
	var out []Report
	for part := range slices.Chunk(all, reportBlocks) {
		out = append(out, Report{Epoch: 1, Sequence: uint64(len(out) + 1), First: len(out) == 0, Part: true, Cached: part})
	}
	out[len(out)-1].Last = true
	return out
}

func keyOf(i int) (k block.Key) {
	binary.LittleEndian.PutUint64(k.File[:], uint64(i))
	return k
}

// BenchmarkFullReport takes in all that a worker has.
func BenchmarkFullReport(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := reports(n)
			b.ReportAllocs()
			for b.Loop() {
				m := New(time.Now)
				for _, r := range all {
					if m.Apply("w", r) {
						b.Fatal("the report did not fit")
					}
				}
				if m.Len() != n {
					b.Fatalf("%d blocks, want %d", m.Len(), n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/block")
		})
	}
}

// BenchmarkLocations asks where blocks are that some of 10 workers have.
func BenchmarkLocations(b *testing.B) {
	m, all := New(time.Now), reports(100_000)
	for w := range 10 {
		for _, r := range all {
			m.Apply(block.WorkerID(fmt.Sprint("w", w)), r)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Locations(keyOf(i % 200_000).LocationHash())
	}
}
