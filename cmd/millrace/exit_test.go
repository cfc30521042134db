package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/client"
)

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		args string
		want int
	}{
		{"", exitUsage},
		{"nonsense", exitUsage},
		{"help nonsense", exitUsage},
		{"help ufs nonsense", exitUsage},
		{"ls --nonsense", exitUsage},
		{"ls relative", exitUsage},
		{"ls -o yaml /", exitUsage},
		{"cat", exitUsage},
		{"ufs", exitUsage},
		{"ufs set /", exitUsage},
		{"pin /", exitUsage},
		{"up", exitUsage},
		{"up a b c", exitUsage},
		{"up nonsense", exitUsage},
		{"up file:///x --listen nonsense", exitUsage},
		{"up file:///x --memory nonsense", exitUsage},
		{"up file:///x --memory 8MiB --cache /c:8MiB:memory", exitUsage},
		{"cat /x --offset -1", exitUsage},
		{"mount", exitUsage},
		{"mount /x --path relative", exitUsage},
		{"status --wait forever", exitUsage},
		{"completion", exitUsage},
		{"config check", exitUsage},
		{"config check /no/such/file", exitFailed},
		{"up gopher://x", exitFailed},
		{"up file:///no/such/directory --data-dir /no/such/directory", exitFailed},
		{"umount /no/such/directory", exitFailed},
		{"version", exitOK},
		{"help", exitOK},
		{"help ufs add", exitOK},
		{"up --help", exitOK},
		{"config default", exitOK},
		{"completion zsh", exitOK},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := run(t.Context(), strings.Fields(tc.args), nil, &stdout, &stderr); got != tc.want {
				t.Errorf("exit status %d, want %d; stderr: %s", got, tc.want, &stderr)
			}
			if tc.want == exitOK && stdout.Len() == 0 {
				t.Error("nothing on stdout")
			}
			if tc.want != exitOK && (stdout.Len() > 0 || stderr.Len() == 0) {
				t.Errorf("want a message on stderr alone; stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}

func TestParseCache(t *testing.T) {
	for _, tc := range []struct{ in, dir, medium, size, bad string }{
		{in: "/a:10GiB", dir: "/a", medium: "ssd", size: "10GiB"},
		{in: "/a:b:1GiB:hdd", dir: "/a:b", medium: "hdd", size: "1GiB"},
		{in: "/a:1GiB:memory", dir: "/a", medium: "memory", size: "1GiB"},
		{in: "/ssd:1GiB", dir: "/ssd", medium: "ssd", size: "1GiB"},
		{in: "/a", bad: "want DIR:SIZE"},
		{in: ":1GiB", bad: "want DIR:SIZE"},
		{in: "/a:much", bad: "much"},
		{in: "/a:1GiB:tape", bad: "tape"},
		{in: "/a:1", bad: "capacity"},
	} {
		got, err := parseCache(tc.in)
		switch {
		case tc.bad != "":
			if err == nil || !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("%s: got %v, want an error that says %q", tc.in, err, tc.bad)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.in, err)
		case got.Dir != tc.dir || string(got.Medium) != tc.medium || got.Capacity.String() != tc.size:
			t.Errorf("%s: got %+v", tc.in, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"/a b": "/a b", "/ü": "/ü", "/a\tb": `"/a\tb"`, "/\x1b[31m": `"/\x1b[31m"`, "/\xff": `"/\xff"`} {
		if got := printable(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestPercentIsHonest(t *testing.T) {
	for _, tc := range []struct {
		cached, size int64
		want         string
	}{{0, 0, "100%"}, {0, 10, "0%"}, {10, 10, "100%"}, {1, 1 << 40, "0.1%"}, {1<<40 - 1, 1 << 40, "99.9%"}, {1, 2, "50.0%"}} {
		if got := cachedText(tc.cached, tc.size); got != tc.want {
			t.Errorf("%d of %d: got %s, want %s", tc.cached, tc.size, got, tc.want)
		}
	}
}

// A name that is not UTF-8 must not break JSON, nor be lost.
func TestJSONOfAnyName(t *testing.T) {
	var out bytes.Buffer
	j := &jsonArray{w: &out}
	for _, p := range []string{"/a\"b\n", "/\xff\xfe"} {
		if err := j.add(infoJSON{client.Info{Path: p, Type: client.TypeFile}, rawPath(p)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.end(); err != nil {
		t.Fatal(err)
	}
	var got []infoJSON
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	want := []infoJSON{
		{Info: client.Info{Path: "/a\"b\n", Type: "file"}},
		{Info: client.Info{Path: "/\ufffd\ufffd", Type: "file"}, PathBase64: "L//+"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
