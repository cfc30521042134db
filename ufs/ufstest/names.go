package ufstest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/errs"
	"millrace/ufs"
)

func testStat(t *testing.T, f Fixture) {
	f.Put(t, "dir/sub/file", content(1, 1234))
	s := f.open(t)

	file := stat(t, s, "dir/sub/file")
	if file.Path != "dir/sub/file" || file.Type != ufs.File || file.Size != 1234 || file.Tag == "" || file.MTime.IsZero() {
		t.Errorf("file: %+v", file)
	}
	for _, path := range []string{"", "dir", "dir/sub"} {
		got := stat(t, s, path)
		if got.Path != path || got.Type != ufs.Dir || got.Size != 0 || got.Tag != "" {
			t.Errorf("directory %q: %+v", path, got)
		}
	}
	for _, path := range []string{"none", "di", "dir/none", "dir/su", "dir/sub/file/below", "none/none", "dir/sub/file2"} {
		_, err := s.Stat(t.Context(), path)
		wantKind(t, "Stat "+path, err, errs.NotFound)
	}
}

func testInvalidPaths(t *testing.T, f Fixture) {
	f.Put(t, "a/b", content(1, 10))
	s := f.open(t)
	for _, path := range []string{"/", "/a", "a/", "a//b", ".", "..", "a/.", "a/..", "../a", "a/../a/b", "a/./b", "a\x00"} {
		_, err := s.Stat(t.Context(), path)
		wantKind(t, fmt.Sprintf("Stat %q", path), err, errs.Invalid)
		_, err = s.Read(t.Context(), ufs.Object{Path: path, Tag: "x", Length: 1}, whole(ufs.Object{Length: 1}))
		wantKind(t, fmt.Sprintf("Read %q", path), err, errs.Invalid)
		wantKind(t, fmt.Sprintf("List %q", path), listError(t, s, path), errs.Invalid)
	}
}

// listError returns the one error of a listing that yields nothing else.
func listError(t *testing.T, s ufs.Store, dir string) error {
	t.Helper()
	var first error
	n := 0
	for info, err := range s.List(t.Context(), dir, ufs.ListOptions{}) {
		if n++; err == nil {
			t.Errorf("List(%q) yields %+v", dir, info)
			return nil
		}
		first = err
	}
	if n > 1 {
		t.Errorf("List(%q) goes on after an error", dir)
	}
	return first
}

func testListChildren(t *testing.T, f Fixture) {
	for i, path := range []string{"top", "d/1", "d/2", "d/e/3", "d/e/f/4", "g/h/5"} {
		f.Put(t, path, content(i, 10+i))
	}
	s := f.open(t)
	for _, tc := range []struct {
		dir  string
		want []string
	}{
		{"", []string{"d/", "g/", "top"}},
		{"d", []string{"d/1", "d/2", "d/e/"}},
		{"d/e", []string{"d/e/3", "d/e/f/"}},
		{"d/e/f", []string{"d/e/f/4"}},
		{"g", []string{"g/h/"}},
	} {
		first := list(t.Context(), t, s, tc.dir, ufs.ListOptions{})
		again := list(t.Context(), t, s, tc.dir, ufs.ListOptions{})
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("List(%q) twice: %s", tc.dir, diff)
		}
		got := paths(first)
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("List(%q): %s", tc.dir, diff)
		}
	}
}

// testListPrefixBoundaries has names of which one starts with another, and
// bytes around the slash in byte order.
func testListPrefixBoundaries(t *testing.T, f Fixture) {
	all := []string{"a/x", "a/y/z", "ab/x", "abc", "a-b", "a.b", "a0", "a!b/x", "a b/x", "b"}
	for i, path := range all {
		f.Put(t, path, content(i, 5))
	}
	s := f.open(t)
	for _, tc := range []struct {
		dir  string
		want []string
	}{
		{"", []string{"a b/", "a!b/", "a-b", "a.b", "a/", "a0", "ab/", "abc", "b"}},
		{"a", []string{"a/x", "a/y/"}},
		{"ab", []string{"ab/x"}},
	} {
		got := paths(list(t.Context(), t, s, tc.dir, ufs.ListOptions{}))
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("List(%q): %s", tc.dir, diff)
		}
	}
	want := slices.Sorted(slices.Values(all))
	checkRecursive(t, s, "", want)
	checkRecursive(t, s, "a", []string{"a/x", "a/y/z"})
	checkRecursive(t, s, "ab", []string{"ab/x"})
	// Resume behind each, behind what is not there, and behind everything.
	for _, after := range append(slices.Clone(want), "a", "a/", "a/xx", "a/y", "a/y/", "a0/x", "aa", "ab", "zzz") {
		checkAfter(t, s, "", want, after)
		checkAfter(t, s, "a", []string{"a/x", "a/y/z"}, after)
	}
}

