package s3fs

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/block"
	"millrace/ufs"
)

// FuzzListing: whatever a server answers to a listing, each entry that is
// passed on is a valid path below the directory, and no file has a negative
// size.
func FuzzListing(f *testing.F) {
	for _, body := range []string{
		``,
		`<ListBucketResult><Contents><Key>d/a</Key><Size>3</Size><ETag>"x"</ETag><LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>`,
		`<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>d/%2e%2e%2Fb+c</Key><Size>3</Size></Contents><CommonPrefixes><Prefix>d/e/</Prefix></CommonPrefixes></ListBucketResult>`,
		`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken><Contents><Key>other</Key><Size>-1</Size></Contents></ListBucketResult>`,
		`<Error><Code>SlowDown</Code></Error>`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	var body atomic.Value
	body.Store("")
	s := fakeStore(f, nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		_, _ = io.WriteString(w, body.Load().(string)) //nolint:forcetypeassert // strings alone are stored
	})
	f.Fuzz(func(t *testing.T, answer string, recursive bool) {
		body.Store(answer)
		n := 0
		for info, err := range s.List(t.Context(), "d", ufs.ListOptions{Recursive: recursive}) {
			if err != nil {
				return
			}
			name, below := strings.CutPrefix(info.Path, "d/")
			if !below || !ufs.ValidPath(info.Path) || (!recursive && strings.Contains(name, "/")) {
				t.Fatalf("path %q", info.Path)
			}
			if info.Size < 0 || (info.Type == ufs.File && info.Tag == "") {
				t.Fatalf("entry %+v", info)
			}
			if n++; n > 1000 { // a listing that says it goes on for ever does
				return
			}
		}
	})
}

// FuzzAnswer: whatever a server answers to a GET of four bytes, the reader
// gets four bytes of that version or an error.
func FuzzAnswer(f *testing.F) {
	f.Add(206, `"v1"`, "bytes 2-5/8", "4", "cdef")
	f.Add(200, `"v1"`, "", "8", "abcdefgh")
	f.Add(206, `"v2"`, "bytes 2-5/8", "4", "cdef")
	f.Add(206, `"v1"`, "bytes 2-5/8", "", "cd")
	f.Add(206, `"v1"`, "bytes 0-3/8", "4", "abcd")
	f.Add(404, "", "", "", "<Error><Code>NoSuchKey</Code></Error>")
	f.Add(503, "", "", "", "<Error><Code>SlowDown</Code></Error>")
	type answer struct {
		status                    int
		etag, span, length, bytes string
	}
	var next atomic.Pointer[answer]
	next.Store(&answer{status: http.StatusOK})
	s := fakeStore(f, nil, func(w http.ResponseWriter, _ *http.Request) {
		a := next.Load()
		for name, value := range map[string]string{"ETag": a.etag, "Content-Range": a.span, "Content-Length": a.length} {
			if value != "" {
				w.Header().Set(name, value)
			}
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.bytes)
	})
	f.Fuzz(func(t *testing.T, status int, etag, span, length, bytes string) {
		if status < 200 || status > 599 { // what net/http does not send
			return
		}
		next.Store(&answer{status, etag, span, length, bytes})
		r, err := s.Read(t.Context(), ufs.Object{Path: "k", Tag: "v1", Length: 8}, block.Extent{Offset: 2, Length: 4})
		if err != nil {
			return
		}
		got, err := io.ReadAll(r)
		if closed := r.Close(); err != nil || closed != nil {
			return
		}
		if tag, _ := strongTag(strings.TrimSpace(etag)); status != 206 || tag != "v1" || strings.TrimSpace(span) != "bytes 2-5/8" || len(got) != 4 {
			t.Fatalf("status %d, ETag %q, Content-Range %q gave %q", status, etag, span, got)
		}
	})
}

// FuzzSettings: a URI and options that are taken name a bucket and a prefix
// that mean the same in a URL and a path.
func FuzzSettings(f *testing.F) {
	f.Add("s3://bucket/a/b", "endpoint", "http://127.0.0.1:9000", "path_style", "true")
	f.Add("s3://bucket", "endpoint", "https://user:secret@host", "region", "x")
	f.Add("s3://../..", "anonymous", "yes", "connections", "0")
	f.Add("s3://b//c", "requester_pays", "1", "anonymous", "1")
	f.Add("s3://b", "access_key_env", "A", "secret_key_env", "B")
	f.Fuzz(func(t *testing.T, uri, k1, v1, k2, v2 string) {
		if k1 == optCredentialsFile || k2 == optCredentialsFile { // it is opened
			return
		}
		s, err := parse(ufs.Config{URI: uri, Options: map[string]string{k1: v1, k2: v2}})
		if err != nil {
			return
		}
		if !validBucket(s.bucket) || !ufs.ValidPath(s.prefix) || strings.Contains(s.endpoint, "@") {
			t.Fatalf("%q: bucket %q, prefix %q, endpoint %q", uri, s.bucket, s.prefix, s.endpoint)
		}
	})
}

// FuzzRetryAfter: no header of a server makes an attempt wait for longer than
// the bound, or without any pause.
func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"", "0", "1", "-1", "120", "Mon, 02 Jan 2006 15:04:05 GMT", strconv.Itoa(1 << 62)} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, header string) {
		answer := &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {header}}}
		err := &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: answer}}}
		if d, err := backoff(0, err); err != nil || d < throttleWait/2 || d > max(throttleWait, maxRetryAfter) {
			t.Errorf("%q: %v, %v", header, d, err)
		}
	})
}
