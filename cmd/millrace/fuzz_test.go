package main

import (
	"net"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzMountHelper: a line of fstab that is taken becomes a mount of a clean
// path, at masters with a port, and its mount point is no flag.
func FuzzMountHelper(f *testing.F) {
	f.Add(":/", "/mnt", "ro,nofail")
	f.Add("10.0.0.1,[::1]:5:/a/../b", "-x", "config=/etc/m.toml,zz")
	f.Add("h,,g:/", "/m", "")
	f.Fuzz(func(t *testing.T, source, point, options string) {
		args, err := helperArgs([]string{"-o", options, "--", source, point}, "/root")
		if err != nil {
			args, err = helperArgs([]string{source, point, "-o", options}, "/root")
		}
		if err != nil {
			return
		}
		if n := len(args); n < 2 || args[n-2] != "--" {
			t.Fatalf("%q", args)
		}
		masters, root, err := parseMountSource(source)
		if err != nil || root[0] != '/' || path.Clean(root) != root {
			t.Fatalf("%q: path %q, %v", source, root, err)
		}
		for m := range strings.SplitSeq(masters, ",") {
			if _, _, err := net.SplitHostPort(m); masters != "" && err != nil {
				t.Fatalf("%q: master %q: %v", source, m, err)
			}
		}
	})
}

// FuzzCheckURI: a URI that is taken is taken in the form in which it is kept,
// and shows no password.
func FuzzCheckURI(f *testing.F) {
	for _, s := range []string{"s3://bucket/prefix/", "file:///", "s3://u:p@h/x", "hdfs://x", "s3:", "://", "s3://%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		kept, err := checkURI(uri)
		if err != nil {
			return
		}
		if again, err := checkURI(kept); err != nil || again != kept {
			t.Errorf("%q is kept as %q, which becomes %q, %v", uri, kept, again, err)
		}
	})
}

// FuzzUFSOptions: options that are taken are those that were given.
func FuzzUFSOptions(f *testing.F) {
	f.Add("endpoint=http://h", "region=x=y")
	f.Add("secret_key=abc", "=")
	f.Fuzz(func(t *testing.T, a, b string) {
		got, err := parseUFSOptions([]string{a, b})
		if err != nil {
			if _, value, ok := strings.Cut(a, "="); ok && len(value) > 20 && strings.Contains(err.Error(), value) {
				t.Errorf("%q is repeated: %v", value, err)
			}
			return
		}
		want := map[string]string{}
		for _, s := range []string{a, b} {
			k, v, _ := strings.Cut(s, "=")
			want[k] = v
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// FuzzParseCache: a cache directory that is taken validates, and its path is
// the one that stands before the size.
func FuzzParseCache(f *testing.F) {
	for _, s := range []string{"/c:10GiB", "/c:1:2:64MiB:hdd", "c:4MiB:ssd", ":1", "/c:x", "/c:4MiB:memory"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCache(s)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if filepath.IsAbs(s) && !strings.HasPrefix(filepath.Clean(s[:strings.LastIndex(s, ":")])+"/", strings.TrimSuffix(c.Dir, "/")) {
			t.Errorf("%q is %q", s, c.Dir)
		}
	})
}
