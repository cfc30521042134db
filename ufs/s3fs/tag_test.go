package s3fs

import (
	"testing"
	"time"
)

func TestTag(t *testing.T) {
	at := time.Date(2024, 5, 6, 7, 8, 9, 987654321, time.UTC)
	for _, tc := range []struct {
		etag, want string
		strong     bool
	}{
		{`"abc"`, "abc", true},
		{`abc`, "abc", true},
		{`"abc-17"`, "abc-17", true},
		{`W/"abc"`, "lm:1714979289:5", false},
		{"", "lm:1714979289:5", false},
		{`""`, "lm:1714979289:5", false},
		{`"lm:1:2"`, "lm:1714979289:5", false},
		{`"a b"`, "lm:1714979289:5", false},
		{`"a"b"`, "lm:1714979289:5", false},
		{"\"a\r\nX: y\"", "lm:1714979289:5", false},
		{`"`, "lm:1714979289:5", false},
	} {
		v := version{etag: tc.etag, modified: at, length: 5}
		if got := v.tag(); got != tc.want {
			t.Errorf("the tag of %q is %q, want %q", tc.etag, got, tc.want)
		}
		for _, age := range []time.Duration{-time.Hour, 0, settleTime} {
			if got := v.unsettled(at.Add(age)); got == tc.strong {
				t.Errorf("%q at the age %v: unsettled %v", tc.etag, age, got)
			}
		}
		if v.unsettled(at.Add(settleTime + 1)) {
			t.Errorf("%q never settles", tc.etag)
		}
	}
	if got, ok := tagModified("lm:1714979289:5"); !ok || !got.Equal(at.Truncate(time.Second)) {
		t.Errorf("got %v, %v", got, ok)
	}
	for _, tag := range []string{"abc", "lm:", "lm:x:1", ""} {
		if _, ok := tagModified(tag); ok {
			t.Errorf("%q has a time", tag)
		}
	}
}
