package s3fs

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// TestOddKeysThatArePaths lists, describes and reads keys that no other test
// server can hold.
func TestOddKeysThatArePaths(t *testing.T) {
	keys := []string{
		"sp ace/ lead", "trail /x ", "\xff\xfe/not UTF-8\x80", "tab\there", "line\nbreak", "ctl\x01\x1f\x7f",
		"%2F/%00", "a+b c", "q?x=1&y#z", "<&>\"'", "...", "..a/b..", "back\\..\\slash", ".hidden", "\u2028", "e\u0301", "é",
		strings.Repeat("k", 1024), "deep/" + strings.Repeat("d/", 508) + "xyz",
	}
	s := memoryStore(t, nil, testenv.NewKeys(keys...))
	for _, pageSize := range []int32{1, 1000} {
		s.pageSize = pageSize
		got, err := collect(t, s, "", ufs.ListOptions{Recursive: true})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string(testenv.NewKeys(keys...)), got); diff != "" {
			t.Errorf("pages of %d: %s", pageSize, diff)
		}
		for _, after := range keys {
			left, err := collect(t, s, "", ufs.ListOptions{Recursive: true, After: after})
			if err != nil {
				t.Fatal(err)
			}
			for i, k := range got {
				if k == after {
					if diff := cmp.Diff(append([]string{}, got[i+1:]...), left); diff != "" {
						t.Errorf("after %q: %s", after, diff)
					}
				}
			}
		}
	}
	for _, k := range keys {
		info, err := s.Stat(t.Context(), k)
		if err != nil || info.Type != ufs.File || info.Path != k {
			t.Errorf("Stat(%q): %+v, %v", k, info, err)
			continue
		}
		e := block.Extent{Offset: 1, Length: info.Size - 1}
		data, err := readAll(t, s, ufs.Object{Path: k, Tag: info.Tag, Length: info.Size}, e)
		if err != nil || string(data) != k[1:] {
			t.Errorf("Read(%q): %q, %v", k, data, err)
		}
	}
}

// TestOddKeysThatAreNoPaths has keys that name nothing in a tree, beside and
// above the prefix of the mount. None is listed, none can be named, and none
// leads out of the mount.
func TestOddKeysThatAreNoPaths(t *testing.T) {
	m := testenv.StartMemoryS3(t)
	m.SetBucket("bucket", testenv.NewKeys(
		"secret", "pre", "prefix", "pre/ok", "pre/../secret", "pre/./ok", "pre//double", "pre/d/", "pre/d//", "pre/d/x", "pre/./", "pre/..",
		"pre/", "pre//", "pre/n\x00ul", "other/x", "../up", "/root",
	))
	s := openStore(t, ufs.Config{URI: "s3://bucket/pre", Options: setKeys(t, m.Endpoint)})
	for _, tc := range []struct {
		dir       string
		recursive bool
		want      []string
	}{
		{"", false, []string{"d/", "ok"}},
		{"", true, []string{"d/x", "ok"}},
		{"d", false, []string{"d/x"}},
		{"d", true, []string{"d/x"}},
	} {
		got, err := collect(t, s, tc.dir, ufs.ListOptions{Recursive: tc.recursive})
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("List(%q, %v): %s", tc.dir, tc.recursive, diff)
		}
	}
	lists := m.Lists()
	for _, path := range []string{"../secret", "..", ".", "./ok", "/double", "d/", "d//", "/", "a/../../secret", "n\x00ul", "d/.."} {
		_, statErr := s.Stat(t.Context(), path)
		_, readErr := s.Read(t.Context(), ufs.Object{Path: path, Tag: "t", Length: 1}, block.Extent{Length: 1})
		_, listErr := collect(t, s, path, ufs.ListOptions{})
		for what, err := range map[string]error{"Stat": statErr, "Read": readErr, "List": listErr} {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s(%q): %v", what, path, err)
			}
		}
	}
	if m.Lists() != lists {
		t.Error("the server was asked for what is no path")
	}
}

// TestKeyTooLong has a path that is longer than any key.
func TestKeyTooLong(t *testing.T) {
	s := memoryStore(t, nil, testenv.NewKeys("k"))
	path := strings.Repeat("k", 1025)
	_, err := s.Stat(t.Context(), path)
	if !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	}
	if _, err := readAll(t, s, ufs.Object{Path: path, Tag: "t", Length: 1}, block.Extent{Length: 1}); !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	} else {
		checkMessage(t, err, "KeyTooLongError", "no key as long as this")
	}
}

// TestObjectAndPrefix has a key that is both.
func TestObjectAndPrefix(t *testing.T) {
	s := memoryStore(t, nil, testenv.NewKeys("p", "p!", "p/q", "p/q/r"))
	got, err := collect(t, s, "", ufs.ListOptions{})
	if diff := cmp.Diff([]string{"p", "p!"}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for path, want := range map[string]ufs.Type{"p": ufs.File, "p/q": ufs.File, "p/q/r": ufs.File} {
		if info, err := s.Stat(t.Context(), path); err != nil || info.Type != want {
			t.Errorf("Stat(%q): %+v, %v", path, info, err)
		}
	}
	got, err = collect(t, s, "p", ufs.ListOptions{})
	if diff := cmp.Diff([]string{"p/q"}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

func TestFiveTebibytes(t *testing.T) {
	const size = 5 << 40
	s := memoryStore(t, nil, testenv.NumberedKeys{N: 1, Size: size})
	info, err := s.Stat(t.Context(), "00000000")
	if err != nil || info.Size != size {
		t.Fatalf("got %+v, %v", info, err)
	}
	for listed, err := range s.List(t.Context(), "", ufs.ListOptions{}) {
		if diff := cmp.Diff(info, listed); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	data, err := readAll(t, s, ufs.Object{Path: info.Path, Tag: info.Tag, Length: size}, block.Extent{Offset: size - 100, Length: 100})
	if err != nil || !bytes.Equal(data, make([]byte, 100)) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}
