package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/vfs"
	"millrace/tier"
	"millrace/ufs"
)

// TestVerifyPolicy flips a bit in a backing file after its page was verified.
// By default that is served within the same run; with verify=always it is
// found, counted, fetched again, and never served.
func TestVerifyPolicy(t *testing.T) {
	const length, at = 3*mib + 1000, mib + 5000
	for name, options := range map[string]map[string]string{
		"by default": nil, "always": {ufs.OptionVerify: ufs.VerifyAlways},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{options: options})
			tk := r.store.put("f", "v1", length)
			r.mustRead(tk, tk.Geometry().Whole())
			r.mustRead(tk, tk.Geometry().Whole())
			damage(t, r.dir, r.store.data("f")[at:at+64])
			r.store.fetched()

			// A whole page of the data plane has its checksum with it, by
			// which the client finds the damage itself: read less than one.
			h := r.open(r.conn, tk)
			defer r.conn.CloseHandle(h)
			e := block.Extent{Offset: at - 100, Length: 1000}
			p := make([]byte, e.Length)
			if _, err := r.conn.ReadAt(t.Context(), h, p, e.Offset, blockio.ReadOptions{}); err != nil {
				t.Fatal(err)
			}
			right := bytes.Equal(p, r.store.part("f", e))
			gets, n := r.store.fetched()
			found := r.tier.Stats().ChecksumErrors
			if options == nil {
				if right || found != 0 || gets != 0 {
					t.Errorf("right bytes: %v, errors counted: %d, fetches: %d", right, found, gets)
				}
				return
			}
			if !right || found != 1 || gets != 1 || n != block.PageSize {
				t.Errorf("right bytes: %v, errors counted: %d, fetches: %d of %d bytes", right, found, gets, n)
			}
			r.mustRead(tk, tk.Geometry().Whole())
			r.fetched(0, 0)
			if fd, err := r.descriptor(tk); errs.KindOf(err) != errs.Unsupported {
				t.Errorf("a descriptor, by which nobody checks: %v, %v", fd, err)
			}
		})
	}
}

// TestVerifyPolicyChanges sets verify=always while a file is open: from then
// on its reads are checked, and its descriptor is not given any more.
func TestVerifyPolicyChanges(t *testing.T) {
	const length, at = 3*mib + 1000, mib + 5000
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", length)
	r.mustRead(tk, tk.Geometry().Whole())
	h := r.open(r.unix, tk)
	defer r.unix.CloseHandle(h)
	fd, _, err := r.unix.Descriptor(t.Context(), h, blockio.DescriptorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = fd.Close()
	mounts := testMounts(2)
	mounts.Mounts[0].Options = map[string]string{ufs.OptionVerify: ufs.VerifyAlways}
	if err := r.w.mounts.apply(mounts); err != nil {
		t.Fatal(err)
	}
	if fd, _, err := r.unix.Descriptor(t.Context(), h, blockio.DescriptorOptions{}); errs.KindOf(err) != errs.Unsupported {
		t.Errorf("a descriptor, by which nobody checks: %v, %v", fd, err)
	}
	damage(t, r.dir, r.store.data("f")[at:at+64])
	e := block.Extent{Offset: at - 100, Length: 1000}
	p := make([]byte, e.Length)
	if _, err := r.unix.ReadAt(t.Context(), h, p, e.Offset, blockio.ReadOptions{}); err != nil || !bytes.Equal(p, r.store.part("f", e)) {
		t.Errorf("damaged bytes were served, %v", err)
	}
}

// TestRefetch brings single pages of the very version, and says of what it
// cannot bring whether it is gone or nobody answers.
func TestRefetch(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 2*mib+77)
	f := tier.FileOf(tk)
	for _, page := range []int64{0, 3, tk.Geometry().Pages() - 1} {
		b, err := r.w.Refetch(t.Context(), f, page)
		if err != nil || !bytes.Equal(b, r.store.part("f", tk.Geometry().Page(page))) {
			t.Errorf("page %d: %d bytes, %v", page, len(b), err)
		}
	}
	kind := func(what string, f tier.File, want errs.Kind) {
		t.Helper()
		if _, err := r.w.Refetch(t.Context(), f, 1); errs.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	r.store.setCut(func(block.Extent) (int64, error) { return 1000, io.ErrUnexpectedEOF })
	kind("a cut answer", f, errs.Unavailable)
	r.store.setCut(nil)
	r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error { return errs.E(errs.Throttled, "", "", nil) })
	kind("a busy store", f, errs.Throttled)
	r.store.setBefore(nil)
	r.store.put("f", "v2", 2*mib+77)
	kind("a new version", f, errs.Stale)
	unknown := f
	unknown.MountID = 99
	kind("a removed mount", unknown, errs.NotFound)
	r.stop()
	kind("a stopped worker", f, errs.Unavailable)
}

