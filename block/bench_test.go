package block

import (
	"fmt"
	"testing"
)

// BenchmarkOwners asks for the three best of some workers for a block.
func BenchmarkOwners(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := Placement{Epoch: 1, WholeFileLimit: 1 << 30}
			for i := range n {
				p.Workers = append(p.Workers, PlacedWorker{ID: WorkerID(fmt.Sprintf("01M7ZT6V6HEQSRHN73QVP9%04d", i)), Weight: 1 << 40})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.Owners(Key{File: FileID{byte(i), byte(i >> 8), byte(i >> 16)}}, 100<<10, 3)
			}
		})
	}
}

// BenchmarkTicket decodes the ticket of a small file.
func BenchmarkTicket(b *testing.B) {
	t := &Ticket{Path: "/dataset/part-00001/image-00000001.jpeg", Tag: `"d41d8cd98f00b204e9800998ecf8427e"`, Length: 100 << 10, BlockSize: DefaultBlockSize}
	t.FileID = t.Derive()
	encoded, err := t.AppendBinary(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseTicket(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
