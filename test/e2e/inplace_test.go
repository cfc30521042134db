package e2e_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Cold files are read by the mount in the files that the worker fills, while
// the worker evicts, is killed and comes back, and all is freed: every byte is
// the right one, and some of them did not go through the socket.
func TestColdReadsInPlace(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	sizes := []int64{}
	for i := range 8 {
		sizes = append(sizes, 7<<20+int64(i)*1001)
	}
	s.fill(t, "cold", sizes...)
	c := newCluster(t, s, "32MiB", "MILLRACE_CLIENT_READ_RETRY_FOR=1m")
	copying := c.addMount("copying", "-o", "passthrough=off")
	inPlace := int64(0)
	for _, trouble := range []func(){
		func() {},
		func() { c.run("free", "/") },
		func() {
			inPlace += c.worker.metric("millrace_worker_in_place_bytes_total")
			c.worker.kill()
			c.worker.start()
			c.worker.ready()
		},
	} {
		c.run("free", "/")
		var g sync.WaitGroup
		for _, point := range []string{c.point(), copying.args[0]} {
			g.Go(func() {
				for key, size := range s.objects {
					got, err := os.ReadFile(filepath.Join(point, key))
					if err != nil || !bytes.Equal(got, content(key, size)) {
						t.Errorf("%s below %s: wrong bytes (%d of %d), %v", key, point, len(got), size, err)
					}
				}
			})
		}
		trouble()
		g.Wait()
	}
	inPlace += c.worker.metric("millrace_worker_in_place_bytes_total")
	t.Logf("%d MiB were read in place", inPlace>>20)
	if inPlace == 0 {
		t.Error("nothing was read in place")
	}
}
