package fuse

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/internal/errs"
)

// asks returns how many questions to a master looks at some names of /many
// take, one after the other.
func (f *fsys) asks(t *testing.T, c *fakeClient, dir uint64, from, to int) int64 {
	t.Helper()
	before := c.stats.Load()
	for i := from; i < to; i++ {
		if _, st := f.lookup(t, dir, fmt.Sprintf("f%06d", i)); st != gofuse.OK {
			t.Fatal(i, st)
		}
		synctest.Wait() // a listing that began comes to its end
	}
	return c.stats.Load() - before
}

// TestSiblingsAreListed looks at names one by one: after a few the rest come
// with listings that grow with the questions.
func TestSiblingsAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFake(time.Hour)
		sampleTree(c, 3000)
		f := newTestFsys(t, c)
		many, st := f.lookup(t, rootID, "many")
		if st != gofuse.OK {
			t.Fatal(st)
		}
		dir := many.NodeId
		if n := f.asks(t, c, dir, 0, 2); n != 2 || c.lists.Load() != 0 {
			t.Errorf("%d questions, %d listings for two names", n, c.lists.Load())
		}
		if n := f.asks(t, c, dir, 2, 256); n != 1 || c.lists.Load() != 1 {
			t.Errorf("%d questions, %d listings for the 256 that are listed first", n, c.lists.Load())
		}
		if n := f.asks(t, c, dir, 256, 300); n != 13 || c.lists.Load() != 2 {
			t.Errorf("%d questions, %d listings until the directory is listed further", n, c.lists.Load())
		}
		if n := f.asks(t, c, dir, 300, 3000); n != 0 {
			t.Errorf("%d questions about names that were listed", n)
		}
		if _, st := f.lookup(t, dir, "none"); st != gofuse.OK || c.lists.Load() != 2 {
			t.Errorf("%v, %d listings", st, c.lists.Load())
		}
	})
}

// TestSiblingsInVain lists nothing twice that is of no use: answers that must
// not be kept, and a listing that fails.
func TestSiblingsInVain(t *testing.T) {
	for name, tc := range map[string]struct {
		valid time.Duration
		err   error
	}{
		"not to be kept": {0, nil},
		"failing":        {time.Hour, errs.E(errs.Unavailable, "", "", errors.New("no master"))},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFake(tc.valid)
				sampleTree(c, 300)
				f := newTestFsys(t, c)
				many, _ := f.lookup(t, rootID, "many")
				c.fail(tc.err)
				for i := range 290 {
					f.lookup(t, many.NodeId, fmt.Sprintf("f%06d", i))
					synctest.Wait()
				}
				if n := c.lists.Load(); n != 1 {
					t.Errorf("%d listings", n)
				}
			})
		})
	}
}

func TestSiblingsCount(t *testing.T) {
	s, now := newSiblings(), time.Now()
	look := func(dir string, after time.Duration, want int) {
		t.Helper()
		if got := s.look(dir, now.Add(after)); got != want {
			t.Fatalf("%d names of %s are listed, want %d", got, dir, want)
		}
	}
	// Questions that lie far apart are not counted together.
	for range 3 {
		look("/slow", 0, 0)
		look("/slow", 0, 0)
		now = now.Add(looksWindow)
	}
	// One listing of a directory at a time, and few in all.
	for i := range maxAhead {
		dir := fmt.Sprint("/", i)
		look(dir, 0, 0)
		look(dir, 0, 0)
		look(dir, 0, 256)
	}
	for range 20 {
		look("/0", 2*looksWindow, 0)
	}
	look("/more", 0, 0)
	look("/more", 0, 0)
	look("/more", 0, 0)
	s.listed("/0", false)
	look("/more", 0, 256)
	s.listed("/1", false)
	look("/0", 0, 4096)
}
