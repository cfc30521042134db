package s3fs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// attempt does one of each call and returns their errors.
func attempt(t *testing.T, s *Store) map[string]error {
	t.Helper()
	_, statErr := s.Stat(t.Context(), "k")
	_, readErr := readAll(t, s, ufs.Object{Path: "k", Tag: "t", Length: 10}, block.Extent{Length: 10})
	_, listErr := collect(t, s, "d", ufs.ListOptions{})
	return map[string]error{"Stat": statErr, "Read": readErr, "List": listErr}
}

// TestKinds has every kind of error that a server's answer can mean, by every
// call.
func TestKinds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		code   string
		want   errs.Kind
		hint   string
	}{
		{"not found", http.StatusNotFound, "NoSuchKey", errs.NotFound, ""},
		{"permission", http.StatusForbidden, "AccessDenied", errs.Permission, "requester_pays"},
		{"changed", http.StatusPreconditionFailed, "PreconditionFailed", errs.Stale, ""},
		{"throttled", http.StatusServiceUnavailable, "SlowDown", errs.Throttled, ""},
		{"throttled otherwise", http.StatusTooManyRequests, "TooManyRequests", errs.Throttled, ""},
		{"unavailable", http.StatusInternalServerError, "InternalError", errs.Unavailable, ""},
		{"archived", http.StatusForbidden, "InvalidObjectState", errs.Unsupported, "restore"},
		{"bucket", http.StatusNotFound, codeNoSuchBucket, errs.Unavailable, "bucket does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeStore(t, nil, func(w http.ResponseWriter, _ *http.Request) { answerError(w, tc.status, tc.code, "no") })
			for call, err := range attempt(t, s) {
				if err == nil || errs.KindOf(err) != tc.want {
					// A HEAD's answer has no code, so that the word on the bucket
					// or the archive is the next request's, if there is one.
					if call == "Stat" && tc.want == errs.Unsupported && errors.Is(err, errs.Permission) {
						continue
					}
					t.Errorf("%s: %v, want %v", call, err, tc.want)
					continue
				}
				checkMessage(t, err, "s3://bucket/")
				if call == "Read" {
					checkMessage(t, err, tc.hint)
				}
			}
		})
	}
}

// TestThrottledForLong has a server that refuses so often that the SDK's
// retryer runs out of its quota: the errors stay what they are.
func TestThrottledForLong(t *testing.T) {
	s := fakeStore(t, nil, func(w http.ResponseWriter, _ *http.Request) { answerError(w, 503, "SlowDown", "slow down") })
	for range 60 {
		if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, errs.Throttled) {
			t.Fatalf("got %v", err)
		}
	}
}

// TestLimitsCountAttempts has a limit that a retry has to wait for.
func TestLimitsCountAttempts(t *testing.T) {
	var asked atomic.Int64
	options := setKeys(t, fakeEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		answerError(w, http.StatusInternalServerError, "InternalError", "no")
	}))
	options[ufs.OptionMaxRequests] = "0.02"
	s := hasty(openStore(t, ufs.Config{URI: "s3://bucket", Options: options}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := s.Stat(ctx, "k")
	if !errors.Is(err, errs.Timeout) || asked.Load() != 1 {
		t.Fatalf("%v after %d requests", err, asked.Load())
	}
	checkMessage(t, err, "s3://bucket/k", "max_requests")
}

// TestRetryAfter sees that a server is waited for as long as it says.
func TestRetryAfter(t *testing.T) {
	for _, tc := range []struct {
		status   int
		code     string
		header   string
		from, to time.Duration
	}{
		{http.StatusServiceUnavailable, "SlowDown", "7", 7 * time.Second, 7 * time.Second},
		{http.StatusTooManyRequests, "", "3", 3 * time.Second, maxBackoff},
		{http.StatusTooManyRequests, "", "100000000000", maxRetryAfter, maxRetryAfter},
		{http.StatusTooManyRequests, "", "86400", maxRetryAfter, maxRetryAfter},
		{http.StatusServiceUnavailable, "SlowDown", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), maxRetryAfter, maxRetryAfter},
		{http.StatusServiceUnavailable, "SlowDown", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), throttleWait / 2, maxBackoff},
		{http.StatusServiceUnavailable, "SlowDown", "-5", throttleWait / 2, maxBackoff},
		{http.StatusServiceUnavailable, "SlowDown", "soon", throttleWait / 2, maxBackoff},
		{http.StatusServiceUnavailable, "SlowDown", "", throttleWait / 2, maxBackoff},
		{http.StatusInternalServerError, "InternalError", "2", 2 * time.Second, 2 * time.Second},
	} {
		s := fakeStore(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", tc.header)
			answerError(w, tc.status, tc.code, "slow down")
		})
		var waits []time.Duration
		s.pause = func(attempt int, err error) (time.Duration, error) {
			d, err := backoff(attempt, err)
			waits = append(waits, d)
			return 0, err
		}
		if _, err := readAll(t, s, ufs.Object{Path: "k", Tag: "t", Length: 1}, block.Extent{Length: 1}); err == nil {
			t.Error("no error")
		}
		if len(waits) != maxAttempts-1 {
			t.Errorf("Retry-After %q: %d waits", tc.header, len(waits))
		}
		for _, d := range waits {
			if d < tc.from || d > tc.to {
				t.Errorf("%d with Retry-After %q: waits %v, want %v to %v", tc.status, tc.header, d, tc.from, tc.to)
			}
		}
	}
}

