package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// mountFS mounts a file system on a directory of the test's own, and returns
// the directory. Where that is not allowed, the test is skipped.
func mountFS(t *testing.T, fsType, options string) string {
	t.Helper()
	testenv.Require(t, testenv.Root)
	dir := filepath.Join(t.TempDir(), fsType)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fsType, dir, fsType, 0, options); err != nil {
		t.Skipf("NOT TESTED: mounting %s is not allowed here: %v", fsType, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// loopFS is mountFS with an ext4 in a file.
func loopFS(t *testing.T, size string) string {
	t.Helper()
	testenv.Require(t, testenv.Root)
	image, dir := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "ext4")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"truncate", "-s", size, image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("NOT TESTED: an ext4 on a loop device cannot be had here: %v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fillUp takes all the room of a file system and returns what gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4 << 10} {
		for p := make([]byte, size); err == nil; {
			_, err = f.Write(p)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// The cache's file system is smaller than the cache may be, then somebody
// else takes all that is left: reads go on, with right bytes, and the cache
// takes room again when there is some.
func TestCacheDirectoryFull(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]func(*testing.T) string{
		"tmpfs": func(t *testing.T) string { t.Helper(); return mountFS(t, "tmpfs", "size=24m,mode=700") },
		"ext4":  func(t *testing.T) string { t.Helper(); return loopFS(t, "32M") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			mixedObjects(t, s)
			s.fill(t, "more", 9<<20, 9<<20, 9<<20)
			disk := where(t)
			u := newUp(t, s, true)
			cache := filepath.Join(disk, "cache")
			u.args = []string{"--cache=" + cache + ":1GiB"}
			u.start()
			u.readAll(s)
			free := fillUp(t, disk)
			readConcurrently(t, u.mountPoint, s.objects, 20)
			u.readAll(s)
			free()
			u.run("free", "/")
			eventually(t, "the cache takes bytes again", func() error {
				u.readAll(s)
				if got := u.cached().CachedBytes; got < 4<<20 {
					return errors.New("it has almost nothing")
				}
				return nil
			})
			u.kill()
			free = fillUp(t, disk) // a start on a full disk
			u.start()
			readConcurrently(t, u.mountPoint, s.objects, 20)
			free()
			u.stop()
		})
	}
}

// A cache directory that cannot be written is refused, with what to do.
func TestCacheDirectoryReadOnly(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	disk := mountFS(t, "tmpfs", "size=16m,mode=700")
	cache := filepath.Join(disk, "cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{cache, filepath.Join(disk, "another")} {
		u := newUp(t, s, false)
		_, err := u.try("up", u.uri, "--data-dir", u.dataDir, "--random-ports", "--cache", dir+":8MiB")
		says(t, err, dir, "read-only file system", "mount it read-write")
	}
}

// dirState waits until status says that a cache directory is in this state.
func (u *up) dirState(dir, want string) {
	u.t.Helper()
	eventually(u.t, dir+" is "+want, func() error {
		for _, w := range u.status().Workers {
			for _, d := range w.Tiers {
				if d.Dir == dir && d.State == want {
					return nil
				}
			}
		}
		return fmt.Errorf("status says %+v", u.status().Workers)
	})
}

// A cache directory fails while it is used: nobody who reads sees an error,
// status and log say what is wrong, and it is used again when it is well.
func TestCacheDirectoryFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		alone bool // there is no other directory
		fail  func(t *testing.T, disk, cache string) (repair func())
	}{
		"turns read-only": {fail: func(t *testing.T, disk, _ string) func() {
			t.Helper()
			if err := errors.Join(unix.Mount(disk, disk, "", unix.MS_BIND, ""),
				unix.Mount("", disk, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
				t.Fatal(err)
			}
			return func() {
				// The probe may be in it just now.
				if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
					t.Fatal(err)
				}
			}
		}},
		"is removed": {alone: true, fail: func(t *testing.T, _, cache string) func() {
			t.Helper()
			if err := os.RemoveAll(cache); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Mkdir(cache, 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			mixedObjects(t, s)
			disk := mountFS(t, "tmpfs", "size=64m,mode=700")
			u := newUp(t, s, true)
			cache := filepath.Join(disk, "cache")
			config := filepath.Join(t.TempDir(), "millrace.toml")
			text := "[[worker.tier]]\ndir = \"" + cache + "\"\ncapacity = \"48MiB\"\nprobe_interval = \"100ms\"\n"
			if !tc.alone {
				text += "[[worker.tier]]\ndir = \"" + filepath.Join(t.TempDir(), "two") + "\"\nmedium = \"hdd\"\ncapacity = \"48MiB\"\n"
			}
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			u.args = []string{"--config", config}
			u.start()
			u.readAll(s)
			u.dirState(cache, "ok")
			cached := u.cached().CachedBytes

			var reads errgroup.Group
			stop := make(chan struct{})
			for seed := range uint64(4) {
				reads.Go(func() error {
					for {
						select {
						case <-stop:
							return nil
						default:
						}
						if err := randomReads(u.mountPoint, s.objects, seed, 5); err != nil {
							return err
						}
					}
				})
			}
			repair := tc.fail(t, disk, cache)
			more := filepath.Join("more", "0000.bin") // which has to be kept somewhere
			s.PutMany(t, 1, func(int) (string, []byte) { return more, content(more, 1<<20) })
			eventually(t, "a new object can be read", func() error {
				return compareFile(filepath.Join(u.mountPoint, more), more, 1<<20)
			})
			u.dirState(cache, "failed")
			u.readAll(s)
			if got := u.cached().CachedBytes; tc.alone == (got > 0) {
				t.Errorf("%d bytes are cached without the directory", got)
			}
			repair()
			u.dirState(cache, "ok")
			close(stop)
			if err := reads.Wait(); err != nil {
				t.Error(err)
			}
			u.readAll(s)
			if got := u.cached().CachedBytes; got < cached {
				t.Errorf("%d bytes are cached in the end, there were %d", got, cached)
			}
			log := u.stderr.String()
			if strings.Count(log, "cache directory is out of service") != 1 || !strings.Contains(log, cache) {
				t.Errorf("the log tells of it not once, or not of what:\n%s", log)
			}
			u.stop()
		})
	}
}

// Overlayfs, which containers have for their root: everything works, kill -9
// included.
func TestCacheDirectoryOnOverlayfs(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Root)
	// An upper layer needs a file system that is no overlay itself.
	layers := mountFS(t, "tmpfs", "size=64m,mode=700")
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	disk := mountFS(t, "overlay", "lowerdir="+layers+"/lower,upperdir="+layers+"/upper,workdir="+layers+"/work")
	s := newStore(t)
	mixedObjects(t, s)
	u := newUp(t, s, true)
	u.args = []string{"--cache=" + filepath.Join(disk, "cache") + ":8MiB"}
	u.start()
	readConcurrently(t, u.mountPoint, s.objects, 30)
	u.readAll(s)
	eventually(t, "something was evicted", func() error {
		if u.status().Counters.EvictedBytes == 0 {
			return errors.New("nothing was")
		}
		return nil
	})
	u.kill()
	u.start()
	if u.cached().CachedBytes == 0 {
		t.Error("nothing is cached after kill -9")
	}
	u.readAll(s)
	u.stop()
}

