package s3fs

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"millrace/internal/testenv"
	"millrace/ufs"
)

// liveHeap returns the bytes of what is reachable now.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// keysEnv is the environment variable that says how many keys
// TestListInConstantMemory lists. 1,000,000 take a minute.
const keysEnv = "MILLRACE_LIST_KEYS"

// TestListInConstantMemory lists many keys. What is live in the process, the
// server included, grows by less than those keys would take if they were kept,
// whatever their number.
func TestListInConstantMemory(t *testing.T) {
	n, pageSize, bound := 20_000, int32(100), uint64(2<<20)
	if v := os.Getenv(keysEnv); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		pageSize, bound = 1000, 4<<20
	}
	for _, tc := range []struct {
		name, dir string
		recursive bool
	}{
		{"flat", "big", false},
		{"recursive", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := testenv.StartMemoryS3(t)
			m.SetBucket("bucket", testenv.NumberedKeys{Prefix: "big/key-", N: n, Size: 7})
			s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, m.Endpoint)})
			s.pageSize = pageSize
			before, most := liveHeap(), uint64(0)
			seen, last := 0, ""
			for info, err := range s.List(t.Context(), tc.dir, ufs.ListOptions{Recursive: tc.recursive}) {
				if err != nil {
					t.Fatal(err)
				}
				if info.Path <= last || info.Size != 7 || info.Tag == "" {
					t.Fatalf("%+v after %q", info, last)
				}
				last = info.Path
				if seen++; seen%(n/10) == 1 {
					most = max(most, liveHeap())
				}
			}
			if pages := m.Lists(); seen != n || pages != int64(n)/int64(pageSize) {
				t.Errorf("%d keys in %d requests", seen, pages)
			}
			t.Logf("live heap %d KiB before, at most %d KiB in between", before>>10, most>>10)
			if most > before+bound {
				t.Errorf("the live heap grew from %d to %d bytes", before, most)
			}
		})
	}
}

// TestListPrefetches has one page fetched ahead while the consumer is at
// another, never two, and none for a consumer that stops at the first entry.
func TestListPrefetches(t *testing.T) {
	m := testenv.StartMemoryS3(t)
	m.SetBucket("bucket", testenv.NumberedKeys{N: 100})
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, m.Endpoint)})
	s.pageSize = 10
	for _, err := range s.List(t.Context(), "", ufs.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if n := m.Lists(); n != 1 {
		t.Errorf("%d requests for one entry", n)
	}
	start := m.Lists()
	seen := 0
	for _, err := range s.List(t.Context(), "", ufs.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		page := seen / 10 // of this entry
		seen++
		if n := m.Lists() - start; n > int64(page)+2 {
			t.Fatalf("%d requests at page %d", n, page)
		}
		if seen == 5 { // the second page comes while nobody asks for it
			for m.Lists()-start < 2 {
				runtime.Gosched()
			}
		}
	}
	if n := m.Lists() - start; seen != 100 || n != 10 {
		t.Errorf("%d entries in %d requests", seen, n)
	}
}
