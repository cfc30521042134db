package s3fs

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// readAll reads an extent to its end.
func readAll(t *testing.T, s *Store, o ufs.Object, e block.Extent) ([]byte, error) {
	t.Helper()
	r, err := s.Read(t.Context(), o, e)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	return got, errors.Join(err, r.Close())
}

// TestReadLies has servers that answer something else than what was asked.
func TestReadLies(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100)
	obj := ufs.Object{Path: "k", Tag: "good", Length: 1000}
	part := block.Extent{Offset: 100, Length: 200}
	whole := block.Extent{Length: 1000}
	set := func(w http.ResponseWriter, status int, header map[string]string, body []byte) {
		w.Header().Set("ETag", `"good"`)
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		w.Write(body)
	}
	for _, tc := range []struct {
		name   string
		extent block.Extent
		want   errs.Kind // Unknown: it has to succeed
		answer http.HandlerFunc
	}{
		{"right", part, errs.Unknown, func(w http.ResponseWriter, r *http.Request) { answerObject(w, r, `"good"`, data) }},
		{"right without quotes", part, errs.Unknown, func(w http.ResponseWriter, r *http.Request) { answerObject(w, r, "good", data) }},
		{"200 for the whole", whole, errs.Unknown, func(w http.ResponseWriter, _ *http.Request) { set(w, 200, nil, data) }},
		{"ignores Range", part, errs.Unsupported, func(w http.ResponseWriter, _ *http.Request) { set(w, 200, nil, data) }},
		{"ignores If-Match", part, errs.Stale, func(w http.ResponseWriter, r *http.Request) { answerObject(w, r, `"other"`, data) }},
		{"has only a weak ETag", part, errs.Stale, func(w http.ResponseWriter, r *http.Request) { answerObject(w, r, `W/"good"`, data) }},
		{"ignores both", part, errs.Stale, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 200, map[string]string{"ETag": `"other"`}, data)
		}},
		{"whole, but longer", whole, errs.Stale, func(w http.ResponseWriter, _ *http.Request) { set(w, 200, nil, append(data, 'x')) }},
		{"another range", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 0-199/1000"}, data[:200])
		}},
		{"no Content-Range", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) { set(w, 206, nil, data[100:300]) }},
		{"odd Content-Range", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "100-299/1000"}, data[100:300])
		}},
		{"unknown length", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/*"}, data[100:300])
		}},
		{"another length", part, errs.Stale, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1001"}, data[100:300])
		}},
		{"too few bytes", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000"}, data[100:299])
		}},
		{"too many bytes", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000"}, data[100:301])
		}},
		{"chunked", part, errs.Unknown, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000"}, data[100:200])
			w.(http.Flusher).Flush()
			w.Write(data[200:300])
		}},
		{"chunked and short", part, errs.Unavailable, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000"}, data[100:200])
			w.(http.Flusher).Flush()
		}},
		{"chunked and long", part, errs.Corrupt, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000"}, data[100:200])
			w.(http.Flusher).Flush()
			w.Write(data[200:301])
		}},
		{"breaks off", part, errs.Unavailable, func(w http.ResponseWriter, _ *http.Request) {
			set(w, 206, map[string]string{"Content-Range": "bytes 100-299/1000", "Content-Length": "200"}, data[100:200])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		{"no content", part, errs.Stale, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }},
		{"not modified", part, errs.Unavailable, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }},
		{"412", part, errs.Stale, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 412, "PreconditionFailed", "no") }},
		{"416", part, errs.Stale, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 416, "InvalidRange", "no") }},
		{"404", part, errs.NotFound, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 404, "NoSuchKey", "no") }},
		{"404 of the bucket", part, errs.Unavailable, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 404, "NoSuchBucket", "no") }},
		{"403", part, errs.Permission, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 403, "AccessDenied", "no") }},
		{"bad key", part, errs.Permission, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 403, "InvalidAccessKeyId", "no") }},
		{"bad signature", part, errs.Permission, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 403, "SignatureDoesNotMatch", "no") }},
		{"another region", part, errs.Invalid, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 301, "PermanentRedirect", "no") }},
		{"archived", part, errs.Unsupported, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 403, "InvalidObjectState", "no") }},
		{"no S3 at all", part, errs.Invalid, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeStore(t, nil, tc.answer)
			got, err := readAll(t, s, obj, tc.extent)
			if tc.want != errs.Unknown {
				if errs.KindOf(err) != tc.want || err == nil {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if err != nil {
					checkMessage(t, err, "s3://bucket/k")
				}
				return
			}
			if err != nil {
				t.Error(err)
			} else if !bytes.Equal(got, data[tc.extent.Offset:tc.extent.End()]) {
				t.Errorf("other bytes: %d", len(got))
			}
		})
	}
}

// TestReadWithoutETag reads an object whose tag is its time and length.
func TestReadWithoutETag(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 1000)
	modified := "Mon, 02 Jan 2006 15:04:05 GMT"
	s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-Match") != "" || r.Header.Get("If-Unmodified-Since") != "Mon, 02 Jan 2006 15:04:06 GMT" {
			if r.Method == http.MethodGet {
				t.Errorf("conditions: %v", r.Header)
			}
		}
		if r.Method == http.MethodHead {
			w.Header().Set("Last-Modified", modified)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			return
		}
		answerObject(w, r, "", data)
	})
	info, err := s.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if info.Tag != "lm:1136214245:1000" || info.Unsettled {
		t.Errorf("got %+v", info)
	}
	if _, err := readAll(t, s, ufs.Object{Path: "k", Tag: info.Tag, Length: 1000}, block.Extent{Length: 10}); err != nil {
		t.Error(err)
	}
}

// TestReadWithoutETagReplaced has a server without ETags that ignores the
// condition on the time.
func TestReadWithoutETagReplaced(t *testing.T) {
	for _, tag := range []string{"lm:1136214244:1000", "lm:1136214245:999"} {
		s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
			answerObject(w, r, "", make([]byte, 1000)) // of 1136214245
		})
		length := int64(1000)
		if strings.HasSuffix(tag, "999") {
			length = 999
		}
		_, err := readAll(t, s, ufs.Object{Path: "k", Tag: tag, Length: length}, block.Extent{Length: 10})
		if !errors.Is(err, errs.Stale) {
			t.Errorf("%s: %v", tag, err)
		}
	}
}

func TestBodyBreaksOff(t *testing.T) {
	server := testenv.StartS3(t)
	b := server.Bucket(t, "bucket")
	data := bytes.Repeat([]byte("0123456789"), 100000)
	tag := b.Put(t, "k", data)
	proxy := testenv.Proxy(t, server.Endpoint)
	options := server.Options(t)
	options[optEndpoint] = proxy.Endpoint
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: options})
	obj := ufs.Object{Path: "k", Tag: tag, Length: int64(len(data))}

	proxy.Inject(func(_ *http.Request, op string) testenv.Fault {
		if op == testenv.OpGet {
			return testenv.Fault{Cut: 70000}
		}
		return testenv.Fault{}
	})
	got, err := readAll(t, s, obj, block.Extent{Offset: 5, Length: 500000})
	if errs.KindOf(err) != errs.Unavailable || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(got, data[5:5+len(got)]) || len(got) > 70000 {
		t.Errorf("%d bytes came", len(got))
	}
	proxy.Inject(nil)
	proxy.Reset()
	got, err = readAll(t, s, obj, block.Extent{Offset: 5, Length: 500000})
	if err != nil || !bytes.Equal(got, data[5:500005]) {
		t.Errorf("after the fault: %d bytes, %v", len(got), err)
	}
	if c := proxy.Snapshot(); c.Get != 1 || c.GetBytes != 500000 {
		t.Errorf("the server saw %+v", c)
	}
}

func TestRetries(t *testing.T) {
	server := testenv.StartS3(t)
	b := server.Bucket(t, "bucket")
	tag := b.Put(t, "k", []byte("hello"))
	proxy := testenv.Proxy(t, server.Endpoint)
	options := server.Options(t)
	options[optEndpoint] = proxy.Endpoint
	var c counts
	s := hasty(openStore(t, ufs.Config{URI: "s3://bucket", Options: options, Observer: &c}))
	obj := ufs.Object{Path: "k", Tag: tag, Length: 5}
	for _, fault := range []testenv.Fault{
		{Status: http.StatusServiceUnavailable, Code: "SlowDown"},
		{Status: http.StatusTooManyRequests, Code: "Odd"},
		{Status: http.StatusInternalServerError},
		{Disconnect: true},
	} {
		proxy.Reset()
		c.get.Store(0)
		c.fileBytes.Store(0)
		first := make(chan struct{}, 1)
		first <- struct{}{}
		proxy.Inject(func(*http.Request, string) testenv.Fault {
			select {
			case <-first:
				return fault
			default:
				return testenv.Fault{}
			}
		})
		got, err := readAll(t, s, obj, block.Extent{Length: 5})
		if err != nil || string(got) != "hello" {
			t.Errorf("%+v: %q, %v", fault, got, err)
		}
		// net/http itself asks again on a connection that was kept and broke.
		if n := proxy.Snapshot().Get; n != 2 || (c.get.Load() != 2 && !fault.Disconnect) || c.fileBytes.Load() != 5 {
			t.Errorf("%+v: the server saw %d requests, the observer %d and %d bytes", fault, n, c.get.Load(), c.fileBytes.Load())
		}
	}
	proxy.Inject(func(*http.Request, string) testenv.Fault {
		return testenv.Fault{Status: http.StatusInternalServerError}
	})
	c.get.Store(0)
	if _, err := readAll(t, s, obj, block.Extent{Length: 5}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	if c.get.Load() != maxAttempts {
		t.Errorf("%d attempts, want %d", c.get.Load(), maxAttempts)
	}
}

func TestEndpointDown(t *testing.T) {
	s := hasty(openStore(t, ufs.Config{URI: "s3://bucket/pre", Options: setKeys(t, "http://127.0.0.1:1")}))
	_, err := s.Stat(t.Context(), "k")
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	checkMessage(t, err, "s3://bucket/pre/k", "127.0.0.1:1")
}

func TestBodyStalls(t *testing.T) {
	s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"tag"`)
		w.Header().Set("Content-Length", "100")
		w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	s.guard.limit = 20 * time.Millisecond
	got, err := readAll(t, s, ufs.Object{Path: "k", Tag: "tag", Length: 100}, block.Extent{Length: 100})
	if len(got) != 10 || !errors.Is(err, errs.Unavailable) || !errors.Is(err, errStalled) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		status int
		code   string
		want   errs.Kind
	}{
		{http.StatusServiceUnavailable, "SlowDown", errs.Throttled},
		{http.StatusServiceUnavailable, "", errs.Throttled},
		{http.StatusTooManyRequests, "", errs.Throttled},
		{http.StatusInternalServerError, "InternalError", errs.Unavailable},
		{http.StatusBadGateway, "", errs.Unavailable},
		{http.StatusNotFound, "", errs.NotFound},
		{http.StatusNotFound, "NoSuchKey", errs.NotFound},
		{http.StatusNotFound, "NoSuchVersion", errs.NotFound},
		{http.StatusNotFound, "SomethingElse", errs.Unavailable},
		{http.StatusForbidden, "", errs.Permission},
		{http.StatusForbidden, "RequestTimeTooSkewed", errs.Permission},
		{http.StatusBadRequest, "ExpiredToken", errs.Permission},
		{http.StatusBadRequest, "AuthorizationHeaderMalformed", errs.Invalid},
		{http.StatusPreconditionFailed, "", errs.Stale},
	} {
		if got, _ := classify(tc.status, tc.code); got != tc.want {
			t.Errorf("%d %q is %v, want %v", tc.status, tc.code, got, tc.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for attempt := range 100 {
		for _, err := range []error{io.ErrUnexpectedEOF, &smithy.GenericAPIError{Code: "SlowDown"}} {
			wait, backoffErr := backoff(attempt, err)
			if backoffErr != nil || wait < failedWait/2 || wait > maxBackoff {
				t.Errorf("attempt %d: %v, %v", attempt, wait, backoffErr)
			}
		}
	}
}

// FuzzContentRange takes only the one header that says what was asked for.
func FuzzContentRange(f *testing.F) {
	for _, h := range []string{"bytes 100-299/1000", "bytes 100-299/*", "bytes */1000", "", "bytes 100-299/01000", "bytes  100-299/1000", "bytes bytes 100-299/1000"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, header string) {
		err := checkContentRange(header, ufs.Object{Length: 1000}, block.Extent{Offset: 100, Length: 200})
		if (err == nil) != (header == "bytes 100-299/1000") {
			t.Errorf("%q: %v", header, err)
		}
	})
}

