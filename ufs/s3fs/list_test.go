package s3fs

import (
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// collect returns the paths of a listing, directories with a slash.
func collect(t *testing.T, s *Store, dir string, opts ufs.ListOptions) ([]string, error) {
	t.Helper()
	got := []string{}
	for info, err := range s.List(t.Context(), dir, opts) {
		if err != nil {
			return got, err
		}
		p := info.Path
		if info.Type == ufs.Dir {
			p += "/"
		}
		got = append(got, p)
	}
	return got, nil
}

// TestListOddKeys has keys that are no paths, and keys that are both an object
// and a prefix, in a bucket that no file system could hold.
func TestListOddKeys(t *testing.T) {
	keys := []string{
		"//", "/lead", "a", "a!", "a-", "a-/x", "a/", "a/.", "a/..", "a/../b", "a/./b", "a//b", "a/b", "a/b ", "a/b/c", "a0",
		"ctl\x01\x02", "m/", "only//x", "p", "p/q", "p/q/r", "x/y/",
	}
	for _, pageSize := range []int32{1, 2, 3, 5, 1000} {
		s := memoryStore(t, nil, testenv.NewKeys(keys...))
		s.pageSize = pageSize
		for _, tc := range []struct {
			dir       string
			recursive bool
			want      []string
		}{
			{"", false, []string{"a", "a!", "a-", "a0", "ctl\x01\x02", "m/", "only/", "p", "x/"}},
			{"a", false, []string{"a/b", "a/b "}},
			{"m", false, []string{}},
			{"m", true, []string{}},
			{"only", false, []string{}},
			{"x", false, []string{"x/y/"}},
			{"p", false, []string{"p/q"}},
			{"", true, []string{"a", "a!", "a-", "a-/x", "a/b", "a/b ", "a/b/c", "a0", "ctl\x01\x02", "p", "p/q", "p/q/r"}},
		} {
			got, err := collect(t, s, tc.dir, ufs.ListOptions{Recursive: tc.recursive})
			if err != nil {
				t.Errorf("List(%q): %v", tc.dir, err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("pages of %d: List(%q, %v): %s", pageSize, tc.dir, tc.recursive, diff)
			}
		}
		got, err := collect(t, s, "", ufs.ListOptions{Recursive: true, After: "a/b"})
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"a/b ", "a/b/c", "a0", "ctl\x01\x02", "p", "p/q", "p/q/r"}, got); diff != "" {
			t.Errorf("after a/b: %s", diff)
		}
	}
}

func TestStatOfObjectAndPrefix(t *testing.T) {
	var c counts
	s := memoryStore(t, &c, testenv.NewKeys("p", "p/q"))
	info, err := s.Stat(t.Context(), "p")
	if err != nil || info.Type != ufs.File {
		t.Errorf("got %+v, %v", info, err)
	}
	if c.head.Load() != 1 || c.list.Load() != 0 {
		t.Errorf("%d HEAD and %d LIST for a file", c.head.Load(), c.list.Load())
	}
}

// TestListIgnoresDelimiter has a server that tells all that is below.
func TestListIgnoresDelimiter(t *testing.T) {
	s := fakeStore(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("<ListBucketResult><Contents><Key>d/a/b</Key><Size>1</Size></Contents></ListBucketResult>"))
	})
	if got, err := collect(t, s, "d", ufs.ListOptions{}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestListLies has servers that break the protocol.
func TestListLies(t *testing.T) {
	const head = `<ListBucketResult>`
	object := func(key string) string {
		return "<Contents><Key>" + key + "</Key><ETag>&quot;t&quot;</ETag><Size>1</Size></Contents>"
	}
	for _, tc := range []struct {
		name, answer string
		want         errs.Kind
	}{
		{"out of order", head + object("d/b") + object("d/a"), errs.Unsupported},
		{"outside of the prefix", head + object("e/a"), errs.Unavailable},
		{"more without a token", head + object("d/a") + "<IsTruncated>true</IsTruncated>", errs.Unavailable},
		{"the same page again", head + object("d/a") + "<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>", errs.Unavailable},
		{"ignores the prefix", head + object("c") + object("d/a"), errs.Unavailable},
		{"no size", head + "<Contents><Key>d/a</Key></Contents>", errs.Unavailable},
		{"a size below 0", head + "<Contents><Key>d/a</Key><Size>-1</Size></Contents>", errs.Unavailable},
		{"no XML", "<html>", errs.Unavailable},
		{"a bad escape", head + "<EncodingType>url</EncodingType>" + object("d/%zz"), errs.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeStore(t, nil, func(w http.ResponseWriter, _ *http.Request) {
				w.Write([]byte(tc.answer + "</ListBucketResult>"))
			})
			_, err := collect(t, s, "d", ufs.ListOptions{Recursive: true})
			if errs.KindOf(err) != tc.want || err == nil {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
