package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// mixedObjects is some large and some small files, more than a small cache
// holds.
func mixedObjects(t *testing.T, s *store) {
	t.Helper()
	s.fill(t, "large", 9<<20+1, 5<<20-3)
	small := make([]int64, 30)
	for i := range small {
		small[i] = int64(1 + i*i*331%(200<<10))
	}
	s.fill(t, "small", small...)
}

// The worker is restarted under a live mount, asked to and not, at its old
// ports and at new ones. Readers see a pause and no error, and right bytes.
func TestWorkerRestartsUnderReaders(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mixedObjects(t, s)
	c := newCluster(t, s, "8MiB") // less than the data: fills and evictions go on
	r := readInBackground(t, c.point(), s.objects, nil)
	for _, keepPorts := range []bool{true, false} {
		for _, end := range []func(){c.worker.stop, c.worker.kill} {
			r.more(50)
			end()
			c.worker.keepPorts = keepPorts
			c.worker.start()
			c.worker.ready()
		}
	}
	r.more(50)
	r.stop()
	c.readAll(s)
}

// The master is restarted under a live mount. Readers do not notice: what is
// known is read without it, and what is not waits for it.
func TestMasterRestartsUnderReaders(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mixedObjects(t, s)
	c := newCluster(t, s, "1GiB")
	c.readAll(s) // all files are known
	r := readInBackground(t, c.point(), s.objects, nil)
	s.fill(t, "late", 1<<20) // and one is not; the readers have the map as it was
	for i, end := range []func(){c.master.stop, c.master.kill} {
		r.more(50)
		end()
		r.more(200)
		if i == 0 {
			var unknown errgroup.Group
			unknown.Go(func() error { return compareFile(filepath.Join(c.point(), "late/0000.bin"), "late/0000.bin", 1<<20) })
			c.master.start()
			c.master.ready()
			if err := unknown.Wait(); err != nil {
				t.Errorf("a file that was opened while the master was away: %v", err)
			}
			continue
		}
		c.master.start()
		c.master.ready()
	}
	r.more(50)
	r.stop()
	c.run("status", "--wait", patience.String())
	if got := c.cached(); got.CachedBytes != s.bytes() {
		t.Errorf("the restarted master knows of %d cached bytes, want %d", got.CachedBytes, s.bytes())
	}
}

// A mount that is told to stop cuts its readers off after a while, leaves no
// mount, and ends cleanly; one that is killed leaves a dead mount point, which
// the next one clears.
func TestMountStopsUnderReaders(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mixedObjects(t, s)
	c := newCluster(t, s, "1GiB", "MILLRACE_FUSE_UNMOUNT_TIMEOUT=500ms")

	r := readInBackground(t, c.point(), s.objects, isIOError)
	r.more(50)
	c.mount.stop()
	r.stop()
	if names, err := os.ReadDir(c.point()); err != nil || len(names) != 0 {
		t.Errorf("the mount point after SIGTERM: %v, %v; want it empty", names, err)
	}

	c.mount.start()
	c.mount.ready()
	r = readInBackground(t, c.point(), s.objects, isIOError)
	r.more(50)
	c.mount.kill()
	r.stop()
	if _, err := os.ReadDir(c.point()); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the mount point after kill -9: %v, want it dead", err)
	}
	c.mount.start()
	c.mount.ready()
	c.readAll(s)
	c.mount.stop()
}

// All roles are killed, in every order, and started again in every order;
// afterwards every byte is right, and what was cached is not fetched again.
func TestKillRolesInAnyOrder(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mixedObjects(t, s)
	c := newCluster(t, s, "1GiB")
	c.readAll(s)
	m, w, f := c.master, c.worker, c.mount
	s.proxy.Reset()
	for _, order := range [][]*role{{m, w, f}, {m, f, w}, {w, m, f}, {w, f, m}, {f, m, w}, {f, w, m}} {
		for _, r := range order {
			r.kill()
		}
		for _, r := range order {
			r.start()
		}
		for _, r := range order {
			r.ready()
		}
		c.readAll(s)
	}
	if got := s.proxy.Snapshot(); got.Get != 0 {
		t.Errorf("S3 was asked %d times for %d bytes of a full cache", got.Get, got.GetBytes)
	}
	for _, r := range []*role{f, w, m} {
		r.stop()
	}
}

// A worker that is told to stop answers the requests that it has: the reader
// gets its bytes, and S3 is asked for them once.
func TestWorkerDrains(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 4000) // one request of the kernel
	c := newCluster(t, s, "1GiB", "MILLRACE_CLIENT_READ_RETRY_FOR=10s")
	hold := make(chan struct{})
	s.proxy.Inject(func(_ *http.Request, op string) testenv.Fault {
		if op == testenv.OpGet {
			return testenv.Fault{Hold: hold}
		}
		return testenv.Fault{}
	})
	s.proxy.Reset()
	var reader, stop errgroup.Group
	reader.Go(func() error { return compareFile(filepath.Join(c.point(), "f/0000.bin"), "f/0000.bin", 4000) })
	eventually(t, "the request is at S3", func() error {
		if s.proxy.Snapshot().Get == 0 {
			return errors.New("no GET yet")
		}
		return nil
	})
	stop.Go(c.worker.terminate)
	eventually(t, "the worker stops", func() error {
		if err := c.worker.readyz(t.Context()); err == nil {
			return errors.New("it says that it is ready")
		}
		return nil
	})
	select {
	case <-c.worker.child.Done():
		t.Error("the worker ended with a request under way")
	case <-time.After(200 * time.Millisecond):
	}
	close(hold)
	if err := reader.Wait(); err != nil {
		t.Errorf("the reader of a worker that stops: %v", err)
	}
	if err := stop.Wait(); err != nil {
		t.Error(err)
	}
	if got := s.proxy.Snapshot(); got.Get != 1 {
		t.Errorf("S3 was asked %d times, want once: %v", got.Get, fmt.Sprint(s.proxy.Requests()))
	}
}
