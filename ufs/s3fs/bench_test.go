package s3fs

import (
	"fmt"
	"io"
	"testing"

	"millrace/block"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// BenchmarkRead reads extents of an object from a real server, over and over.
func BenchmarkRead(b *testing.B) {
	server := testenv.StartS3(b)
	bucket := server.Bucket(b, "bucket")
	const size = 16 << 20
	tag := bucket.Put(b, "k", make([]byte, size))
	s, err := open(b.Context(), ufs.Config{URI: "s3://bucket", Options: server.Options(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	buf := make([]byte, 1<<20)
	getter := s.getter
	for _, n := range []int64{4 << 10, 256 << 10, size, -(4 << 10)} {
		name := fmt.Sprintf("%dKiB", n>>10)
		if s.getter = getter; n < 0 {
			n, s.getter, name = -n, nil, "4KiB by the SDK alone"
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				r, err := s.Read(b.Context(), ufs.Object{Path: "k", Tag: tag, Length: size}, block.Extent{Length: n})
				if err != nil {
					b.Fatal(err)
				}
				for {
					_, err := r.Read(buf)
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				r.Close()
			}
		})
	}
}
