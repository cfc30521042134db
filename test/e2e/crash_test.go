package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// kill -9 while a load job and readers are under way, at several points; each
// start after it serves the right bytes, the job ends with exact sums, and
// what was recorded is not fetched again.
func TestKillAndStartAgain(t *testing.T) {
	s := newStore(t)
	s.fill(t, "large", 16<<20, 16<<20+7)
	small := make([]int64, 100)
	for i := range small {
		small[i] = int64(1000 + 1500*i)
	}
	s.fill(t, "small", small...)
	u := newUp(t, s, true)
	u.start()
	id := trim(u.run("load", "/", "--detach"))

	for _, share := range []int64{8, 4, 2} { // kill when 1/8, 1/4, 1/2 of the data is cached
		var readers errgroup.Group
		for i := range 2 {
			readers.Go(func() error {
				// The process dies under the reader, so its error is no failure;
				// wrong bytes are, and compareFile tells them apart by EOF-free text.
				err := randomReads(u.mountPoint, s.objects, uint64(share)+uint64(i), 1_000)
				if err != nil && !isIOError(err) {
					return err
				}
				return nil
			})
		}
		eventually(t, fmt.Sprintf("1/%d of the data cached", share), func() error {
			if got := u.cached().CachedBytes; got < s.bytes()/share {
				return fmt.Errorf("%d bytes of %d", got, s.bytes())
			}
			return nil
		})
		u.kill()
		if err := readers.Wait(); err != nil {
			t.Fatal(err)
		}
		u.start()
	}

	var j job
	eventually(t, "job "+id+" ends", func() error {
		u.query(&j, "jobs", "show", id)
		if j.State != "succeeded" {
			return fmt.Errorf("state %s %s", j.State, j.Error)
		}
		return nil
	})
	checkSums(t, j, int64(len(s.objects)), s.bytes())

	// All is cached now. After one more kill, nothing may be fetched.
	u.kill()
	u.start()
	dropCaches(t)
	s.proxy.Reset()
	u.readAll(s)
	if got := s.proxy.Snapshot(); got.Get != 0 {
		t.Errorf("after kill -9 of a full cache S3 was asked %d times for %d bytes", got.Get, got.GetBytes)
	}
}

// What was recorded before a kill -9 is counted exactly: after it, S3 sends
// the missing bytes and no others.
func TestKillKeepsWhatWasRecorded(t *testing.T) {
	s := newStore(t)
	s.fill(t, "f", 24<<20, 8<<20)
	u := newUp(t, s, true)
	u.start()
	var reader errgroup.Group
	reader.Go(func() error {
		err := compareFile(filepath.Join(u.mountPoint, "f/0000.bin"), "f/0000.bin", 24<<20)
		if err != nil && !isIOError(err) {
			return err
		}
		return nil
	})
	eventually(t, "something cached", func() error {
		if u.cached().CachedBytes < 1<<20 {
			return errors.New("less than 1 MiB")
		}
		return nil
	})
	u.kill()
	if err := reader.Wait(); err != nil {
		t.Fatal(err)
	}
	u.start()
	kept := u.cached().CachedBytes
	if kept < 1<<20 {
		t.Fatalf("%d bytes are cached after the kill, and 1 MiB was before", kept)
	}
	dropCaches(t)
	s.proxy.Reset()
	u.readAll(s)
	if got, want := s.proxy.Snapshot().GetBytes, s.bytes()-kept; got != want {
		t.Errorf("S3 sent %d bytes after the kill, want %d: all but the %d that were kept", got, want, kept)
	}
}

// The mount that a killed process leaves behind is dead; the next start
// clears it and mounts there.
func TestDeadMountPointIsCleared(t *testing.T) {
	s := newStore(t)
	s.fill(t, "f", 1000)
	u := newUp(t, s, true)
	u.start()
	u.kill()
	if _, err := os.ReadDir(u.mountPoint); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount point after kill -9: %v, want it dead", err)
	}
	u.start()
	u.readAll(s)
	u.stop()
	if entries, err := os.ReadDir(u.mountPoint); err != nil || len(entries) != 0 {
		t.Errorf("the mount point after a clean stop: %v, %v", entries, err)
	}
}
