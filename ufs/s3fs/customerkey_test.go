package s3fs

import (
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// seen remembers the headers of requests.
type seen struct {
	mu      sync.Mutex
	headers map[string]http.Header // by operation
}

func (s *seen) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Method == http.MethodHead:
		s.headers[opHead] = r.Header
		w.Header().Set("ETag", `"t"`)
		w.Header().Set("Content-Length", "10")
	case r.URL.Query().Has("list-type"):
		s.headers[opList] = r.Header
		w.Write([]byte("<ListBucketResult></ListBucketResult>"))
	default:
		s.headers[opGet] = r.Header
		answerObject(w, r, `"t"`, make([]byte, 10))
	}
}

// ask does one of each request.
func (s *seen) ask(t *testing.T, store *Store) {
	t.Helper()
	s.headers = map[string]http.Header{}
	if _, err := store.Stat(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if _, err := collect(t, store, "", ufs.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := readAll(t, store, ufs.Object{Path: "k", Tag: "t", Length: 10}, block.Extent{Length: 5}); err != nil {
		t.Error(err)
	}
}

func TestRequesterPays(t *testing.T) {
	for _, pays := range []string{"", "true", "false"} {
		var saw seen
		options := setKeys(t, fakeEndpoint(t, saw.serve))
		options[optRequesterPays] = pays
		saw.ask(t, openStore(t, ufs.Config{URI: "s3://bucket", Options: options}))
		want := ""
		if pays == "true" {
			want = "requester"
		}
		for _, op := range []string{opGet, opHead, opList} {
			if got := saw.headers[op].Get("X-Amz-Request-Payer"); got != want {
				t.Errorf("requester_pays=%s: %s says %q", pays, op, got)
			}
			if signed := strings.Contains(saw.headers[op].Get("Authorization"), "x-amz-request-payer"); signed != (want != "") {
				t.Errorf("requester_pays=%s: %s is signed as %s", pays, op, saw.headers[op].Get("Authorization"))
			}
		}
	}
}

// testCustomerKey is a key of 32 bytes; no message may repeat it.
const testCustomerKey = "0123456789-CUSTOMER-KEY-abcdefgh"

func TestCustomerKey(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte(testCustomerKey))
	sum := md5.Sum([]byte(testCustomerKey))
	dir := t.TempDir()
	for name, data := range map[string]string{"raw": testCustomerKey, "base64": encoded + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("MILLRACE_TEST_SSEC", encoded)
	var saw seen
	endpoint := fakeEndpoint(t, saw.serve)
	for _, option := range [][2]string{
		{optSSECKeyFile, filepath.Join(dir, "raw")},
		{optSSECKeyFile, filepath.Join(dir, "base64")},
		{optSSECKeyEnv, "MILLRACE_TEST_SSEC"},
	} {
		options := setKeys(t, endpoint)
		options[option[0]] = option[1]
		s := openStore(t, ufs.Config{URI: "s3://bucket", Options: options})
		saw.ask(t, s)
		for _, op := range []string{opGet, opHead, opList} {
			want := map[string]string{
				"X-Amz-Server-Side-Encryption-Customer-Algorithm": "AES256",
				"X-Amz-Server-Side-Encryption-Customer-Key":       encoded,
				"X-Amz-Server-Side-Encryption-Customer-Key-Md5":   base64.StdEncoding.EncodeToString(sum[:]),
			}
			for header, v := range want {
				if op == opList {
					v = ""
				}
				if got := saw.headers[op].Get(header); got != v {
					t.Errorf("%v: %s of %s is %q, want %q", option, header, op, got, v)
				}
			}
		}
		for _, text := range []string{fmt.Sprint(s.customerKey), fmt.Sprintf("%+v %#v", s.customerKey, s.customerKey)} {
			if strings.Contains(text, encoded) {
				t.Errorf("the key shows itself: %s", text)
			}
		}
	}
}

func TestCustomerKeyInvalid(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("CUSTOMER-KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(testCustomerKey))
	t.Setenv("MILLRACE_TEST_SSEC", encoded)
	t.Setenv("MILLRACE_TEST_LONG", encoded+encoded)
	t.Setenv("MILLRACE_TEST_NONE", "")
	for _, tc := range []struct {
		endpoint string
		options  map[string]string
		want     string
	}{
		{"", map[string]string{optSSECKeyFile: short}, "32 bytes"},
		{"", map[string]string{optSSECKeyFile: "/nowhere/key"}, "/nowhere/key"},
		{"", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_NONE"}, "MILLRACE_TEST_NONE"},
		{"", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_LONG"}, "32 bytes"},
		{"", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_SSEC", optSSECKeyFile: short}, "exclude"},
		{"", map[string]string{"sse_c_key": testCustomerKey}, `"sse_c_key"`},
		{"http://s3.example.com", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_SSEC"}, "https"},
		{"http://10.0.0.1", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_SSEC"}, "https"},
		{"https://s3.example.com", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_SSEC"}, ""},
		{"http://localhost:1", map[string]string{optSSECKeyEnv: "MILLRACE_TEST_SSEC"}, ""},
	} {
		options := setKeys(t, tc.endpoint)
		maps.Copy(options, tc.options)
		s, err := open(t.Context(), ufs.Config{URI: "s3://bucket", Options: options})
		if tc.want == "" {
			if err != nil {
				t.Error(err)
			} else if err := s.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", tc.options, err)
			continue
		}
		checkMessage(t, err, tc.want)
		for _, secret := range []string{"CUSTOMER-KEY", encoded} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%v shows the key", err)
			}
		}
	}
}

// TestCustomerKeyIsMissing has an object that is encrypted with a key, of which
// the mount does not know.
func TestCustomerKeyIsMissing(t *testing.T) {
	s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		answerError(w, http.StatusBadRequest, "InvalidRequest", "The object was stored using a form of Server Side Encryption.")
	})
	_, err := s.Stat(t.Context(), "k")
	checkMessage(t, err, "s3://bucket/k", "sse_c_key_file")
	_, err = readAll(t, s, ufs.Object{Path: "k", Tag: "t", Length: 1}, block.Extent{Length: 1})
	if !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	}
	checkMessage(t, err, "s3://bucket/k", "sse_c_key_file", "Server Side Encryption")
}
