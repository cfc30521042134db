package cacheworker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// fakeStore is an under-store in memory that counts what it gives and fails
// as told.
type fakeStore struct {
	mu      sync.Mutex
	files   map[string]fakeFile
	gets    []block.Extent
	bytes   int64 // of files given
	readers int   // open
	opened  int
	closed  int
	// before is asked at each GET, in its goroutine; it may wait.
	before func(ctx context.Context, obj ufs.Object, e block.Extent) error
	// cut says after how many bytes of an answer it ends, and how.
	cut func(e block.Extent) (int64, error)
	// stall is asked before each piece of an answer, with the bytes given so
	// far; it may wait.
	stall func(e block.Extent, given int64)
	obs   ufs.Observer
}

type fakeFile struct {
	data   []byte // nil if it is sparse
	length int64
	tag    string
}

// part returns the bytes e of the file. Those of a sparse one differ from one
// 4 KiB to the next.
func (f fakeFile) part(e block.Extent) []byte {
	if f.data != nil {
		return f.data[e.Offset:e.End()]
	}
	p := make([]byte, e.Length)
	for done := int64(0); done < e.Length; {
		at := e.Offset + done
		n := min(4096-at%4096, e.Length-done)
		same := p[done : done+n]
		same[0] = byte(at>>12*31 + at>>20)
		for k := 1; k < len(same); k *= 2 {
			copy(same[k:], same[:k])
		}
		done += n
	}
	return p
}

func newFakeStore() *fakeStore { return &fakeStore{files: make(map[string]fakeFile)} }

// registry opens the store for URIs of the scheme "fake".
func (s *fakeStore) registry() ufs.Registry {
	return ufs.Registry{"fake": func(_ context.Context, cfg ufs.Config) (ufs.Store, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opened++
		s.obs = cfg.Observer
		return s, nil
	}}
}

// put makes a file of random bytes.
func (s *fakeStore) put(path, tag string, length int64) *block.Ticket {
	data := make([]byte, length)
	seed := [32]byte{}
	copy(seed[:], path+tag)
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = fakeFile{data: data, length: length, tag: tag}
	return ticketOf(path, tag, length)
}

// putSparse makes a file that takes no memory.
func (s *fakeStore) putSparse(path, tag string, length int64) *block.Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = fakeFile{length: length, tag: tag}
	return ticketOf(path, tag, length)
}

// part returns the bytes e of a file.
func (s *fakeStore) part(path string, e block.Extent) []byte {
	s.mu.Lock()
	f := s.files[path]
	s.mu.Unlock()
	return f.part(e)
}

// open returns how many answers are being read.
func (s *fakeStore) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readers
}

func (s *fakeStore) setStall(f func(e block.Extent, given int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stall = f
}

const testMount = 7

func ticketOf(path, tag string, length int64) *block.Ticket {
	t := &block.Ticket{MountID: testMount, Path: path, Tag: tag, Length: length, BlockSize: 1 << 20}
	t.FileID = t.Derive()
	return t
}

func (s *fakeStore) data(path string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[path].data
}

// fetched returns and resets the counts.
func (s *fakeStore) fetched() (gets int, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gets, n = len(s.gets), s.bytes
	s.gets, s.bytes = nil, 0
	return gets, n
}

func (s *fakeStore) setBefore(f func(ctx context.Context, obj ufs.Object, e block.Extent) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *fakeStore) setCut(f func(e block.Extent) (int64, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = f
}

func (s *fakeStore) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	s.mu.Lock()
	s.gets = append(s.gets, e)
	before, cut, obs := s.before, s.cut, s.obs
	s.mu.Unlock()
	obs.Request("get")
	if before != nil {
		if err := before(ctx, obj, e); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[obj.Path]
	switch {
	case !ok:
		return nil, errs.E(errs.NotFound, "read", obj.Path, nil)
	case f.tag != obj.Tag || f.length != obj.Length:
		return nil, errs.E(errs.Stale, "read", obj.Path, fmt.Errorf("the version is %s, not %s", f.tag, obj.Tag))
	case e.IsEmpty() || e.End() > obj.Length:
		return nil, errs.E(errs.Invalid, "read", obj.Path, fmt.Errorf("extent %v", e))
	}
	r := &fakeReader{s: s, ctx: ctx, e: e, stall: s.stall, r: bytes.NewReader(f.part(e)), left: e.Length}
	if cut != nil {
		if n, err := cut(e); err != nil {
			r.left, r.end = n, err
		}
	}
	s.readers++
	return r, nil
}

type fakeReader struct {
	s     *fakeStore
	ctx   context.Context
	e     block.Extent
	stall func(e block.Extent, given int64)
	r     *bytes.Reader
	left  int64
	end   error
}

func (r *fakeReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.left == 0 && r.end != nil {
		return 0, r.end
	}
	if r.stall != nil {
		r.stall(r.e, r.e.Length-int64(r.r.Len()))
		p = p[:min(int64(len(p)), block.PageSize)]
	}
	n, err := r.r.Read(p[:min(int64(len(p)), max(r.left, 1), 100_000)])
	r.left -= int64(n)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.bytes += int64(n)
	r.s.obs.FileBytes(int64(n))
	return n, err
}

func (r *fakeReader) Close() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.readers--
	return nil
}

func (s *fakeStore) Stat(context.Context, string) (ufs.Info, error) {
	return ufs.Info{}, errors.New("workers do not stat")
}

func (s *fakeStore) List(context.Context, string, ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) { yield(ufs.Info{}, errors.New("workers do not list")) }
}

func (s *fakeStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	return nil
}

// idle fails the test if a body was left open.
func (s *fakeStore) idle(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers != 0 {
		t.Errorf("%d bodies were left open", s.readers)
	}
}
