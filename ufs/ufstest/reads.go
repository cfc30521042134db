package ufstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// read reads an extent that has to be there.
func read(t *testing.T, s ufs.Store, o ufs.Object, e block.Extent) []byte {
	t.Helper()
	got, err := tryRead(t.Context(), s, o, e)
	if err != nil {
		t.Fatalf("Read(%q, %v): %v", o.Path, e, err)
	}
	return got
}

// tryRead reads an extent to its end.
func tryRead(ctx context.Context, s ufs.Store, o ufs.Object, e block.Extent) ([]byte, error) {
	r, err := s.Read(ctx, o, e)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	return got, errors.Join(err, r.Close())
}

func testTags(t *testing.T, f Fixture) {
	f.Put(t, "d/a", content(1, 1000))
	f.Put(t, "d/b", content(1, 1000))
	s := f.open(t)
	for _, recursive := range []bool{false, true} {
		for _, info := range list(t.Context(), t, s, "d", ufs.ListOptions{Recursive: recursive}) {
			st := stat(t, s, info.Path)
			if st.Tag != info.Tag || st.Size != info.Size || !st.MTime.Equal(info.MTime) {
				t.Errorf("%s: list %+v, stat %+v", info.Path, info, st)
			}
			o := ufs.Object{Path: info.Path, Tag: info.Tag, Length: info.Size}
			if got := read(t, s, o, whole(o)); !bytes.Equal(got, content(1, 1000)) {
				t.Errorf("%s: other bytes", info.Path)
			}
		}
	}
	before := object(t, s, "d/a")
	if again := object(t, s, "d/a"); again != before {
		t.Errorf("the tag changes by itself: %+v, %+v", before, again)
	}
	f.Put(t, "d/a", content(2, 1000))
	if after := object(t, s, "d/a"); after.Tag == before.Tag {
		t.Errorf("another version has the same tag %q", after.Tag)
	}
}

