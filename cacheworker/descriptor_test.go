package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/ufs"
)

// descriptor asks for the descriptor of tk over the Unix socket.
func (r *rig) descriptor(tk *block.Ticket) (*os.File, error) {
	r.t.Helper()
	return r.descriptorWith(tk, blockio.DescriptorOptions{})
}

func (r *rig) descriptorWith(tk *block.Ticket, o blockio.DescriptorOptions) (*os.File, error) {
	r.t.Helper()
	h := r.open(r.unix, tk)
	defer r.unix.CloseHandle(h)
	fd, base, err := r.unix.Descriptor(r.t.Context(), h, o)
	if err == nil && base != 0 {
		r.t.Errorf("the bytes begin at %d", base)
	}
	return fd, err
}

// sameBytes checks that fd has the bytes that the store had as tk was made.
func (r *rig) sameBytes(fd *os.File, want []byte) {
	r.t.Helper()
	got := make([]byte, len(want))
	if _, err := fd.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		r.t.Errorf("the bytes under a descriptor are wrong: %v", err)
	}
}

// TestDescriptors follows a file from its first, cold read: a descriptor is
// there as soon as it is whole, and keeps the bytes of its version when the
// object is replaced, the file dropped, and the worker stopped and started.
func TestDescriptors(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 3*mib+5)
	if _, err := r.descriptor(tk); !errors.Is(err, errs.NotCached) {
		t.Fatalf("of a file that is not cached: %v", err)
	}
	r.fetched(0, 0)
	whole := tk.Geometry().Whole()
	want := bytes.Clone(r.store.part("f", whole))
	r.mustRead(tk, block.Extent{Length: mib})
	if _, err := r.descriptor(tk); !errors.Is(err, errs.NotCached) {
		t.Fatalf("of a file that is cached in part: %v", err)
	}
	r.mustRead(tk, whole)
	fd, err := r.descriptor(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	r.sameBytes(fd, want)
	if n := r.w.counters.handedOut.Load(); n == 0 {
		t.Error("it is not counted")
	}
	if _, _, err := r.conn.Descriptor(t.Context(), r.open(r.conn, tk), blockio.DescriptorOptions{}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("over TCP: %v", err)
	}

	next := r.store.put("f", "v2", 2*mib)
	r.mustRead(next, next.Geometry().Whole())
	r.sameBytes(fd, want)
	if _, _, err := r.tier.Drop(testMount, ""); err != nil {
		t.Fatal(err)
	}
	r.mustRead(next, next.Geometry().Whole())
	r.sameBytes(fd, want)
	r.stop()
	again := newRig(t, rigOptions{old: r})
	again.mustRead(next, next.Geometry().Whole())
	again.sameBytes(fd, want)
	if fd2, err := again.descriptor(next); err != nil {
		t.Error(err)
	} else {
		defer fd2.Close()
		again.sameBytes(fd2, again.store.part("f", next.Geometry().Whole()))
	}
}

// TestDescriptorsNotGiven lists what is read through the worker alone.
func TestDescriptorsNotGiven(t *testing.T) {
	r := newRig(t, rigOptions{})
	unsettled := r.store.put("young", "v1", mib)
	unsettled.Unsettled = true
	if _, err := r.descriptor(unsettled); !errors.Is(err, errs.Unsupported) {
		t.Errorf("of a version that may still change: %v", err)
	}
	empty := r.store.put("empty", "v1", 0)
	if _, err := r.descriptor(empty); !errors.Is(err, errs.Unsupported) {
		t.Errorf("of an empty file: %v", err)
	}
	damaged := r.store.put("damaged", "v1", mib)
	r.mustRead(damaged, damaged.Geometry().Whole())
	r.stop()
	damage(t, r.dir, r.store.data("damaged")[300_000:300_064])
	again := newRig(t, rigOptions{old: r})
	if _, err := again.descriptor(damaged); !errors.Is(err, errs.NotCached) {
		t.Errorf("of a damaged file: %v", err)
	}
	again.mustRead(damaged, damaged.Geometry().Whole()) // fetches the page anew
	fd, err := again.descriptor(damaged)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	again.sameBytes(fd, again.store.part("damaged", damaged.Geometry().Whole()))
}

