package s3fs

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// tagTime starts the tags of objects without a strong ETag.
const tagTime = "lm:"

// settleTime is how old an object without a strong ETag must be before its
// tag stands for its bytes: LastModified counts whole seconds.
const settleTime = 2 * time.Second

// version is what an answer says of an object.
type version struct {
	etag     string
	modified time.Time
	length   int64
}

// tag returns the version tag.
func (v version) tag() string {
	if tag, ok := strongTag(v.etag); ok {
		return tag
	}
	return fmt.Sprintf("%s%d:%d", tagTime, v.modified.Unix(), v.length)
}

// unsettled reports whether the object may yet change under the same tag, as
// seen at the time now.
func (v version) unsettled(now time.Time) bool {
	_, strong := strongTag(v.etag)
	return !strong && now.Sub(v.modified) <= settleTime
}

// strongTag returns the tag of a strong ETag, which some servers send without
// its quotes. An ETag that would not survive as a header, or reads like a tag
// of time, is none.
func strongTag(etag string) (string, bool) {
	if strings.HasPrefix(etag, "W/") {
		return "", false
	}
	if n := len(etag); n >= 2 && etag[0] == '"' && etag[n-1] == '"' {
		etag = etag[1 : n-1]
	}
	if etag == "" || strings.HasPrefix(etag, tagTime) {
		return "", false
	}
	for _, c := range []byte(etag) {
		if c <= ' ' || c == '"' || c >= 0x7f {
			return "", false
		}
	}
	return etag, true
}

// tagModified returns the time in a tag of time.
func tagModified(tag string) (time.Time, bool) {
	rest, ok := strings.CutPrefix(tag, tagTime)
	if !ok {
		return time.Time{}, false
	}
	seconds, _, _ := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.Unix(n, 0), true
}
