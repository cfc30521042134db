package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/client"
	"millrace/internal/errs"
)

// dialSDK makes a client of the cluster in this process, which is another than
// the worker's.
func (c *cluster) dialSDK(shortCircuit bool) *client.Client {
	c.t.Helper()
	cfg := client.DefaultConfig()
	cfg.Masters, cfg.ShortCircuit = []string{c.masters}, shortCircuit
	sdk, err := client.Dial(c.t.Context(), cfg, slog.New(slog.NewTextHandler(c.t.Output(), nil)), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := sdk.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return sdk
}

func readWhole(ctx context.Context, c *client.Client, key string) ([]byte, error) {
	f, err := c.Open(ctx, "/"+key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
}

// The worker evicts, drops, is killed and restarted, and the object is
// replaced, all while another process holds descriptors of a cached file:
// their bytes stay those of the version that was opened.
func TestDescriptorsOutliveTheirCause(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "held", 6<<20+17)
	s.fill(t, "others", 5<<20, 6<<20, 7<<20, 4<<20)
	c := newCluster(t, s, "24MiB")
	sdk, copying := c.dialSDK(true), c.dialSDK(false)
	const key = "held/0000.bin"
	first := content(key, s.objects[key])

	f, err := sdk.Open(t.Context(), "/"+key)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same := func(when string) {
		t.Helper()
		got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
		if err != nil || !bytes.Equal(got, first) {
			t.Fatalf("%s: wrong bytes (%d of %d), %v", when, len(got), len(first), err)
		}
	}
	same("cold")
	var d *client.Descriptor
	eventually(t, "a descriptor of a file that is cached whole", func() error {
		d, err = f.Descriptor(t.Context())
		return err
	})
	defer d.Close()
	held := func(when string) {
		t.Helper()
		got := make([]byte, d.Length)
		if _, err := d.File.ReadAt(got, d.Base); err != nil || !bytes.Equal(got, first) {
			t.Fatalf("%s: wrong bytes under a descriptor, %v", when, err)
		}
	}
	pressure := func(when string) {
		t.Helper()
		for range 3 {
			for other, size := range s.objects {
				if other == key {
					continue
				}
				got, err := readWhole(t.Context(), copying, other)
				if err != nil || !bytes.Equal(got, content(other, size)) {
					t.Fatalf("%s: wrong bytes of %s, %v", when, other, err)
				}
			}
		}
		held(when)
	}
	held("at once")
	pressure("after evictions")
	eventually(t, "evictions, without which the test shows nothing", func() error {
		if c.status().Counters.EvictedBytes == 0 {
			return errors.New("none yet")
		}
		return nil
	})

	c.worker.kill()
	held("without a worker")
	same("without a worker")
	c.worker.start()
	c.worker.ready()
	pressure("after the worker was killed and has evicted again")

	s.Put(t, key, content("another", s.objects[key]))
	pressure("after the object was replaced")
	c.run("free", "/")
	pressure("after the cache was freed")
	same("at last")

	if err := errors.Join(d.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Descriptor(t.Context()); !errors.Is(err, errs.Invalid) {
		t.Errorf("a descriptor of a closed file: %v", err)
	}
	eventually(t, "SDK reads are counted", func() error {
		if n := c.status().Counters.BytesServed; n < 2*int64(len(first)) {
			return fmt.Errorf("%d bytes were served", n)
		}
		return nil
	})
}

// A process that read many small files keeps their descriptors, as long
// as nobody needs their room: when others do, it gives them back.
func TestKeptDescriptorsGiveWay(t *testing.T) {
	t.Parallel()
	const files = 1000
	s := newStore(t)
	s.fill(t, "small", slices.Repeat([]int64{8 << 10}, files)...)
	s.fill(t, "large", slices.Repeat([]int64{1 << 20}, 40)...)
	c := newCluster(t, s, "24MiB")
	sdk, copying := c.dialSDK(true), c.dialSDK(false)
	read := func(sdk *client.Client, prefix string) {
		t.Helper()
		for key, size := range s.objects {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			if got, err := readWhole(t.Context(), sdk, key); err != nil || !bytes.Equal(got, content(key, size)) {
				t.Fatalf("wrong bytes of %s, %v", key, err)
			}
		}
	}
	read(copying, "small/")
	for key := range s.objects {
		if !strings.HasPrefix(key, "small/") {
			continue
		}
		f, err := sdk.Open(t.Context(), "/"+key)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "a descriptor", func() error {
			d, err := f.Descriptor(t.Context())
			if err == nil {
				err = d.Close()
			}
			return err
		})
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.openHere(); n < files/2 {
		t.Fatalf("%d descriptors are left of %d", n, files)
	}
	eventually(t, "the room of the small files is given to others", func() error {
		read(copying, "large/")
		if u := c.cachedBelow("/small"); u.CachedBytes > u.Bytes/2 {
			return fmt.Errorf("%d bytes of them are cached, %d are open here", u.CachedBytes, c.openHere())
		}
		return nil
	})
	eventually(t, "descriptors are given back", func() error {
		if n := c.openHere(); n > files/2 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// openHere counts the files of the worker's cache that this process has open.
func (c *cluster) openHere() (n int) {
	c.t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, fd := range all {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, filepath.Join(c.dir, "cache")) {
			n++
		}
	}
	return n
}
