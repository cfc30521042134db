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

func TestParseLimits(t *testing.T) {
	for _, tc := range []struct {
		bandwidth, requests string
		want                Limits
		wrong               string // what the message says, "" when right
	}{
		{"", "", Limits{}, ""},
		{"0", "0", Limits{}, ""},
		{"100MiB", "50", Limits{Bandwidth: 100 << 20, Requests: 50}, ""},
		{"1GB/s", "0.5/s", Limits{Bandwidth: 1e9, Requests: 0.5}, ""},
		{"16KiB", "", Limits{Bandwidth: 16 << 10}, ""},
		{"16383", "", Limits{}, "max_bandwidth"},
		{"-1", "", Limits{}, "max_bandwidth"},
		{"fast", "", Limits{}, "max_bandwidth"},
		{"", "-1", Limits{}, "max_requests"},
		{"", "NaN", Limits{}, "max_requests"},
		{"", "Inf", Limits{}, "max_requests"},
		{"", "0.001", Limits{}, "max_requests"},
		{"", "ten", Limits{}, "max_requests"},
	} {
		options := map[string]string{OptionMaxBandwidth: tc.bandwidth, OptionMaxRequests: tc.requests}
		got, err := ParseLimits(options)
		if checked := CheckOptions(Config{URI: "x://y", Options: options}); (checked == nil) != (err == nil) {
			t.Errorf("%v: parsed %v, checked %v", options, err, checked)
		}
		if tc.wrong != "" {
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("%v: %v", options, err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%v: %+v, %v; want %+v", options, got, err, tc.want)
		}
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
