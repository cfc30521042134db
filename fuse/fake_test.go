package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/client"
	"millrace/internal/errs"
)

// fakeClient is a namespace in memory whose files have made-up bytes.
type fakeClient struct {
	valid time.Duration // of answers

	stats, lists, opens atomic.Int64
	reads               atomic.Int64 // of File.ReadAtContext
	asks                atomic.Int64 // bytes that those asked for
	passed              atomic.Int64 // of opens
	asked               atomic.Int64 // for descriptors
	filled              atomic.Int64 // of asked: with the file fetched first
	descriptors         atomic.Int64 // that are open
	counted             atomic.Int64 // bytes read by descriptors
	placed              atomic.Int64 // reads that were left in filling
	inUse               atomic.Int64 // of them, those whose descriptor is not closed

	filling Descriptor // of a local file that is not whole; nil if there is none

	base, tail int64  // what else local files have before and behind
	localFlags int    // of their opens
	meanwhile  func() // called while a descriptor is asked for, if not nil

	making sync.Mutex // of local files

	mu       sync.Mutex
	entries  map[string]*client.Entry
	children map[string][]string // sorted names
	gone     map[block.FileID]bool
	failing  error // of every call
	stall    chan struct{}
	local    string // directory of the local files; empty: there are none
	noLocal  error  // why there is none now
	closed   bool   // no descriptor is given
	silent   bool   // nor an answer
	prepared []string
}

var born = time.Date(2020, 2, 29, 12, 0, 0, 0, time.UTC)

func newFake(valid time.Duration) *fakeClient {
	f := &fakeClient{
		valid: valid, entries: map[string]*client.Entry{}, children: map[string][]string{},
		gone: map[block.FileID]bool{},
	}
	f.entries["/"] = &client.Entry{Path: "/", Dir: true}
	return f
}

// put makes a version of a file, and the directories above it.
func (f *fakeClient) put(p string, size int64, tag string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link(p)
	t := &block.Ticket{MountID: 1, Path: p[1:], Tag: tag, Length: size, BlockSize: block.DefaultBlockSize}
	t.FileID = t.Derive()
	f.entries[p] = &client.Entry{
		Path: p, Size: size, MTime: born, Tag: tag, FileID: t.FileID, BlockSize: t.BlockSize, MountID: 1, Ticket: t,
	}
}

func (f *fakeClient) link(p string) {
	if f.entries[p] != nil {
		return
	}
	dir, name := path.Dir(p), path.Base(p)
	if f.entries[dir] == nil {
		f.link(dir)
		f.entries[dir] = &client.Entry{Path: dir, Dir: true}
	}
	i, _ := slices.BinarySearch(f.children[dir], name)
	f.children[dir] = slices.Insert(f.children[dir], i, name)
}

func (f *fakeClient) remove(p string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.entries, p)
	dir := path.Dir(p)
	if i, ok := slices.BinarySearch(f.children[dir], path.Base(p)); ok {
		f.children[dir] = slices.Delete(f.children[dir], i, i+1)
	}
}

func (f *fakeClient) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = err
}

// validFor has answers be valid for d from now on.
func (f *fakeClient) validFor(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.valid = d
}

func (f *fakeClient) lose(id block.FileID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone[id] = true
}

func (f *fakeClient) Stat(_ context.Context, p string, o client.StatOptions) (*client.Entry, error) {
	f.stats.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != nil {
		return nil, f.failing
	}
	e := f.entries[p]
	if e == nil {
		var until time.Time
		if f.valid > 0 {
			until = time.Now().Add(f.valid)
		}
		return nil, errs.E(errs.NotFound, "stat", p, client.NotFound(until))
	}
	return f.answer(e, o.WithTicket, o.WithCached), nil
}

func (f *fakeClient) answer(e *client.Entry, ticket, cached bool) *client.Entry {
	c := *e
	if f.valid > 0 {
		c.ValidUntil = time.Now().Add(f.valid)
	}
	if !ticket {
		c.Ticket = nil
	}
	if cached {
		c.CachedBytes = c.Size / 2
	}
	return &c
}

func (f *fakeClient) List(_ context.Context, p string, o client.ListOptions) iter.Seq2[*client.Entry, error] {
	f.lists.Add(1)
	return func(yield func(*client.Entry, error) bool) {
		f.mu.Lock()
		err, dir, names := f.failing, f.entries[p], slices.Clone(f.children[p])
		f.mu.Unlock()
		switch {
		case err != nil:
			yield(nil, err)
			return
		case dir == nil:
			yield(nil, errs.E(errs.NotFound, "list", p, nil))
			return
		}
		for _, name := range names {
			f.mu.Lock()
			e := f.entries[join(p, name)]
			if e != nil {
				e = f.answer(e, o.WithTickets, o.WithCached)
			}
			f.mu.Unlock()
			if e != nil && !yield(e, nil) {
				return
			}
		}
	}
}

func (f *fakeClient) Locate(ctx context.Context, p string) (*client.Entry, []client.BlockLocation, error) {
	e, err := f.Stat(ctx, p, client.StatOptions{})
	if err != nil {
		return nil, nil, err
	}
	return e, []client.BlockLocation{{Index: 0, Workers: []string{"w2", "w1"}}, {Index: 1, Workers: []string{"w1"}}}, nil
}

func (f *fakeClient) OpenEntry(_ context.Context, e *client.Entry) (File, error) {
	if e.Ticket == nil {
		return nil, errs.E(errs.Internal, "open", e.Path, nil)
	}
	return &fakeFile{f, e}, nil
}

