package loadjob

import (
	"slices"
	"strings"
	"testing"
)

// FuzzCursor: from any place of its paths, a plan goes on and names no file twice,
// and a tracker that takes the place up commits it again.
func FuzzCursor(f *testing.F) {
	f.Add("/a /b", 0, "/a/1")
	f.Add("/ /a", 1, "")
	f.Add("/b /a /b", -1, "/c")
	f.Add("", 7, "/")
	src := listing{}
	for _, path := range []string{"/a/1", "/a/2", "/b", "/c/x/y"} {
		src.files = append(src.files, FileEntry{Path: path, Ticket: ticket(path, 10)})
	}
	f.Fuzz(func(t *testing.T, paths string, index int, after string) {
		job := Job{Paths: strings.Fields(paths), Cursor: Cursor{PathIndex: index, After: after}}
		var seen []string
		err := Plan(t.Context(), job, src, func(i *Item) error {
			if slices.Contains(seen, i.Path()) {
				t.Fatalf("%s comes twice", i.Path())
			}
			seen = append(seen, i.Path())
			return nil
		})
		if fits := index >= 0 && index <= len(job.Paths); fits != (err == nil) {
			t.Fatalf("cursor at path %d of %d: %v", index, len(job.Paths), err)
		}
		if got := NewTracker(job, Config{}).Snapshot().Cursor; got != job.Cursor {
			t.Fatalf("the cursor %+v is committed as %+v", job.Cursor, got)
		}
	})
}