// A cache that would read itself through its own mount is refused, in `up` and
// in a worker beside a mount.
func TestCacheDirectoryBelowTheMount(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 10)
	u := newUp(t, s, true)
	for _, args := range [][]string{
		{"--data-dir", u.dataDir, "--cache", filepath.Join(u.mountPoint, "cache") + ":8MiB"},
		{"--data-dir", filepath.Join(u.mountPoint, "data")},
	} {
		_, err := u.try(append([]string{"up", u.uri, u.mountPoint, "--random-ports"}, args...)...)
		says(t, err, u.mountPoint, "below the mount point", "choose a directory elsewhere")
	}
	if names, err := os.ReadDir(u.mountPoint); err != nil || len(names) != 0 {
		t.Errorf("the refused starts left %v in the mount point, %v", names, err)
	}
	u.start()
	_, err := u.try("worker", "--data-dir", filepath.Join(t.TempDir(), "w"), "--cache", filepath.Join(u.mountPoint, "cache")+":8MiB",
		"--listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
	says(t, err, u.mountPoint, "below the mount of Millrace", "local disk")
}

// A cache directory with something else in it, of another cluster, or of a
// release to come is refused and left alone.
func TestCacheDirectoryOfOthers(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 100<<10)
	u := newUp(t, s, false)
	u.start()
	u.run("load", "/")
	u.stop()
	cache := filepath.Join(u.dataDir, "cache")
	refused := func(t *testing.T, dir string, parts ...string) {
		t.Helper()
		other := newUp(t, s, false)
		_, err := other.try("up", other.uri, "--data-dir", other.dataDir, "--random-ports", "--cache", dir+":8MiB")
		says(t, err, append(parts, dir)...)
	}
	t.Run("a foreign file", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, "thesis.txt", "name an empty directory")
	})
	t.Run("a newer format", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "format"), []byte(`{"format":99}`), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, "format 99", "use the release that wrote it")
	})
	t.Run("another cluster", func(t *testing.T) {
		if _, err := os.Stat(filepath.Join(cache, "format")); err != nil {
			t.Fatal(err)
		}
		refused(t, cache, "belongs to cluster", "name another directory")
	})
	u.start()
	if got := u.cached().CachedBytes; got != 100<<10 {
		t.Errorf("%d bytes are cached after the refused starts, want all", got)
	}
}

// A data directory of a release to come is refused and left alone.
func TestDataDirectoryOfANewerRelease(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	u := newUp(t, s, false)
	u.start()
	u.stop()
	name := filepath.Join(u.dataDir, "master", "state.db")
	db, err := bbolt.Open(name, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("state"), []byte(`{"format":99}`))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = u.try("up", u.uri, "--data-dir", u.dataDir, "--random-ports")
	says(t, err, name, "format 99", "use the release that wrote it")
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}

// A worker with the data directory of another cluster never joins, and says
// why and what to do.
func TestWorkerOfAnotherCluster(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 10)
	c := newCluster(t, s, "8MiB")
	c.worker.stop()
	name := filepath.Join(c.dir, "worker", "id")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var id map[string]any
	if err := json.Unmarshal(b, &id); err != nil {
		t.Fatal(err)
	}
	mine := id["cluster_id"]
	id["cluster_id"] = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	if b, err = json.Marshal(id); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	// Its cache directory belongs to the cluster, which is what it says first.
	c.worker.start()
	<-c.worker.child.Done()
	says(t, errors.New(c.worker.stderr.String()), "01ARZ3NDEKTSV4RRFFQ69G5FAV", mine.(string), "name another directory") //nolint:forcetypeassert // it is a string
	c.worker.args[len(c.worker.args)-1] = filepath.Join(c.dir, "cache2") + ":8MiB"
	c.worker.start()
	eventually(t, "it says why it does not join", func() error {
		for _, part := range []string{"belongs to cluster 01ARZ3NDEKTSV4RRFFQ69G5FAV", "data directory of its own"} {
			if !c.worker.running() || !contains(c.worker.stderr.String(), part) {
				return errors.New(c.worker.stderr.String())
			}
		}
		return nil
	})
}
