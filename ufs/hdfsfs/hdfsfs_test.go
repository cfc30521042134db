package hdfsfs

import (
	"fmt"
	"maps"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"millrace/internal/testenv"
	"millrace/ufs"
	"millrace/ufs/ufstest"
)

// shared is the HDFS of this package's tests, started by the first of them:
// a start takes some 20 s.
var shared struct {
	once sync.Once
	hdfs *testenv.HDFS
	err  error
	dirs atomic.Int64
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if shared.hdfs != nil {
			if err := shared.hdfs.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stop HDFS:", err)
				code = 1
			}
		}
		os.Exit(code)
	}))
}

// cluster is the shared HDFS, and a directory of the test's own in it.
type cluster struct {
	*testenv.HDFS
	client *hdfs.Client
	dir    string
}

const blockSize = 1 << 20

func newCluster(t *testing.T) *cluster {
	t.Helper()
	testenv.Require(t, testenv.HadoopFS)
	shared.once.Do(func() {
		shared.hdfs, shared.err = testenv.LaunchHDFS(t.Context(), 3,
			"dfs.ls.limit=100", "dfs.namenode.replication.min=1", "dfs.blockreport.intervalMsec=1000000",
			// What a test breaks must stay broken: nobody repairs it.
			"dfs.datanode.scan.period.hours=-1", "dfs.datanode.directoryscan.interval=-1")
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	c := &cluster{HDFS: shared.hdfs, dir: fmt.Sprintf("/test-%d/ünder store", shared.dirs.Add(1))}
	c.client = c.Client(t)
	if err := c.client.MkdirAll(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) put(t testing.TB, name string, data []byte, replication int) {
	t.Helper()
	if err := testenv.PutHDFS(c.client, path.Join(c.dir, name), data, blockSize, replication); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// open opens the test's directory. It is closed at the end of the test.
func (c *cluster) open(t *testing.T, observer ufs.Observer, options map[string]string) *Store {
	t.Helper()
	s, err := open(ufs.Config{URI: c.URL + c.dir, Options: c.options(options), Observer: observer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// options are those of every store: nothing of this host's own configuration.
func (c *cluster) options(more map[string]string) map[string]string {
	all := map[string]string{"user": "root", "datanode_timeout": "20s", "namenode_timeout": "20s"}
	maps.Copy(all, more)
	return all
}

func (c *cluster) fixture(t *testing.T, chunk int) ufstest.Fixture {
	t.Helper()
	return ufstest.Fixture{
		PageSize: 100,
		Takes:    func(name string) bool { return !strings.Contains(name, ":") },
		Open: func(t testing.TB, observer ufs.Observer) ufs.Store {
			t.Helper()
			s, err := open(ufs.Config{URI: c.URL + c.dir, Options: c.options(nil), Observer: observer})
			if err != nil {
				t.Fatal(err)
			}
			s.chunk = chunk
			// All is settled, lest a file becomes so between two looks.
			s.now = func() time.Time { return time.Now().Add(time.Hour) }
			return s
		},
		OpenWith: func(t testing.TB, options map[string]string) ufs.Store {
			t.Helper()
			s, err := Open(t.Context(), ufs.Config{URI: c.URL + c.dir, Options: c.options(options)})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Put: func(t testing.TB, name string, data []byte) { t.Helper(); c.put(t, name, data, 1) },
		PutMany: func(t testing.TB, n int, object func(int) (string, []byte)) {
			t.Helper()
			const writers = 8
			var g errgroup.Group
			for w := range writers {
				client := c.Client(t)
				g.Go(func() error {
					for i := w; i < n; i += writers {
						name, data := object(i)
						if err := testenv.PutHDFS(client, path.Join(c.dir, name), data, blockSize, 1); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
		},
		Delete: func(t testing.TB, name string) {
			t.Helper()
			if err := c.client.Remove(path.Join(c.dir, name)); err != nil {
				t.Fatal(err)
			}
		},
		Mkdir: func(t testing.TB, name string) {
			t.Helper()
			if err := c.client.Mkdir(path.Join(c.dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) {
	ufstest.Run(t, func(t *testing.T) ufstest.Fixture { t.Helper(); return newCluster(t).fixture(t, 1<<16) })
}
