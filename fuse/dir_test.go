package fuse

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// openDir opens a directory; the end of the test closes it.
func (f *fsys) openDir(t *testing.T, node uint64) (fh uint64) {
	t.Helper()
	var od gofuse.OpenOut
	if st := f.OpenDir(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: node}}, &od); st != gofuse.OK {
		t.Fatal(st)
	}
	t.Cleanup(func() { f.ReleaseDir(&gofuse.ReleaseIn{Fh: od.Fh}) })
	return od.Fh
}

// readNames returns the names of an open directory from its start on, without
// the dots. meanwhile is called after the first answer.
func (f *fsys) readNames(t *testing.T, fh uint64, meanwhile func()) (names []string) {
	t.Helper()
	for off := uint64(0); ; {
		list := gofuse.NewDirEntryList(make([]byte, 4096), off)
		if st := f.ReadDirPlus(nil, &gofuse.ReadIn{Fh: fh, Offset: off}, list); st != gofuse.OK {
			t.Fatal(st)
		}
		entries, _, err := gofuse.ParseDirLookupEntries(list.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return names
		}
		for _, e := range entries {
			if off = e.Off; e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
		}
		if meanwhile != nil {
			meanwhile()
			meanwhile = nil
		}
	}
}

// TestKnownDirectoryAsksNoMaster lists a directory again, after what may have
// happened to it.
func TestKnownDirectoryAsksNoMaster(t *testing.T) {
	const files = 3 * dirChunk * dirAhead // more than is fed before anybody reads
	name := func(i int) string { return fmt.Sprintf("f%05d", i) }
	var all []string
	for i := range files {
		all = append(all, name(i))
	}
	for _, tc := range []struct {
		what      string
		before    func(f *fsys, c *fakeClient)
		meanwhile func(f *fsys, c *fakeClient)
		lists     int64
		want      []string
	}{
		{what: "nothing", want: all},
		{what: "its end of freshness", before: func(*fsys, *fakeClient) { time.Sleep(time.Hour) }, lists: 1, want: all},
		{what: "the end of what is believed of missing names", before: func(*fsys, *fakeClient) { time.Sleep(2 * absentFor) }, want: all},
		{what: "a new version", before: func(f *fsys, c *fakeClient) {
			c.put("/d/"+name(7), 99, "2")
			f.entries.put(c.answer(c.entries["/d/"+name(7)], true, false), time.Now(), nil)
		}, want: all},
		{what: "a name that came", before: func(f *fsys, c *fakeClient) {
			c.put("/d/"+name(files), 1, "1")
			f.entries.put(c.answer(c.entries["/d/"+name(files)], true, false), time.Now(), nil)
		}, lists: 1, want: append(slices.Clone(all), name(files))},
		{what: "a name that went", before: func(f *fsys, _ *fakeClient) {
			f.entries.putAbsent("/d/"+name(7), time.Now(), time.Now().Add(time.Hour))
		}, want: slices.Delete(slices.Clone(all), 7, 8)},
		{what: "a name that the cache lost", before: func(f *fsys, _ *fakeClient) { f.entries.drop("/d/" + name(7)) }, lists: 1, want: all},
		{what: "a name that the cache loses", meanwhile: func(f *fsys, _ *fakeClient) {
			f.entries.drop("/d/" + name(files-1))
		}, lists: 1, want: all},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newFake(time.Hour)
			for _, n := range all {
				c.put("/d/"+n, 1, "1")
			}
			f := newTestFsys(t, c)
			dir, _ := f.lookup(t, rootID, "d")
			if got := f.readNames(t, f.openDir(t, dir.NodeId), nil); !slices.Equal(got, all) {
				t.Fatalf("%d names at first", len(got))
			}
			before := c.lists.Load()
			if tc.before != nil {
				tc.before(f, c)
			}
			fh := f.openDir(t, dir.NodeId)
			got := f.readNames(t, fh, func() {
				if tc.meanwhile != nil {
					synctest.Wait()
					tc.meanwhile(f, c)
				}
			})
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s: %d names, want %d", tc.what, len(got), len(tc.want))
			}
			if n := c.lists.Load() - before; n != tc.lists {
				t.Errorf("%s: %d questions to the masters, want %d", tc.what, n, tc.lists)
			}
			// rewinddir(3) sees the directory as it is now.
			before = c.lists.Load()
			f.readNames(t, fh, nil)
			if n := c.lists.Load() - before; n != 1 {
				t.Errorf("%s: rewound, %d questions to the masters, want 1", tc.what, n)
			}
		})
	}
}
