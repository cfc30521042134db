package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSummary(t *testing.T) {
	for _, tc := range []struct {
		name   string
		events string
		want   string
		failed int
	}{
		{
			name: "a good package",
			events: `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}`,
			want: "ok  \tp\t0.1s\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "a skip is told",
			events: `{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: needs a server\n"}
{"Action":"output","Package":"p","Test":"A","Output":"--- SKIP: A (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`,
			want: "SKIP p A: a_test.go:1: needs a server\n0 passed, 0 failed, 1 skipped\n",
		},
		{
			name: "a failure is shown whole",
			events: `{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: wrong\n"}
{"Action":"output","Package":"p","Test":"A","Output":"--- FAIL: A (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`,
			want:   "    a_test.go:1: wrong\n--- FAIL: A (0.00s)\nFAIL\tp\t0.1s\nFAIL\n0 passed, 1 failed, 0 skipped\n",
			failed: 1,
		},
		{
			name: "a panic in a test that never ended",
			events: `{"Action":"output","Package":"p","Test":"A","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}`,
			want:   "panic: boom\n0 passed, 1 failed, 0 skipped\n",
			failed: 1,
		},
		{
			name:   "a package that fails by itself",
			events: `{"Action":"output","Package":"p","Output":"no port\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
			want:   "no port\n0 passed, 1 failed, 0 skipped\n",
			failed: 1,
		},
		{
			name: "a build that fails",
			events: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p/a.go:1: syntax error\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
			want:   "p/a.go:1: syntax error\nFAIL\tp [build failed]\n0 passed, 1 failed, 0 skipped\n",
			failed: 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
			if err := s.readAll(strings.NewReader(tc.events)); err != nil {
				t.Fatal(err)
			}
			s.print()
			if d := cmp.Diff(tc.want, out.String()); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if s.failed != tc.failed {
				t.Errorf("%d failed, want %d", s.failed, tc.failed)
			}
		})
	}
}

func TestEventsThatAreNotJSON(t *testing.T) {
	var out strings.Builder
	if err := newSummary(&out).readAll(strings.NewReader("{\"Action\":\"start\"}\nnot json\n")); err == nil {
		t.Error("nonsense was taken")
	}
}