// TestDescriptorOfAHugeFile costs little while little of it is cached: who
// reads it through the worker asks each second.
func TestDescriptorOfAHugeFile(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := &block.Ticket{MountID: testMount, Path: "huge", Tag: "v1", Length: 5 << 40, BlockSize: block.DefaultBlockSize}
	tk.FileID = tk.Derive()
	file, err := r.w.Open(t.Context(), tk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f, ok := file.(blockio.Descriptors)
	if !ok {
		t.Fatal("it has no descriptors")
	}
	if n := testing.AllocsPerRun(3, func() {
		if _, _, _, err := f.Descriptor(t.Context(), blockio.DescriptorOptions{}); !errors.Is(err, errs.NotCached) {
			t.Fatal(err)
		}
	}); n > 100 {
		t.Errorf("%v allocations for a question", n)
	}
}

// TestDescriptorUnderPressure fills the cache over while a descriptor is out:
// its bytes stay, and what cannot be kept is served all the same.
func TestDescriptorUnderPressure(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 16 * mib})
	tk := r.store.put("held", "v1", 6*mib)
	whole := tk.Geometry().Whole()
	r.mustRead(tk, whole)
	fd, err := r.descriptor(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	for range 2 {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			other := r.store.put(name, "v1", 4*mib)
			r.mustRead(other, other.Geometry().Whole())
		}
	}
	r.sameBytes(fd, r.store.part("held", whole))
}

// TestTouch tells the worker of uses; files that it does not know are nothing.
// Untouched, the newest would be the victim.
func TestTouch(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 10 * mib})
	a, b := r.store.put("a", "v1", 3*mib), r.store.put("b", "v1", 3*mib)
	r.mustRead(a, a.Geometry().Whole())
	r.mustRead(b, b.Geometry().Whole())
	touches := []blockio.Touch{{FileID: block.FileID{1, 2}, Count: 1 << 31}, {FileID: b.FileID, Count: 2}}
	if err := r.unix.Touch(t.Context(), touches); err != nil {
		t.Fatal(err)
	}
	c := r.store.put("c", "v1", 4*mib)
	r.mustRead(c, c.Geometry().Whole())
	r.store.fetched()
	r.mustRead(b, b.Geometry().Whole())
	r.fetched(0, 0)
	r.mustRead(a, a.Geometry().Whole())
	r.fetched(-1, 3*mib) // it went in the place of the one that was touched
}

// TestReadVStartsAllRanges holds the under-store: what all ranges of one
// request miss is asked for before any of it has come.
func TestReadVStartsAllRanges(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.ReadaheadMax = 0 }})
	tk := r.store.put("f", "v1", 32*mib)
	asked, release := r.store.hold(t, everything)
	h := r.open(r.conn, tk)
	var ranges []blockio.Range
	for i := range int64(8) {
		ranges = append(ranges, blockio.Range{Off: i * 4 * mib, Buf: make([]byte, 4096)})
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := r.conn.ReadV(ctx, h, ranges, blockio.ReadOptions{})
		done <- err
	}()
	eventually(t, "requests for all ranges", func() bool { return asked.Load() == 8*block.PageSize })
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, one := range ranges {
		if !bytes.Equal(one.Buf, r.store.part("f", block.Extent{Offset: one.Off, Length: 4096})) {
			t.Errorf("wrong bytes at %d", one.Off)
		}
	}
	r.fetched(8, 8*block.PageSize)
}

