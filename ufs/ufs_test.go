package ufs

import (
	"context"
	"errors"
	"strings"
	"testing"

	"millrace/internal/errs"
)

func TestValidPath(t *testing.T) {
	for path, want := range map[string]bool{
		"": true, "a": true, "a/b/c": true, "...": true, "..a": true, "a b/%2F/\xff": true, "-": true,
		"/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/./b": false, "a/..": false, "../a": false, "a\x00": false,
	} {
		if got := ValidPath(path); got != want {
			t.Errorf("ValidPath(%q) = %v", path, got)
		}
	}
}

func TestJoin(t *testing.T) {
	if got := Join("", "a"); got != "a" {
		t.Errorf("got %q", got)
	}
	if got := Join("a/b", "c"); got != "a/b/c" {
		t.Errorf("got %q", got)
	}
}

func FuzzValidPath(f *testing.F) {
	for _, p := range []string{"", "a/b", "a//b", "../x", "a/./b"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		want := path == "" || !strings.ContainsRune(path, 0)
		for name := range strings.SplitSeq(path, "/") {
			if path != "" && (name == "" || name == "." || name == "..") {
				want = false
			}
		}
		if got := ValidPath(path); got != want {
			t.Errorf("ValidPath(%q) = %v", path, got)
		}
	})
}

func TestCheckOptions(t *testing.T) {
	cfg := Config{URI: "x://y", Options: map[string]string{"ttl": "1s", "verify": "always", "region": "r"}}
	if err := CheckOptions(cfg, "region"); err != nil {
		t.Error(err)
	}
	err := CheckOptions(cfg)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `"region"`) || !strings.Contains(err.Error(), "block_size") {
		t.Errorf("got %v", err)
	}
}

func TestRegistry(t *testing.T) {
	var opened Config
	r := Registry{"fake": func(_ context.Context, cfg Config) (Store, error) {
		opened = cfg
		return nil, nil
	}}
	if _, err := r.Open(t.Context(), Config{URI: "fake://b/100% of?it"}); err != nil || opened.URI != "fake://b/100% of?it" {
		t.Errorf("opened %+v, %v", opened, err)
	}
	for uri, want := range map[string]errs.Kind{"/dir": errs.Invalid, "": errs.Invalid, "://x": errs.Invalid, "other://x": errs.Unsupported} {
		if _, err := r.Open(t.Context(), Config{URI: uri}); !errors.Is(err, want) {
			t.Errorf("%q: %v", uri, err)
		}
	}
}
