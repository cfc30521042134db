package ufstest

import (
	"context"
	"sync/atomic"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// Fixture is an empty under-store and the ways to fill it. What Put stores is
// visible to the store at once.
type Fixture struct {
	// Open opens the store; observer may be nil. The suite closes it.
	Open func(t testing.TB, observer ufs.Observer) ufs.Store
	// OpenWith opens the store by its Opener, with these options besides its
	// own. The suite closes it.
	OpenWith func(t testing.TB, options map[string]string) ufs.Store
	// Put makes or replaces a file, with the directories above it. A replaced
	// file has another version, also when its length stays.
	Put func(t testing.TB, path string, data []byte)
	// PutMany makes n files. object is called from several goroutines.
	PutMany func(t testing.TB, n int, object func(i int) (path string, data []byte))
	// Delete removes a file.
	Delete func(t testing.TB, path string)
	// PageSize is how many names one answer of the server lists; 0 is 1,000.
	// The suite makes a directory of more than two answers.
	PageSize int
	// Takes reports whether the store can hold a file of that path; nil: any.
	Takes func(path string) bool
	// Mkdir makes an empty directory; nil when the store has none.
	Mkdir func(t testing.TB, path string)
}

// Run runs the suite. empty is called for each test and yields a fixture of
// the test's own.
func Run(t *testing.T, empty func(t *testing.T) Fixture) {
	t.Helper()
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, f Fixture)
	}{
		{"Stat", testStat},
		{"StatInvalid", testInvalidPaths},
		{"ListChildren", testListChildren},
		{"ListPrefixBoundaries", testListPrefixBoundaries},
		{"ListEmpty", testListEmpty},
		{"ListErrors", testListErrors},
		{"ListMany", testListMany},
		{"ListRecursive", testListRecursive},
		{"ListStops", testListStops},
		{"Tags", testTags},
		{"ReadRanges", testReadRanges},
		{"ReadInvalid", testReadInvalid},
		{"ReadReplaced", testReadReplaced},
		{"ReadWhileReplaced", testReadWhileReplaced},
		{"ReadDeleted", testReadDeleted},
		{"ReadConcurrently", testReadConcurrently},
		{"ReadClosedEarly", testReadClosedEarly},
		{"ZeroBytes", testZeroBytes},
		{"OddNames", testOddNames},
		{"Canceled", testCanceled},
		{"Observer", testObserver},
		{"Limits", testLimits},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, empty(t)) })
	}
}

// open opens the fixture's store and closes it at the end of the test.
func (f Fixture) open(t *testing.T) ufs.Store {
	t.Helper()
	s := f.Open(t, nil)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func (f Fixture) pageSize() int {
	if f.PageSize == 0 {
		return 1000
	}
	return f.PageSize
}

// stat describes a path that has to exist.
func stat(t *testing.T, s ufs.Store, path string) ufs.Info {
	t.Helper()
	info, err := s.Stat(t.Context(), path)
	if err != nil {
		t.Fatalf("Stat(%q): %v", path, err)
	}
	return info
}

// object names the present version of a file.
func object(t *testing.T, s ufs.Store, path string) ufs.Object {
	t.Helper()
	info := stat(t, s, path)
	if info.Type != ufs.File {
		t.Fatalf("Stat(%q): type %v, want a file", path, info.Type)
	}
	return ufs.Object{Path: path, Tag: info.Tag, Length: info.Size}
}

// list collects a listing that has to succeed.
func list(ctx context.Context, t *testing.T, s ufs.Store, dir string, opts ufs.ListOptions) []ufs.Info {
	t.Helper()
	var out []ufs.Info
	for info, err := range s.List(ctx, dir, opts) {
		if err != nil {
			t.Fatalf("List(%q, %+v): %v", dir, opts, err)
		}
		out = append(out, info)
	}
	return out
}

// paths returns the paths of a listing, directories with a slash at the end.
func paths(infos []ufs.Info) []string {
	out := make([]string, 0, len(infos))
	for _, info := range infos {
		p := info.Path
		if info.Type == ufs.Dir {
			p += "/"
		}
		out = append(out, p)
	}
	return out
}

// wantKind fails the test when err is not of a kind.
func wantKind(t *testing.T, what string, err error, want errs.Kind) {
	t.Helper()
	if errs.KindOf(err) != want || err == nil {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// content returns n bytes that are another for each seed and offset.
func content(seed, n int) []byte {
	out := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

// whole returns the extent of a whole object.
func whole(o ufs.Object) block.Extent { return block.Extent{Length: o.Length} }

// counter is an observer that counts.
type counter struct {
	get, head, list, other atomic.Int64
	fileBytes, listBytes   atomic.Int64
}

// Request counts one attempt.
func (c *counter) Request(op string) {
	switch op {
	case "get":
		c.get.Add(1)
	case "head":
		c.head.Add(1)
	case "list":
		c.list.Add(1)
	default:
		c.other.Add(1)
	}
}

// FileBytes counts bytes of files.
func (c *counter) FileBytes(n int64) { c.fileBytes.Add(n) }

// ListBytes counts bytes of listings.
func (c *counter) ListBytes(n int64) { c.listBytes.Add(n) }