func testReadRanges(t *testing.T, f Fixture) {
	const size = 3<<20 + 12345
	data := content(7, size)
	f.Put(t, "f", data)
	s := f.open(t)
	o := object(t, s, "f")
	extents := []block.Extent{
		{Length: size},
		{Length: 1},
		{Offset: size - 1, Length: 1},
		{Offset: 1, Length: size - 1},
		{Offset: 0, Length: size - 1},
		{Offset: block.PageSize, Length: block.PageSize},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		off := rng.Int64N(size)
		extents = append(extents, block.Extent{Offset: off, Length: 1 + rng.Int64N(size-off)})
	}
	for _, e := range extents {
		if got := read(t, s, o, e); !bytes.Equal(got, data[e.Offset:e.End()]) {
			t.Errorf("%v: other bytes", e)
		}
	}
	// Small and uneven reads of the reader itself.
	r, err := s.Read(t.Context(), o, block.Extent{Offset: 100, Length: 5000})
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, data[100:5100]); err != nil {
		t.Error(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func testReadInvalid(t *testing.T, f Fixture) {
	f.Put(t, "f", content(1, 100))
	s := f.open(t)
	o := object(t, s, "f")
	for _, e := range []block.Extent{{}, {Offset: 10}, {Offset: 100, Length: 1}, {Offset: 99, Length: 2}, {Offset: -1, Length: 5}, {Length: 101}} {
		_, err := tryRead(t.Context(), s, o, e)
		wantKind(t, fmt.Sprintf("Read %v", e), err, errs.Invalid)
	}
	// A ticket that lies about the length names no version.
	longer := o
	longer.Length += 10
	_, err := tryRead(t.Context(), s, longer, block.Extent{Offset: 50, Length: 60})
	wantKind(t, "Read beyond the true length", err, errs.Stale)
	_, err = tryRead(t.Context(), s, longer, block.Extent{Offset: 105, Length: 5})
	wantKind(t, "Read behind the true length", err, errs.Stale)
	shorter := o
	shorter.Length -= 10
	_, err = tryRead(t.Context(), s, shorter, block.Extent{Length: 90})
	wantKind(t, "Read with a shorter length", err, errs.Stale)
}

func testReadReplaced(t *testing.T, f Fixture) {
	for _, size := range []int{1000, 2000, 500} {
		f.Put(t, "f", content(1, 1000))
		s := f.Open(t, nil)
		old := object(t, s, "f")
		f.Put(t, "f", content(2, size))
		for _, e := range []block.Extent{whole(old), {Offset: 10, Length: 20}, {Offset: 990, Length: 10}} {
			_, err := tryRead(t.Context(), s, old, e)
			wantKind(t, fmt.Sprintf("Read %v of the old version, new size %d", e, size), err, errs.Stale)
		}
		now := object(t, s, "f")
		if got := read(t, s, now, whole(now)); !bytes.Equal(got, content(2, size)) {
			t.Error("other bytes")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// testReadWhileReplaced replaces the object under an open reader. What comes
// is the old version's, or an error; a prefix of it may have come before.
func testReadWhileReplaced(t *testing.T, f Fixture) {
	const size = 8 << 20
	f.Put(t, "f", content(1, size))
	s := f.open(t)
	o := object(t, s, "f")
	r, err := s.Read(t.Context(), o, whole(o))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, 1000)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	f.Put(t, "f", content(2, size))
	rest, err := io.ReadAll(r)
	got = append(got, rest...)
	if !bytes.Equal(got, content(1, size)[:len(got)]) {
		t.Error("a mix of versions")
	}
	if err == nil && len(got) != size {
		t.Errorf("short without an error: %d bytes", len(got))
	}
	if kind := errs.KindOf(err); err != nil && kind != errs.Stale && kind != errs.Unavailable {
		t.Errorf("the reader ended with %v", err)
	}
}

func testReadDeleted(t *testing.T, f Fixture) {
	f.Put(t, "d/f", content(1, 1000))
	f.Put(t, "d/g", content(1, 1000))
	s := f.open(t)
	o := object(t, s, "d/f")
	f.Delete(t, "d/f")
	_, err := tryRead(t.Context(), s, o, whole(o))
	wantKind(t, "Read", err, errs.NotFound)
	_, err = s.Stat(t.Context(), "d/f")
	wantKind(t, "Stat", err, errs.NotFound)
	checkRecursive(t, s, "", []string{"d/g"})
}

func testReadConcurrently(t *testing.T, f Fixture) {
	const size, readers, rounds = 1 << 20, 16, 10
	data := content(3, size)
	f.Put(t, "f", data)
	s := f.open(t)
	o := object(t, s, "f")
	g, ctx := errgroup.WithContext(t.Context())
	for i := range readers {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			for range rounds {
				off := rng.Int64N(size)
				e := block.Extent{Offset: off, Length: 1 + rng.Int64N(size-off)}
				got, err := tryRead(ctx, s, o, e)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, data[e.Offset:e.End()]) {
					return fmt.Errorf("%v: other bytes", e)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func testReadClosedEarly(t *testing.T, f Fixture) {
	f.Put(t, "f", content(1, 4<<20))
	s := f.open(t)
	o := object(t, s, "f")
	for range 5 {
		r, err := s.Read(t.Context(), o, whole(o))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("Read after Close: %d, %v", n, err)
		}
	}
}

func testZeroBytes(t *testing.T, f Fixture) {
	f.Put(t, "d/empty", nil)
	s := f.open(t)
	got := stat(t, s, "d/empty")
	if got.Type != ufs.File || got.Size != 0 || got.Tag == "" {
		t.Errorf("stat: %+v", got)
	}
	infos := list(t.Context(), t, s, "d", ufs.ListOptions{})
	if len(infos) != 1 || infos[0].Tag != got.Tag || infos[0].Size != 0 || infos[0].Type != ufs.File {
		t.Errorf("list: %+v", infos)
	}
	checkRecursive(t, s, "", []string{"d/empty"})
}

// testCanceled sees that each call ends with its context, and that nothing is
// left running.
func testCanceled(t *testing.T, f Fixture) {
	const size = 8 << 20
	f.Put(t, "f", content(1, size))
	f.PutMany(t, f.pageSize()*11/10, func(i int) (string, []byte) { return fmt.Sprintf("d/%04d", i), nil })
	before := goleak.IgnoreCurrent()
	s := f.Open(t, nil)
	o := object(t, s, "f")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Stat(ended, "f")
	wantKind(t, "Stat", err, errs.Canceled)
	_, err = tryRead(ended, s, o, whole(o))
	wantKind(t, "Read", err, errs.Canceled)
	err = nil
	for _, e := range s.List(ended, "", ufs.ListOptions{Recursive: true}) {
		err = e
	}
	wantKind(t, "List", err, errs.Canceled)

	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = s.Stat(late, "f")
	wantKind(t, "Stat after the deadline", err, errs.Timeout)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := s.Read(ctx, o, whole(o))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	got, err := io.ReadAll(r)
	wantKind(t, fmt.Sprintf("the reader, after %d more bytes", len(got)), err, errs.Canceled)
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err = nil
	for _, e := range s.List(ctx, "", ufs.ListOptions{Recursive: true}) {
		cancel()
		err = e
	}
	wantKind(t, "the list", err, errs.Canceled)

	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}

func testObserver(t *testing.T, f Fixture) {
	f.Put(t, "d/f", content(1, 100000))
	var c counter
	s := f.Open(t, &c)
	defer s.Close()
	o := object(t, s, "d/f")
	if c.head.Load() == 0 || c.get.Load() != 0 || c.list.Load() != 0 || c.fileBytes.Load() != 0 {
		t.Errorf("after a stat: %d head, %d get, %d list, %d bytes", c.head.Load(), c.get.Load(), c.list.Load(), c.fileBytes.Load())
	}
	read(t, s, o, whole(o))
	read(t, s, o, block.Extent{Offset: 10, Length: 90})
	if c.get.Load() != 2 || c.fileBytes.Load() != 100090 {
		t.Errorf("after two reads: %d get, %d bytes", c.get.Load(), c.fileBytes.Load())
	}
	list(t.Context(), t, s, "", ufs.ListOptions{})
	if c.list.Load() == 0 || c.other.Load() != 0 {
		t.Errorf("after a list: %d list, %d others", c.list.Load(), c.other.Load())
	}
}