func (f *fakeClient) PrepareDescriptors(entries []*client.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range entries {
		f.prepared = append(f.prepared, e.Path)
	}
}

func (f *fakeClient) CountOpen(passthrough bool) {
	f.opens.Add(1)
	if passthrough {
		f.passed.Add(1)
	}
}

type fakeFile struct {
	f *fakeClient
	e *client.Entry
}

func (f *fakeFile) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	f.f.reads.Add(1)
	f.f.asks.Add(int64(len(p)))
	f.f.mu.Lock()
	gone, stall := f.f.gone[f.e.FileID], f.f.stall
	f.f.mu.Unlock()
	if gone {
		return 0, errs.E(errs.Stale, "read", f.e.Path, nil)
	}
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return 0, errs.E(errs.Canceled, "read", f.e.Path, ctx.Err())
		}
	}
	if off >= f.e.Size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), f.e.Size-off)
	fill(p[:n], f.e.FileID, off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// ReadInPlace leaves the bytes in fakeClient.filling, if that is set.
func (f *fakeFile) ReadInPlace(ctx context.Context, p []byte, off int64) (int, Descriptor, error) {
	if d := f.f.filling; d != nil && f.e.Size > off {
		f.f.placed.Add(1)
		f.f.inUse.Add(1)
		n := min(int64(len(p)), f.e.Size-off)
		if n < int64(len(p)) {
			return int(n), d, io.EOF
		}
		return int(n), d, nil
	}
	n, err := f.ReadAtContext(ctx, p, off)
	return n, nil, err
}

// silence is how long a silent worker is waited for.
const silence = time.Second

// Descriptor gives a file in fakeClient.local, if that is set.
func (f *fakeFile) Descriptor(ctx context.Context, fill bool) (Descriptor, error) {
	f.f.asked.Add(1)
	if fill {
		f.f.filled.Add(1)
	}
	if f.f.meanwhile != nil {
		f.f.meanwhile()
	}
	f.f.mu.Lock()
	dir, why, closed, silent := f.f.local, f.f.noLocal, f.f.closed, f.f.silent
	f.f.mu.Unlock()
	if silent {
		bound, cancel := context.WithTimeout(ctx, silence)
		defer cancel()
		<-bound.Done()
		return nil, errs.Wrap(bound.Err(), "open", f.e.Path)
	}
	if closed {
		return nil, errs.E(errs.Unsupported, "open", f.e.Path, nil)
	}
	if dir == "" || why != nil {
		return nil, errs.E(errs.NotCached, "open", f.e.Path, why)
	}
	return f.f.localFile(dir, f.e)
}

func (f *fakeFile) Close() error { return nil }

// localFile opens the bytes of a version below dir, which are made at first.
func (f *fakeClient) localFile(dir string, e *client.Entry) (Descriptor, error) {
	f.making.Lock() // no one is to see a file that is written
	defer f.making.Unlock()
	name := filepath.Join(dir, e.FileID.String())
	file, err := os.OpenFile(name, f.localFlags, 0)
	if errors.Is(err, os.ErrNotExist) {
		b := make([]byte, f.base+e.Size+f.tail)
		fill(b[f.base:][:e.Size], e.FileID, 0)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return nil, err
		}
		file, err = os.OpenFile(name, f.localFlags, 0)
	}
	if err != nil {
		return nil, err
	}
	f.descriptors.Add(1)
	return &fakeDescriptor{file, f.base, e.Size, &f.descriptors, &f.counted}, nil
}

type fakeDescriptor struct {
	file         *os.File
	base, length int64
	open         *atomic.Int64
	counted      *atomic.Int64
}

func (d *fakeDescriptor) FD() int { return int(d.file.Fd()) }

func (d *fakeDescriptor) Extent() (base, length int64) { return d.base, d.length }

func (d *fakeDescriptor) IsFresh() bool { return true }

func (d *fakeDescriptor) Count(n int64) { d.counted.Add(n) }

func (d *fakeDescriptor) Close() error {
	d.open.Add(-1)
	return d.file.Close()
}

// fill makes up the bytes of a file at off.
func fill(p []byte, id block.FileID, off int64) {
	seed := binary.LittleEndian.Uint64(id[:])
	var word [8]byte
	for len(p) > 0 {
		x := seed ^ uint64(off/8)*0x9e3779b97f4a7c15
		x ^= x >> 29
		binary.LittleEndian.PutUint64(word[:], x*0xbf58476d1ce4e5b9)
		n := copy(p, word[off%8:])
		p, off = p[n:], off+int64(n)
	}
}

// bytesOf returns all bytes of the current version of a file.
func (f *fakeClient) bytesOf(p string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.entries[p]
	b := make([]byte, e.Size)
	fill(b, e.FileID, 0)
	return b
}

// sampleTree makes a few directories and one with many files.
func sampleTree(f *fakeClient, many int) {
	f.put("/top.txt", 11, "v1")
	f.put("/empty", 0, "v1")
	f.put("/a/b/c/deep", 300_000, "v1")
	f.put("/a/b/other", 1, "v1")
	f.put("/odd names/with space, comma", 5, "v1")
	f.put("/odd names/\xff\xfe not utf-8", 5, "v1")
	f.put("/odd names/"+strings.Repeat("x", 255), 5, "v1")
	for i := range many {
		f.put(fmt.Sprintf("/many/f%06d", i), int64(i%1000), "v1")
	}
}
