package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// cluster is a master, a worker and a mount, each a process of its own.
type cluster struct {
	cli

	dir                   string
	master, worker, mount *role
}

// role is one process of a cluster.
type role struct {
	proc

	c         *cluster
	name      string
	dataDir   string            // of its addresses.json
	args      []string          // beside addresses
	listens   map[string]string // flag -> name in addresses.json
	keepPorts bool              // after the first start
	chosen    map[string]string // flag -> address of the last start
}

// newCluster describes a cluster with directories of its own, and starts it
// with the store bound at /.
func newCluster(t *testing.T, s *store, cacheSize string, env ...string) *cluster {
	t.Helper()
	testenv.Require(t, testenv.Fuse, testenv.Root)
	dir := t.TempDir()
	c := &cluster{cli: cli{t: t, env: append(s.env(), env...)}, dir: dir}
	point := filepath.Join(dir, "mnt")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	c.master = &role{
		c: c, name: "master", dataDir: in("master"), keepPorts: true,
		args:    []string{"--data-dir", in("master")},
		listens: map[string]string{"--listen": "grpc", "--raft-listen": "raft", "--http-listen": "http"},
	}
	c.worker = &role{
		c: c, name: "worker", dataDir: in("worker"), keepPorts: true,
		args:    []string{"--data-dir", in("worker"), "--cache", in("cache") + ":" + cacheSize},
		listens: map[string]string{"--listen": "grpc", "--data-listen": "data", "--http-listen": "http"},
	}
	c.mount = &role{
		c: c, name: "mount", dataDir: filepath.Join(in("mount"), url.PathEscape(strings.TrimPrefix(point, "/"))),
		args:    []string{point, "--data-dir", in("mount")},
		listens: map[string]string{"--http-listen": "http"},
	}
	t.Cleanup(c.cleanup)
	c.master.start()
	c.master.ready()
	c.masters = c.master.chosen["--listen"]
	c.worker.start()
	c.worker.ready()
	c.run(append([]string{"ufs", "add", "/", s.URI("")}, s.options...)...)
	c.run("status", "--wait", patience.String())
	c.mount.start()
	c.mount.ready()
	return c
}

func (c *cluster) point() string { return c.mount.args[0] }

func (c *cluster) roles() []*role { return []*role{c.master, c.worker, c.mount} }

func (c *cluster) cleanup() {
	for _, r := range slices.Backward(c.roles()) {
		r.kill()
	}
	_ = unix.Unmount(c.point(), unix.MNT_DETACH) // what a killed mount left
	if !c.t.Failed() {
		return
	}
	for _, r := range c.roles() {
		if r.stderr != nil {
			c.t.Logf("stderr of the last %s:\n%s", r.name, r.stderr)
		}
	}
}

// start starts the process and does not wait for it.
func (r *role) start() {
	r.c.t.Helper()
	args := append([]string{binary, r.name}, r.args...)
	for flag := range r.listens {
		addr := "127.0.0.1:0"
		if r.keepPorts && r.chosen != nil {
			addr = r.chosen[flag]
		}
		args = append(args, flag, addr)
	}
	if err := os.Remove(filepath.Join(r.dataDir, "addresses.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.c.t.Fatal(err)
	}
	env := r.c.env
	if r.c.masters != "" {
		env = append(slices.Clone(env), "MILLRACE_MASTERS="+r.c.masters)
	}
	if err := r.launch(args, env, nil); err != nil {
		r.c.t.Fatal(err)
	}
}

// ready waits until the process says so.
func (r *role) ready() {
	r.c.t.Helper()
	eventually(r.c.t, r.name+" is ready", func() error {
		if !r.running() {
			return fmt.Errorf("%w; its stderr:\n%s", r.child.Ended(), r.stderr)
		}
		chosen := map[string]string{}
		for flag, name := range r.listens {
			addr, err := addressOf(r.dataDir, r.name, name)
			if err != nil {
				return err
			}
			chosen[flag] = addr
		}
		r.chosen = chosen
		return r.readyz(r.c.t.Context())
	})
}

func (r *role) readyz(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.chosen["--http-listen"]+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(trim(string(text)))
	}
	return err
}

// stop ends the process by SIGTERM and requires that it ends cleanly.
func (r *role) stop() {
	r.c.t.Helper()
	if err := r.terminate(); err != nil {
		r.c.t.Fatalf("%s %v", r.name, err)
	}
}

// readAll reads every object through the mount and compares it.
func (c *cluster) readAll(s *store) {
	c.t.Helper()
	for key, size := range s.objects {
		if err := compareFile(filepath.Join(c.point(), key), key, size); err != nil {
			c.t.Error(err)
		}
	}
}

// background is readers that go on, with every byte checked, until they are
// stopped.
type background struct {
	t     *testing.T
	group errgroup.Group
	quit  atomic.Bool
	reads atomic.Int64
}

// readInBackground starts readers. An error that allowed says true to ends one
// quietly; nil allows none.
func readInBackground(t *testing.T, root string, objects map[string]int64, allowed func(error) bool) *background {
	t.Helper()
	b, own := &background{t: t}, maps.Clone(objects)
	for range 4 {
		seed := rand.Uint64()
		b.group.Go(func() error {
			for ; !b.quit.Load(); seed++ {
				if err := randomReads(root, own, seed, 3); err != nil {
					b.quit.Store(true)
					if allowed != nil && allowed(err) {
						return nil
					}
					return err
				}
				b.reads.Add(3)
			}
			return nil
		})
	}
	t.Cleanup(func() { b.quit.Store(true) })
	return b
}

// more waits until that many more reads are done.
func (b *background) more(n int64) {
	b.t.Helper()
	want := b.reads.Load() + n
	eventually(b.t, "readers go on", func() error {
		if got := b.reads.Load(); got < want && !b.quit.Load() {
			return fmt.Errorf("%d reads of %d", got, want)
		}
		return nil
	})
}

// stop ends the readers and returns what they saw.
func (b *background) stop() {
	b.t.Helper()
	b.quit.Store(true)
	if err := b.group.Wait(); err != nil {
		b.t.Error(err)
	}
}
