package s3fs

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/testenv"
	"millrace/ufs"
)

// counts is an observer.
type counts struct{ get, head, list, fileBytes, listBytes atomic.Int64 }

func (c *counts) Request(op string) {
	switch op {
	case opGet:
		c.get.Add(1)
	case opHead:
		c.head.Add(1)
	case opList:
		c.list.Add(1)
	}
}
func (c *counts) FileBytes(n int64) { c.fileBytes.Add(n) }
func (c *counts) ListBytes(n int64) { c.listBytes.Add(n) }

// The keys that tests sign with; no message may repeat the secret.
const (
	testAccessKey = "AKIDMILLRACETEST"
	testSecretKey = "tOpSeCrEt/do+not+print/0123456789"
)

// setKeys puts the keys into the environment and names them in options.
func setKeys(t testing.TB, endpoint string) map[string]string {
	t.Helper()
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("MILLRACE_TEST_ACCESS", testAccessKey)
	t.Setenv("MILLRACE_TEST_SECRET", testSecretKey)
	return map[string]string{
		optEndpoint: endpoint, optRegion: "us-east-1",
		optAccessKeyEnv: "MILLRACE_TEST_ACCESS", optSecretKeyEnv: "MILLRACE_TEST_SECRET",
	}
}

// hasty waits for nothing between attempts.
func hasty(s *Store) *Store {
	s.pause = func(int, error) (time.Duration, error) { return 0, nil }
	return s
}

// fakeStore is a hasty store of s3://bucket before a server that answers as
// the test likes.
func fakeStore(t testing.TB, observer ufs.Observer, handler http.HandlerFunc) *Store {
	t.Helper()
	return hasty(openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, fakeEndpoint(t, handler)), Observer: observer}))
}

// fakeEndpoint is the endpoint of a server that answers as the test likes.
func fakeEndpoint(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return srv.URL
}

func openStore(t testing.TB, cfg ufs.Config) *Store {
	t.Helper()
	s, err := open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// answerError answers as S3 does.
func answerError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Amz-Request-Id", "REQ1")
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	w.Write([]byte("<Error><Code>" + code + "</Code><Message>" + message + "</Message></Error>"))
}

// answerObject answers a GET rightly.
func answerObject(w http.ResponseWriter, r *http.Request, etag string, data []byte) {
	first, last := 0, len(data)-1
	if rng, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		a, b, _ := strings.Cut(rng, "-")
		first, _ = strconv.Atoi(a)
		last, _ = strconv.Atoi(b)
		w.Header().Set("Content-Range", "bytes "+rng+"/"+strconv.Itoa(len(data)))
	}
	w.Header().Set("ETag", etag)
	w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
	w.Header().Set("Content-Length", strconv.Itoa(last-first+1))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(data[first : last+1])
}

// memoryStore is a store of s3://bucket on a server that holds these keys.
func memoryStore(t *testing.T, observer ufs.Observer, keys testenv.KeySet) *Store {
	t.Helper()
	m := testenv.StartMemoryS3(t)
	m.SetBucket("bucket", keys)
	return openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, m.Endpoint), Observer: observer})
}
