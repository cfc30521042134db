package s3fs

import (
	"fmt"
	"maps"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"millrace/internal/testenv"
	"millrace/ufs"
	"millrace/ufs/ufstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	server := testenv.StartS3(t)
	options := server.Options(t)
	for _, tc := range []struct {
		name, prefix string
		pageSize     int32
	}{
		{"Bucket", "", 40},
		{"Prefix", "pre fix/ü", 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var buckets atomic.Int64
			ufstest.Run(t, func(t *testing.T) ufstest.Fixture {
				t.Helper()
				b := server.Bucket(t, fmt.Sprintf("%c-bucket-%d", tc.name[0]|0x20, buckets.Add(1)))
				key := func(path string) string { return ufs.Join(tc.prefix, path) }
				if tc.prefix != "" { // what is beside the prefix must not be seen
					b.Put(t, tc.prefix+"x", []byte("beside"))
					b.Put(t, tc.prefix+"-/x", []byte("beside"))
					b.Put(t, "zzz", []byte("beside"))
				}
				return ufstest.Fixture{
					PageSize: int(tc.pageSize),
					OpenWith: func(t testing.TB, more map[string]string) ufs.Store {
						t.Helper()
						all := maps.Clone(options)
						maps.Copy(all, more)
						s, err := Open(t.Context(), ufs.Config{URI: b.URI(tc.prefix), Options: all})
						if err != nil {
							t.Fatal(err)
						}
						return s
					},
					Open: func(t testing.TB, observer ufs.Observer) ufs.Store {
						t.Helper()
						s, err := open(t.Context(), ufs.Config{URI: b.URI(tc.prefix), Options: options, Observer: observer})
						if err != nil {
							t.Fatal(err)
						}
						s.pageSize = tc.pageSize
						return s
					},
					Put: func(t testing.TB, path string, data []byte) { t.Helper(); b.Put(t, key(path), data) },
					PutMany: func(t testing.TB, n int, object func(int) (string, []byte)) {
						t.Helper()
						b.PutMany(t, n, func(i int) (string, []byte) {
							path, data := object(i)
							return key(path), data
						})
					},
					Delete: func(t testing.TB, path string) { t.Helper(); b.Delete(t, key(path)) },
					Mkdir:  func(t testing.TB, path string) { t.Helper(); b.Put(t, key(path)+"/", nil) },
				}
			})
		})
	}
}