// TestRecalls checks that a worker recalls what it would not hand out any more:
// files that were dropped by name, and everything when an under-store mount is
// another one or its reads are to be checked.
func TestRecalls(t *testing.T) {
	r := newRig(t, rigOptions{})
	ask := func(since uint64) blockio.Recalls {
		t.Helper()
		v, err := r.unix.Recalls(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	tk, other := r.store.put("f", "v1", mib), r.store.put("other", "v1", mib)
	for _, tk := range []*block.Ticket{tk, other} {
		r.mustRead(tk, tk.Geometry().Whole())
		fd, err := r.descriptor(tk)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = fd.Close() })
	}
	first := ask(0)
	if v := ask(first.Position); v.Idle != blockio.AnyTime || v.Files != nil {
		t.Fatalf("recalled for nothing: %+v", v)
	}
	if _, _, err := r.tier.Drop(testMount, "f"); err != nil {
		t.Fatal(err)
	}
	v := ask(first.Position)
	if diff := cmp.Diff([]block.FileID{tk.FileID}, v.Files); diff != "" || v.Idle != blockio.AnyTime {
		t.Errorf("after a drop: %+v, %s", v, diff)
	}

	table := proto.CloneOf(r.w.mounts.table)
	apply := func() {
		t.Helper()
		table.Version++
		if err := r.w.mounts.apply(proto.CloneOf(table)); err != nil {
			t.Fatal(err)
		}
	}
	table.Mounts = append(table.Mounts, &api.UFSMount{Id: 99, Uri: table.GetMounts()[0].GetUri()})
	apply()
	if got := ask(v.Position); got.Idle != blockio.AnyTime {
		t.Errorf("a new mount: %+v", got)
	}
	options := table.GetMounts()[0].GetOptions()
	table.Mounts[0].Options = map[string]string{ufs.OptionVerify: ufs.VerifyAlways}
	apply()
	if v = ask(v.Position); v.Idle != 0 {
		t.Errorf("reads are to be checked: %+v", v)
	}
	table.Mounts[0].Options = options
	table.Mounts = table.GetMounts()[:1]
	apply()
	if v = ask(v.Position); v.Idle != 0 {
		t.Errorf("a mount is gone: %+v", v)
	}
	if _, err := r.conn.Recalls(t.Context(), 0); !errors.Is(err, errs.Unsupported) {
		t.Errorf("over TCP: %v", err)
	}
}

// TestFilledDescriptor checks that a small file is fetched for its descriptor,
// with one request for all who ask for it and read it.
func TestFilledDescriptor(t *testing.T) {
	for _, p := range []blockio.Priority{blockio.PriorityRead, blockio.PriorityLoad} {
		t.Run(p.String(), func(t *testing.T) {
			r := newRig(t, rigOptions{})
			tk := r.store.put("f", "v1", block.PageSize)
			fill := blockio.DescriptorOptions{Fill: true, Priority: p}
			var together sync.WaitGroup
			for range 4 {
				together.Go(func() {
					fd, err := r.descriptorWith(tk, fill)
					if err != nil {
						t.Error(err)
						return
					}
					defer fd.Close()
					r.sameBytes(fd, r.store.part("f", tk.Geometry().Whole()))
				})
				together.Go(func() { r.mustRead(tk, tk.Geometry().Whole()) })
			}
			together.Wait()
			r.fetched(1, tk.Length)
		})
	}
}

// TestNotFilledDescriptor lists what is not fetched for a descriptor.
func TestNotFilledDescriptor(t *testing.T) {
	for name, tc := range map[string]struct {
		length    int64
		unsettled bool
		options   map[string]string
		want      error
	}{
		"two pages": {length: block.PageSize + 1, want: errs.NotCached},
		"empty":     {want: errs.Unsupported},
		"unsettled": {length: 100, unsettled: true, want: errs.Unsupported},
		"verified":  {length: 100, options: map[string]string{ufs.OptionVerify: ufs.VerifyAlways}, want: errs.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{options: tc.options})
			tk := r.store.put("f", "v1", tc.length)
			tk.Unsettled = tc.unsettled
			if _, err := r.descriptorWith(tk, blockio.DescriptorOptions{Fill: true}); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			r.fetched(0, 0)
		})
	}
}

// TestSlowFill checks that the question for a descriptor does not wait long for
// an under-store, and that what it began is what the reads behind it get. An
// under-store that fails is the readers' to meet.
func TestSlowFill(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 1000)
	release := make(chan struct{})
	r.store.setBefore(func(ctx context.Context, _ ufs.Object, _ block.Extent) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	fill := blockio.DescriptorOptions{Fill: true}
	if _, err := r.descriptorWith(tk, fill); !errors.Is(err, errs.NotCached) {
		t.Errorf("of a file that does not come: %v", err)
	}
	close(release)
	r.mustRead(tk, tk.Geometry().Whole())
	r.fetched(1, tk.Length)

	r.store.setBefore(func(context.Context, ufs.Object, block.Extent) error { return errs.Stale })
	other := r.store.put("g", "v1", 1000)
	if _, err := r.descriptorWith(other, fill); !errors.Is(err, errs.NotCached) {
		t.Errorf("of a file that is gone: %v", err)
	}
}