// checkRecursive holds a recursive list against what it has to be.
func checkRecursive(t *testing.T, s ufs.Store, dir string, want []string) {
	t.Helper()
	got := paths(list(t.Context(), t, s, dir, ufs.ListOptions{Recursive: true}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List(%q, recursive): %s", dir, diff)
	}
}

// checkAfter holds a resumed recursive list against the whole one.
func checkAfter(t *testing.T, s ufs.Store, dir string, all []string, after string) {
	t.Helper()
	want := []string{}
	for _, p := range all {
		if p > after {
			want = append(want, p)
		}
	}
	got := paths(list(t.Context(), t, s, dir, ufs.ListOptions{Recursive: true, After: after}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List(%q, after %q): %s", dir, after, diff)
	}
}

func testListEmpty(t *testing.T, f Fixture) {
	s := f.open(t)
	for _, recursive := range []bool{false, true} {
		if got := list(t.Context(), t, s, "", ufs.ListOptions{Recursive: recursive}); len(got) != 0 {
			t.Errorf("the empty root lists %v", paths(got))
		}
	}
	if got := stat(t, s, ""); got.Type != ufs.Dir {
		t.Errorf("the empty root is %+v", got)
	}
	if f.Mkdir == nil {
		return
	}
	f.Mkdir(t, "empty")
	if got := list(t.Context(), t, s, "empty", ufs.ListOptions{}); len(got) != 0 {
		t.Errorf("the empty directory lists %v", paths(got))
	}
	if diff := cmp.Diff([]string{"empty/"}, paths(list(t.Context(), t, s, "", ufs.ListOptions{}))); diff != "" {
		t.Error(diff)
	}
	if got := list(t.Context(), t, s, "", ufs.ListOptions{Recursive: true}); len(got) != 0 {
		t.Errorf("the recursive list has %v", paths(got))
	}
	if got := stat(t, s, "empty"); got.Type != ufs.Dir {
		t.Errorf("the empty directory is %+v", got)
	}
}

func testListErrors(t *testing.T, f Fixture) {
	f.Put(t, "d/file", content(1, 10))
	s := f.open(t)
	wantKind(t, "List none", listError(t, s, "none"), errs.NotFound)
	wantKind(t, "List d/none", listError(t, s, "d/none"), errs.NotFound)
	wantKind(t, "List d/fil", listError(t, s, "d/fil"), errs.NotFound)
	wantKind(t, "List d/file", listError(t, s, "d/file"), errs.NotDir)
	wantKind(t, "List d/file/x", listError(t, s, "d/file/x"), errs.NotFound)
}

// testListMany has more names in one directory than any page of a server, and
// a directory in the middle of them.
func testListMany(t *testing.T, f Fixture) {
	page := f.pageSize()
	files, deep := 2*page+page/20, max(page/20, 3)
	name := func(i int) string {
		if i < files {
			return fmt.Sprintf("many/%05d", i)
		}
		return fmt.Sprintf("many/%05d.d/%03d/x", page, i-files)
	}
	f.PutMany(t, files+deep, func(i int) (string, []byte) { return name(i), content(i, i%7) })
	f.Put(t, "many2", content(1, 1))
	s := f.open(t)

	var recursive, children []string
	for i := range files + deep {
		recursive = append(recursive, name(i))
		if i < files {
			children = append(children, name(i))
		}
	}
	slices.Sort(recursive)
	children = append(children, fmt.Sprintf("many/%05d.d/", page))
	slices.Sort(children)
	got := list(t.Context(), t, s, "many", ufs.ListOptions{})
	gotPaths := paths(got)
	slices.Sort(gotPaths)
	if diff := cmp.Diff(children, gotPaths); diff != "" {
		t.Errorf("children: %s", diff)
	}
	for _, info := range got {
		var i int
		if _, err := fmt.Sscanf(info.Path, "many/%d", &i); err == nil && info.Type == ufs.File && info.Size != int64(i%7) {
			t.Errorf("%s has %d bytes", info.Path, info.Size)
		}
	}
	checkRecursive(t, s, "many", recursive)
	for _, i := range []int{0, page - 1, page, page + deep/2, 2 * page, len(recursive) - 1} {
		checkAfter(t, s, "many", recursive, recursive[i])
	}
	checkAfter(t, s, "many", recursive, recursive[page+deep/2]+"\x01")
	checkAfter(t, s, "", append(slices.Clone(recursive), "many2"), name(2*page-1))
}

func testListRecursive(t *testing.T, f Fixture) {
	var want []string
	for i, dir := range []string{"", "a/", "a/b/", "a/b/c/d/e/f/", "a.b/", "a/b.c/", "z/"} {
		for j := range 3 {
			path := fmt.Sprintf("%sfile%d", dir, j)
			f.Put(t, path, content(i, 1+i+j))
			want = append(want, path)
		}
	}
	slices.Sort(want)
	s := f.open(t)
	checkRecursive(t, s, "", want)
	for _, dir := range []string{"a", "a/b", "a/b/c", "a.b"} {
		var below []string
		for _, p := range want {
			if strings.HasPrefix(p, dir+"/") {
				below = append(below, p)
			}
		}
		checkRecursive(t, s, dir, below)
	}
	for _, after := range want {
		checkAfter(t, s, "", want, after)
	}
	for _, info := range list(t.Context(), t, s, "", ufs.ListOptions{Recursive: true}) {
		if diff := cmp.Diff(stat(t, s, info.Path), info); diff != "" {
			t.Errorf("stat and list of %s: %s", info.Path, diff)
		}
	}
}

func testListStops(t *testing.T, f Fixture) {
	f.PutMany(t, 20, func(i int) (string, []byte) { return fmt.Sprintf("d%d/f%d", i/10, i), content(i, 1) })
	s := f.open(t)
	for n := 1; n < 20; n += 6 {
		got := 0
		for _, err := range s.List(t.Context(), "", ufs.ListOptions{Recursive: true}) {
			if err != nil {
				t.Fatal(err)
			}
			if got++; got == n {
				break
			}
		}
		if got != n {
			t.Errorf("stopped after %d of %d", got, n)
		}
	}
}

func testOddNames(t *testing.T, f Fixture) {
	names := []string{
		"sp ace", " lead", "trail ", "ünï/çødé", "日本/語", "emoji 🎉", "100%", "%41", "a%2Fb", "a+b", "q?x=1", "h#frag",
		"amp&ersand", "semi;colon", "eq=uals", "quote\"s", "apos'trophe", "back\\slash", "<tag>", "[br]{ace}", "co:lon", "com,ma",
		"do$llar", "at@", "tilde~", "star*", "pipe|", "caret^", "...", "a..b", ".hidden/.file", "_/-", "-", "UPPER/lower",
		"dots./x", strings.Repeat("long", 50),
	}
	if f.Takes != nil {
		names = slices.DeleteFunc(names, func(name string) bool { return !f.Takes(name) })
	}
	for i, name := range names {
		f.Put(t, "odd/"+name, content(i, 100+i))
	}
	s := f.open(t)
	want := make([]string, 0, len(names))
	for i, name := range names {
		path := "odd/" + name
		want = append(want, path)
		o := object(t, s, path)
		if got := read(t, s, o, whole(o)); !bytes.Equal(got, content(i, 100+i)) {
			t.Errorf("%q: other bytes", path)
		}
	}
	slices.Sort(want)
	checkRecursive(t, s, "", want)
	for _, after := range want {
		checkAfter(t, s, "odd", want, after)
	}
	for _, info := range list(t.Context(), t, s, "odd", ufs.ListOptions{}) {
		if got := stat(t, s, info.Path); got.Type != info.Type {
			t.Errorf("stat %q: %+v, list: %+v", info.Path, got, info)
		}
	}
}