// serverCertificate returns a certificate that signs itself, for a host, and
// the PEM of it.
func serverCertificate(t *testing.T, host string, until time.Time) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// tlsServer answers every request with an object of three bytes; a nil
// certificate is for plain HTTP.
func tlsServer(t *testing.T, certificate *tls.Certificate) (address string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"tag"`)
		w.Header().Set("Content-Length", "3")
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshakes have to fail
	if certificate == nil {
		srv.Start()
	} else {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12}
		srv.StartTLS()
	}
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// TestTLS has endpoints whose scheme or certificate is wrong: one attempt, and
// a word on what to do.
func TestTLS(t *testing.T) {
	good, ca := serverCertificate(t, "localhost", time.Now().Add(24*time.Hour))
	other, otherCA := serverCertificate(t, "s3.example.com", time.Now().Add(24*time.Hour))
	old, oldCA := serverCertificate(t, "localhost", time.Now().Add(-time.Hour))
	for _, tc := range []struct {
		name        string
		certificate *tls.Certificate
		scheme      string
		trusted     []byte
		want        string // of the hint; "" is success
	}{
		{"right", &good, "https", ca, ""},
		{"https to http", nil, "https", ca, "does not speak TLS"},
		{"http to https", &good, "http", ca, "speak https"},
		{"unknown authority", &good, "https", otherCA, "AWS_CA_BUNDLE"},
		{"another host", &other, "https", otherCA, "for another host"},
		{"expired", &old, "https", oldCA, "out of date"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bundle := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(bundle, tc.trusted, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CA_BUNDLE", bundle)
			_, port, _ := strings.Cut(tlsServer(t, tc.certificate), ":")
			endpoint := tc.scheme + "://localhost:" + port
			var c counts
			s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, endpoint), Observer: &c})
			s.pause = func(_ int, err error) (time.Duration, error) {
				if tc.scheme == "https" { // the other may reset the connection
					t.Errorf("another attempt after %v", err)
				}
				return 0, nil
			}
			_, err := s.Stat(t.Context(), "k")
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if n := c.head.Load(); n != 1 {
				t.Errorf("%d attempts", n)
			}
			for call, err := range attempt(t, s) {
				if err == nil {
					t.Errorf("%s: no error", call)
					continue
				}
				checkMessage(t, err, tc.want)
			}
			if kind := errs.KindOf(err); kind != errs.Unavailable && (tc.scheme == "https" || kind != errs.Invalid) {
				t.Errorf("%v is %v", err, kind)
			}
			checkMessage(t, err, "s3://bucket/k", tc.want)
			if tc.scheme == "https" {
				checkMessage(t, err, endpoint)
			}
		})
	}
}

// TestBlackHole has an endpoint that takes connections and never answers, over
// plain HTTP and over TLS. One attempt, with the time that it may take.
func TestBlackHole(t *testing.T) {
	address := testenv.BlackHole(t)
	for _, scheme := range []string{"http", "https"} {
		s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, scheme+"://"+address)})
		if s.transport.ResponseHeaderTimeout != headerTimeout || s.transport.TLSHandshakeTimeout != tlsTimeout {
			t.Error("the transport has other bounds than those of this package")
		}
		s.transport.ResponseHeaderTimeout = 50 * time.Millisecond
		s.transport.TLSHandshakeTimeout = 50 * time.Millisecond
		s.pause = func(_ int, err error) (time.Duration, error) {
			t.Errorf("another attempt after %v", err)
			return 0, nil
		}
		for call, err := range attempt(t, s) {
			if !errors.Is(err, errs.Unavailable) {
				t.Errorf("%s: %v", call, err)
				continue
			}
			checkMessage(t, err, "s3://bucket/", address, "does not answer")
		}
	}
}

// TestListStalls has a server whose listing, and whose error document, stops
// in the middle.
func TestListStalls(t *testing.T) {
	var status atomic.Int64
	s := fakeStore(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(int(status.Load()))
		w.Write([]byte("<ListBucketResult><Contents>"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	s.guard.limit = 20 * time.Millisecond
	for _, code := range []int{http.StatusOK, http.StatusForbidden} {
		status.Store(int64(code))
		_, err := collect(t, s, "d", ufs.ListOptions{})
		if !errors.Is(err, errs.Unavailable) {
			t.Errorf("%d: %v", code, err)
			continue
		}
		checkMessage(t, err, "s3://bucket/d", s.endpoint, "does not answer")
	}
}

// TestListIsCanceled has a consumer that gives up while a page is waited for.
func TestListIsCanceled(t *testing.T) {
	s := fakeStore(t, nil, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	for _, err := range s.List(ctx, "", ufs.ListOptions{}) {
		if !errors.Is(err, errs.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

// TestConnectionsAreProbed: a connection whose other end is gone without a word
// does not last for as long as an answer may take.
func TestConnectionsAreProbed(t *testing.T) {
	ln := testenv.BlackHole(t)
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, "http://"+ln)})
	conn, err := s.transport.DialContext(t.Context(), "tcp", ln)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	get := func(option int) (n int) {
		if e := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return n
	}
	gone := time.Duration(get(unix.TCP_KEEPIDLE)+get(unix.TCP_KEEPCNT)*get(unix.TCP_KEEPINTVL)) * time.Second
	unheard := time.Duration(get(unix.TCP_USER_TIMEOUT)) * time.Millisecond
	if gone != silence || unheard != silence {
		t.Errorf("a connection without another end lasts %v, one that does not take what is sent %v, want %v", gone, unheard, silence)
	}
}
