package s3fs

import (
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

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
func setKeys(t *testing.T, endpoint string) map[string]string {
	t.Helper()
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("MILLRACE_TEST_ACCESS", testAccessKey)
	t.Setenv("MILLRACE_TEST_SECRET", testSecretKey)
	return map[string]string{
		optEndpoint: endpoint, optRegion: "us-east-1",
		optAccessKeyEnv: "MILLRACE_TEST_ACCESS", optSecretKeyEnv: "MILLRACE_TEST_SECRET",
	}
}

// fakeStore is a store of s3://bucket before a server that answers as the
// test likes.
func fakeStore(t *testing.T, observer ufs.Observer, handler http.HandlerFunc) *Store {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, srv.URL), Observer: observer})
}

func openStore(t *testing.T, cfg ufs.Config) *Store {
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

// fakeBucket answers listings as S3 would for these keys, and a HEAD for each.
func fakeBucket(keys ...string) http.HandlerFunc {
	type object struct {
		Key          string `xml:"Key"`
		ETag         string `xml:"ETag"`
		LastModified string `xml:"LastModified"`
		Size         string `xml:"Size"`
	}
	type common struct {
		Prefix string `xml:"Prefix"`
	}
	type answer struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool     `xml:"IsTruncated"`
		EncodingType          string   `xml:"EncodingType"`
		NextContinuationToken string   `xml:"NextContinuationToken,omitempty"`
		Contents              []object `xml:"Contents"`
		CommonPrefixes        []common `xml:"CommonPrefixes"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.Method == http.MethodHead {
			for _, k := range keys {
				if strings.TrimPrefix(r.URL.Path, "/bucket/") == k {
					w.Header().Set("ETag", `"tag"`)
					w.Header().Set("Content-Length", "1")
					return
				}
			}
			w.WriteHeader(http.StatusNotFound)
			return
		}
		limit, _ := strconv.Atoi(q.Get("max-keys"))
		out := answer{EncodingType: "url"}
		from, done := q.Get("start-after"), ""
		if token := q.Get("continuation-token"); token != "" {
			from = token[1:]
			if token[0] == 'p' {
				done = from // all below this prefix was told
			}
		}
		n, last, token := 0, "", ""
		for _, k := range keys {
			rest, ok := strings.CutPrefix(k, q.Get("prefix"))
			if !ok || (from != "" && k <= from) || (done != "" && strings.HasPrefix(k, done)) {
				continue
			}
			prefix := ""
			if d := q.Get("delimiter"); d != "" {
				if i := strings.Index(rest, d); i >= 0 {
					prefix = q.Get("prefix") + rest[:i+1]
				}
			}
			if prefix != "" && prefix == last {
				continue
			}
			if n == limit {
				out.IsTruncated, out.NextContinuationToken = true, token
				break
			}
			n++
			if prefix != "" {
				last, token = prefix, "p"+prefix
				out.CommonPrefixes = append(out.CommonPrefixes, common{url.QueryEscape(prefix)})
				continue
			}
			token = "k" + k
			out.Contents = append(out.Contents, object{url.QueryEscape(k), `"tag"`, "2006-01-02T15:04:05.678Z", "1"})
		}
		if err := xml.NewEncoder(w).Encode(out); err != nil {
			panic(err)
		}
	}
}