// TestRefetchComesLast: what repairs a page waits for all that others want,
// and can be given up.
func TestRefetchComesLast(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.FetchConcurrency = 1 }})
	tk, other := r.store.put("f", "v1", 1000), r.store.put("other", "v1", 1000)
	held, arrived := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	r.store.setBefore(func(_ context.Context, obj ufs.Object, _ block.Extent) error {
		mu.Lock()
		order = append(order, obj.Path)
		first := len(order) == 1
		mu.Unlock()
		if first {
			close(arrived)
			<-held
		}
		return nil
	})
	third := r.store.put("third", "v1", 1000)
	share := r.w.mounts.mounts[testMount].share
	waiting := func(n int) {
		t.Helper()
		eventually(t, "as many wait as should", func() bool {
			r.w.fetcher.inflight.mu.Lock()
			defer r.w.fetcher.inflight.mu.Unlock()
			return share.waiting == n
		})
	}
	var g sync.WaitGroup
	g.Go(func() {
		if err := r.tryRead(other); err != nil {
			t.Error(err)
		}
	})
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	g.Go(func() {
		if _, err := r.w.Refetch(ctx, tier.FileOf(tk), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("a refetch that was given up: %v", err)
		}
	})
	waiting(1)
	cancel()
	waiting(0)
	g.Go(func() {
		if _, err := r.w.Refetch(t.Context(), tier.FileOf(tk), 0); err != nil {
			t.Error(err)
		}
	})
	waiting(1)
	g.Go(func() {
		if _, _, err := r.w.loader.Load(t.Context(), third, third.Geometry().Whole()); err != nil {
			t.Error(err)
		}
	})
	waiting(2)
	close(held)
	g.Wait()
	if len(order) != 3 || order[1] != "third" || order[2] != "f" {
		t.Errorf("the order was %v", order)
	}
}

// tryRead reads all of a file.
func (r *rig) tryRead(tk *block.Ticket) error {
	h, err := r.conn.Open(r.t.Context(), tk)
	if err != nil {
		return err
	}
	defer r.conn.CloseHandle(h)
	return r.read(r.conn, tk, h, tk.Geometry().Whole())
}

// TestReadsOverADyingDisk: every operation of the disk fails from some moment
// on. Reads go on, from what is kept and then from the under-store alone.
func TestReadsOverADyingDisk(t *testing.T) {
	disk := vfs.Faulty(vfs.OS())
	r := newRig(t, rigOptions{disk: disk})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.tier.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); r.stop() })
	tickets := make([]*block.Ticket, 12)
	for i := range tickets {
		tickets[i] = r.store.put(string(rune('a'+i)), "v1", mib+int64(i))
		r.mustRead(tickets[i], tickets[i].Geometry().Whole())
	}
	rule, err := vfs.ParseRule("any path~" + r.dir + " err=EIO")
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	died := make(chan struct{})
	for i := range 4 {
		readers.Go(func() {
			for round := range 2 {
				for _, tk := range tickets[i*3 : i*3+3] {
					if err := r.tryRead(tk); err != nil {
						t.Error(err)
					}
				}
				if round == 0 {
					<-died
				}
			}
		})
	}
	disk.Set(rule)
	close(died)
	readers.Wait()
	state := func() string { return r.tier.Status()[0].State }
	eventually(t, "the directory is out of service", func() bool {
		return state() == tier.StateFailed && r.tier.Stats().CachedBytes == 0
	})
	for _, tk := range tickets {
		r.mustRead(tk, tk.Geometry().Whole())
	}
}

// TestUnopenableFileIsReadElsewhere: the disk does not open a backing file.
func TestUnopenableFileIsReadElsewhere(t *testing.T) {
	first := newRig(t, rigOptions{})
	tk := first.store.put("f", "v1", 3*mib)
	first.mustRead(tk, tk.Geometry().Whole())
	first.stop()
	disk := vfs.Faulty(vfs.OS())
	r := newRig(t, rigOptions{old: first, disk: disk})
	rule, err := vfs.ParseRule("open path~/data/ err=EIO")
	if err != nil {
		t.Fatal(err)
	}
	disk.Set(rule)
	r.store.fetched()
	r.mustRead(tk, tk.Geometry().Whole())
	if disk.Fired() == 0 {
		t.Error("the fault did not fire")
	}
	disk.Set()
	r.store.fetched()
	r.mustRead(tk, tk.Geometry().Whole())
}
