package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"millrace/internal/testenv"
)

// TestHDFS reads a directory of a real HDFS through a mount: cold, what was
// replaced, and after a DataNode died; and loads it.
func TestHDFS(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	h := testenv.StartHDFS(t, 2)
	client := h.Client(t)
	const dir, blockSize = "/data/set 1", 1 << 20
	objects := map[string]int64{}
	put := func(key string, data []byte) {
		t.Helper()
		if err := testenv.PutHDFS(client, dir+"/"+key, data, blockSize, 2); err != nil {
			t.Fatal(err)
		}
	}
	for i, size := range []int64{1, 4096, 300 << 10, blockSize, 3*blockSize + 123, 5 * blockSize} {
		for _, part := range []string{"a", "b/c"} {
			key := fmt.Sprintf("%s/%d.bin", part, i)
			objects[key] = size
			put(key, content(key, size))
		}
	}
	u := newUpOf(t, h.URL+dir, nil, true, "--ufs-opt", "user=root", "--ufs-opt", "freshness=always")
	u.start()

	read := func(what string) {
		t.Helper()
		var g errgroup.Group
		for seed := range uint64(4) {
			g.Go(func() error { return randomReads(u.mountPoint, objects, seed, 50) })
		}
		if err := g.Wait(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	read("cold")
	const key = "a/3.bin"
	replaced := []byte("replaced")
	put(key, replaced)
	if got, err := os.ReadFile(filepath.Join(u.mountPoint, key)); err != nil || !bytes.Equal(got, replaced) {
		t.Errorf("the replaced file: %q, %v", got, err)
	}
	delete(objects, key)

	// Files that nobody has read yet, of which one replica dies.
	for i := range 4 {
		key := fmt.Sprintf("late/%d.bin", i)
		objects[key] = 2*blockSize + int64(i)
		put(key, content(key, objects[key]))
	}
	if err := h.Kill(t.Context(), "dn1"); err != nil {
		t.Fatal(err)
	}
	read("without a DataNode")
	u.run("load", "/")
	if got := u.cached(); got.CachedBytes < got.Bytes {
		t.Errorf("not all is cached: %+v", got)
	}
	u.stop()
}
