package s3fs

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// byTheSDK reports whether the SDK itself made a request.
func byTheSDK(r *http.Request) bool { return r.Header.Get("Amz-Sdk-Invocation-Id") != "" }

// getAll reads the object "k", four bytes of "data".
func getAll(t *testing.T, s *Store) error {
	t.Helper()
	r, err := s.Read(t.Context(), ufs.Object{Path: "k", Tag: "v", Length: 4}, block.Extent{Length: 4})
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err == nil && string(got) != "data" {
		t.Errorf("read %q", got)
	}
	return err
}

// A request that we make is the one that the SDK would have made.
func TestGetIsTheSDKs(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(base64.StdEncoding.EncodeToString(make([]byte, customerKeyBytes))), 0o600); err != nil {
		t.Fatal(err)
	}
	type request struct {
		URI    string
		Header http.Header
	}
	var got request
	var sdk bool
	endpoint := fakeEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		sdk = byTheSDK(r)
		got = request{strings.TrimSuffix(r.RequestURI, "?x-id=GetObject"), r.Header.Clone()}
		for name := range got.Header {
			switch name {
			case "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Authorization", "User-Agent", "X-Amz-Date":
				delete(got.Header, name)
			}
		}
		answerObject(w, r, `"v"`, make([]byte, 100))
	})
	for name, extra := range map[string]map[string]string{
		"plain":          {},
		"requester pays": {optRequesterPays: "true"},
		"customer's key": {optSSECKeyFile: keyFile},
		"anonymous":      {optAnonymous: "true"},
	} {
		t.Run(name, func(t *testing.T) {
			options := setKeys(t, endpoint)
			if name == "anonymous" {
				delete(options, optAccessKeyEnv)
				delete(options, optSecretKeyEnv)
			}
			maps.Copy(options, extra)
			s := hasty(openStore(t, ufs.Config{URI: "s3://bucket/pre fix", Options: options}))
			getter := s.getter
			for _, key := range []string{"k", "a/b c", "ü%41+&=;@,'()!*~", "q?x=1#f", "\\\x7f", "\xff\xfe"} {
				for _, tag := range []string{"v", tagTime + "1136214245:100"} {
					obj := ufs.Object{Path: key, Tag: tag, Length: 100}
					var requests [2]request
					for i := range requests {
						if s.getter = getter; i == 1 {
							s.getter = nil
						}
						r, err := s.Read(t.Context(), obj, block.Extent{Offset: 10, Length: 20})
						if err == nil {
							err = r.Close()
						}
						if err != nil && tag == "v" {
							t.Fatalf("%q: %v", key, err)
						}
						if sdk != (i == 1) {
							t.Fatalf("%q: request %d was made by the SDK: %v", key, i, sdk)
						}
						requests[i] = got
					}
					if diff := cmp.Diff(requests[1], requests[0]); diff != "" {
						t.Errorf("%q, tag %s (-the SDK +we):\n%s", key, tag, diff)
					}
				}
			}
		})
	}
}

// What is no success is the SDK's first attempt: there is none beside it.
func TestGetGoesOnWithTheSDK(t *testing.T) {
	for _, c := range []struct {
		name     string
		status   int // of the first answer; 0: the connection is cut
		code     string
		want     error
		attempts int
		again    bool // the next read begins without the SDK again
	}{
		{"not found", 404, "NoSuchKey", errs.NotFound, 1, true},
		{"changed", 412, "PreconditionFailed", errs.Stale, 1, true},
		{"throttled", 503, "SlowDown", nil, 2, true},
		{"too many", 429, "", nil, 2, true},
		{"broken", 500, "InternalError", nil, 2, true},
		{"cut", 0, "", nil, 2, true},
		{"refused", 400, "RequestTimeout", nil, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var bySDK []bool
			s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				bySDK = append(bySDK, byTheSDK(r))
				switch {
				case len(bySDK) > 1:
					answerObject(w, r, `"v"`, []byte("data"))
				case c.status == 0:
					panic(http.ErrAbortHandler)
				default:
					answerError(w, c.status, c.code, "no")
				}
			})
			if err := getAll(t, s); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if len(bySDK) != c.attempts || bySDK[0] || c.attempts > 1 && !bySDK[1] {
				t.Errorf("attempts by the SDK: %v, want %d, all but the first", bySDK, c.attempts)
			}
			if err := getAll(t, s); err != nil {
				t.Fatal(err)
			}
			if last := bySDK[len(bySDK)-1]; last == c.again {
				t.Errorf("the next read was made by the SDK: %v", last)
			}
		})
	}
}

// A directory bucket is signed for by sessions, which the SDK alone keeps.
func TestGetOfADirectoryBucketIsTheSDKs(t *testing.T) {
	options := setKeys(t, "")
	delete(options, optEndpoint)
	if s := openStore(t, ufs.Config{URI: "s3://name--usw2-az1--x-s3", Options: options}); s.getter != nil {
		t.Error("it is asked without the SDK")
	}
	if s := openStore(t, ufs.Config{URI: "s3://name", Options: options}); s.getter == nil {
		t.Error("a plain bucket is asked by the SDK alone")
	} else if s.getter.base.Host != "name.s3.us-east-1.amazonaws.com" {
		t.Errorf("host %s", s.getter.base.Host)
	}
}

// An attempt has one turn of the limit, also when the SDK takes its outcome.
func TestGetHandedOverHasOneTurn(t *testing.T) {
	var requests atomic.Int64
	options := setKeys(t, fakeEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		answerError(w, 404, "NoSuchKey", "no")
	}))
	options[ufs.OptionMaxRequests] = "0.01" // the next one in 100 s
	s := hasty(openStore(t, ufs.Config{URI: "s3://bucket", Options: options}))
	// The limiter refuses at once what would have to wait past the deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	obj := ufs.Object{Path: "k", Tag: "v", Length: 4}
	if _, err := s.Read(ctx, obj, block.Extent{Length: 4}); !errors.Is(err, errs.NotFound) {
		t.Errorf("first read: %v, want %v", err, errs.NotFound)
	}
	if _, err := s.Read(ctx, obj, block.Extent{Length: 4}); !errors.Is(err, errs.Timeout) {
		t.Errorf("second read: %v, want %v", err, errs.Timeout)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// closing is a body that says when it is closed.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

func TestOutcomeIsClosedUnlessTaken(t *testing.T) {
	for _, taken := range []bool{false, true} {
		b := &closing{}
		o := &outcome{resp: &http.Response{Body: b}, taken: taken}
		if err := o.close(); err != nil || b.closed == taken {
			t.Errorf("taken: %v, closed: %v, error: %v", taken, b.closed, err)
		}
	}
	for _, o := range []*outcome{nil, {err: io.EOF}} {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	}
}

// A small read allocates what the request and its answer need, not what the
// SDK's middleware does.
func TestGetAllocatesLittle(t *testing.T) {
	data := make([]byte, 100)
	s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) { answerObject(w, r, `"v"`, data) })
	getter := s.getter
	allocations := func() float64 {
		return testing.AllocsPerRun(50, func() {
			r, err := s.Read(t.Context(), ufs.Object{Path: "k", Tag: "v", Length: 100}, block.Extent{Length: 100})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			r.Close()
		})
	}
	without := allocations()
	s.getter = nil
	with := allocations()
	if s.getter = getter; without > with/2 {
		t.Errorf("%v allocations, and %v by the SDK", without, with)
	}
}
