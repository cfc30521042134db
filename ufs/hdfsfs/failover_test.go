package hdfsfs

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/block"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// TestFailOver: two NameNodes share a journal. While one takes over from the
// other, asked to and after kill -9, whoever looks and reads sees no error; who
// the NameNodes are is in Hadoop's own configuration.
func TestFailOver(t *testing.T) {
	h := testenv.StartHDFSPair(t, 1)
	want := random(1, 3*blockSize)
	if err := testenv.PutHDFS(h.Client(t), "/d/f", want, blockSize, 1); err != nil {
		t.Fatal(err)
	}
	s, err := open(ufs.Config{URI: "hdfs://ha/d", Options: map[string]string{
		"user": "root", "conf_dir": h.ConfDir(), "datanode_timeout": "20s", "namenode_timeout": "20s",
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.nameNode.budget = 3 * time.Minute // a transition is two starts of Java, on a busy machine
	var done atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				info, err := s.Stat(t.Context(), "f")
				if err != nil {
					t.Errorf("stat: %v", err)
					return
				}
				o := ufs.Object{Path: "f", Tag: info.Tag, Length: info.Size}
				s.locations.drop(o) // where the blocks are is asked anew
				got, err := readAll(t.Context(), s, o, block.Extent{Length: o.Length})
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v", len(got), err)
					return
				}
				done.Add(1)
			}
		})
	}
	// goOn returns when both have begun and ended something since.
	goOn := func() {
		for seen := done.Load(); done.Load() < seen+4 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	goOn()
	if err := h.Activate(t.Context(), "nn2"); err != nil {
		t.Error(err)
	}
	goOn()
	if err := h.Kill(t.Context(), "nn2"); err != nil {
		t.Error(err)
	}
	if err := h.Activate(t.Context(), "nn"); err != nil {
		t.Error(err)
	}
	goOn()
	close(stop)
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