// FuzzTag holds that a tag goes back into a header as it came, and that a tag
// is never empty.
func FuzzTag(f *testing.F) {
	f.Add(`"abc"`)
	f.Add(`W/"abc"`)
	f.Add("")
	f.Fuzz(func(t *testing.T, etag string) {
		tag := version{etag: etag, length: 1}.tag()
		strong, ok := strongTag(etag)
		if tag == "" || (ok && (strong != tag || (etag != tag && etag != `"`+tag+`"`))) {
			t.Errorf("%q: tag %q, strong %q", etag, tag, strong)
		}
		if again, same := strongTag(`"` + tag + `"`); ok && (!same || again != tag) {
			t.Errorf("%q: %q becomes %q", etag, tag, again)
		}
	})
}

// TestConnectionsAreKept reads many extents, to the end or just their bytes,
// on one connection.
func TestConnectionsAreKept(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 100000)
	var conns atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answerObject(w, r, `"tag"`, data)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, srv.URL)})
	obj := ufs.Object{Path: "k", Tag: "tag", Length: 100000}
	for i := range 20 {
		e := block.Extent{Offset: int64(i), Length: 70000}
		if i%2 == 0 {
			if _, err := readAll(t, s, obj, e); err != nil {
				t.Fatal(err)
			}
			continue
		}
		r, err := s.Read(t.Context(), obj, e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, e.Length)); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for one reader", n)
	}
}
