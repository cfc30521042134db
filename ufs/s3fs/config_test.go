package s3fs

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/testenv"
	"millrace/ufs"
)

// checkMessage holds a message against what it must and must not say.
func checkMessage(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the message %q does not say %q", err, p)
		}
	}
	for _, secret := range []string{testSecretKey, "Signature=", "Authorization"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the message %q says %q", err, secret)
		}
	}
}

func TestOpenInvalid(t *testing.T) {
	for _, tc := range []struct {
		name, uri string
		options   map[string]string
		want      string
	}{
		{"scheme", "http://bucket", nil, "s3://BUCKET"},
		{"no bucket", "s3://", nil, "bucket name"},
		{"odd bucket", "s3://a?b", nil, "bucket name"},
		{"dots", "s3://..", nil, "bucket name"},
		{"prefix", "s3://b/a//b", nil, "prefix"},
		{"prefix up", "s3://b/a/../..", nil, "prefix"},
		{"unknown option", "s3://b", map[string]string{"enpoint": "http://x"}, `"enpoint"`},
		{"secret in option", "s3://b", map[string]string{"secret_key": testSecretKey}, `"secret_key"`},
		{"endpoint", "s3://b", map[string]string{"endpoint": "127.0.0.1:80"}, "endpoint"},
		{"endpoint scheme", "s3://b", map[string]string{"endpoint": "ftp://x"}, "endpoint"},
		{"endpoint with password", "s3://b", map[string]string{"endpoint": "http://u:" + "tOpSeCrEt%2Fdo" + "@x"}, "endpoint"},
		{"path_style", "s3://b", map[string]string{"path_style": "yes please"}, "path_style"},
		{"anonymous", "s3://b", map[string]string{"anonymous": "2"}, "anonymous"},
		{"connections", "s3://b", map[string]string{"connections": "0"}, "connections"},
		{"half of env", "s3://b", map[string]string{"access_key_env": "A"}, "secret_key_env"},
		{"anonymous and keys", "s3://b", map[string]string{"anonymous": "true", "profile": "x"}, "anonymous"},
		{"env and profile", "s3://b", map[string]string{"access_key_env": "A", "secret_key_env": "B", "profile": "x"}, "exclude"},
		{"requester_pays", "s3://b", map[string]string{"requester_pays": "maybe"}, "requester_pays"},
		{"nobody to pay", "s3://b", map[string]string{"requester_pays": "true", "anonymous": "true"}, "requester_pays"},
		{"limit", "s3://b", map[string]string{"max_requests": "-1"}, "max_requests"},
		{"no file", "s3://b", map[string]string{"credentials_file": "/nowhere/at/all"}, "/nowhere/at/all"},
		{"no profile", "s3://b", map[string]string{"credentials_file": "/dev/null", "profile": "nobody"}, "nobody"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Open(t.Context(), ufs.Config{URI: tc.uri, Options: tc.options})
			if !errors.Is(err, errs.Invalid) {
				t.Fatalf("got %v", err)
			}
			checkMessage(t, err, tc.want)
			if strings.Contains(err.Error(), "tOpSeCrEt") {
				t.Errorf("the message %q holds the password", err)
			}
		})
	}
}

func TestOpenValid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id=FROMFILE\naws_secret_access_key=x\n[other]\naws_access_key_id=FROMOTHER\naws_secret_access_key=y\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_ACCESS_KEY_ID", "FROMENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "z")
	t.Setenv("AWS_ENDPOINT_URL", "http://localhost:9")
	t.Setenv("AWS_REGION", "eu-west-9")
	t.Setenv("KEY_A", "FROMNAMED")
	t.Setenv("KEY_S", "s")
	for _, tc := range []struct {
		name    string
		options map[string]string
		key     string
		path    bool
	}{
		{"the SDK's chain", nil, "FROMENV", true},
		{"profile", map[string]string{"profile": "other"}, "FROMOTHER", true},
		{"file", map[string]string{"credentials_file": file}, "FROMFILE", true},
		{"file and profile", map[string]string{"credentials_file": file, "profile": "other"}, "FROMOTHER", true},
		{"named variables", map[string]string{"access_key_env": "KEY_A", "secret_key_env": "KEY_S"}, "FROMNAMED", true},
		{"host endpoint", map[string]string{"endpoint": "https://s3.example.com"}, "FROMENV", false},
		{"host endpoint by path", map[string]string{"endpoint": "https://s3.example.com", "path_style": "true"}, "FROMENV", true},
		{"endpoint of one label", map[string]string{"endpoint": "http://minio:9000"}, "FROMENV", true},
		{"endpoint of one label by host", map[string]string{"endpoint": "http://minio:9000", "path_style": "false"}, "FROMENV", false},
		{"IP endpoint", map[string]string{"endpoint": "http://[::1]:80"}, "FROMENV", true},
		{"IP endpoint by host", map[string]string{"endpoint": "http://10.0.0.1", "path_style": "false"}, "FROMENV", false},
		{"generic options", map[string]string{"ttl": "5s", "freshness": "never", "block_size": "1MiB", "connections": "7"}, "FROMENV", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openStore(t, ufs.Config{URI: "s3://bucket/a b/%41/", Options: tc.options})
			o := s.client.Options()
			v, err := o.Credentials.Retrieve(t.Context())
			if err != nil || v.AccessKeyID != tc.key {
				t.Errorf("the access key is %q, %v; want %q", v.AccessKeyID, err, tc.key)
			}
			if o.UsePathStyle != tc.path || o.Region != "eu-west-9" {
				t.Errorf("path style %v, region %q", o.UsePathStyle, o.Region)
			}
			if s.prefix != "a b/%41/" || s.uri != "s3://bucket/a b/%41" {
				t.Errorf("prefix %q, URI %q", s.prefix, s.uri)
			}
		})
	}
}

// noCredentials makes the SDK's chain find nothing.
func noCredentials(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
}

func TestNoCredentials(t *testing.T) {
	noCredentials(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: map[string]string{"endpoint": "http://127.0.0.1:1"}})
	_, err := s.Stat(t.Context(), "k")
	if !errors.Is(err, errs.Permission) {
		t.Fatalf("got %v", err)
	}
	checkMessage(t, err, "no credentials", "AWS_ACCESS_KEY_ID", "s3://bucket/k")
}

// TestNoCredentialsAndSilentMetadata has a metadata service that never
// answers: it is asked once, not once per retry.
func TestNoCredentialsAndSilentMetadata(t *testing.T) {
	noCredentials(t)
	asked := make(chan struct{}, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", srv.URL)
	var c counts
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: map[string]string{"endpoint": "http://127.0.0.1:1"}, Observer: &c})
	if len(asked) != 0 {
		t.Error("Open asked the metadata service")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := s.Stat(ctx, "k")
	if !errors.Is(err, errs.Permission) || c.head.Load() != 0 {
		t.Errorf("got %v after %d requests", err, c.head.Load())
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestMissingNamedVariable(t *testing.T) {
	t.Setenv("MILLRACE_TEST_SECRET", testSecretKey)
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: map[string]string{
		"endpoint": "http://127.0.0.1:1", "access_key_env": "MILLRACE_TEST_NONE", "secret_key_env": "MILLRACE_TEST_SECRET",
	}})
	_, err := s.Stat(t.Context(), "k")
	if !errors.Is(err, errs.Permission) {
		t.Fatalf("got %v", err)
	}
	checkMessage(t, err, "MILLRACE_TEST_NONE")
}

func TestAnonymous(t *testing.T) {
	noCredentials(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("an anonymous request is signed")
		}
		w.Header().Set("ETag", `"tag"`)
		w.Header().Set("Content-Length", "3")
	}))
	defer srv.Close()
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: map[string]string{"endpoint": srv.URL, "anonymous": "true"}})
	info, err := s.Stat(t.Context(), "k")
	if err != nil || info.Tag != "tag" || info.Size != 3 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestErrorsOfARealServer(t *testing.T) {
	server := testenv.StartS3(t)
	right := openStore(t, ufs.Config{URI: "s3://no-such-bucket", Options: server.Options(t)})
	// The root is not there; of a file in it nobody can say that it is gone.
	for path, want := range map[string]errs.Kind{"": errs.NotFound, "k": errs.Unavailable} {
		_, err := right.Stat(t.Context(), path)
		if !errors.Is(err, want) {
			t.Errorf("no bucket: %v, want %v", err, want)
		}
		checkMessage(t, err, "s3://no-such-bucket", "the bucket does not exist")
	}
	_, err := readAll(t, right, ufs.Object{Path: "k", Tag: "t", Length: 1}, block.Extent{Length: 1})
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("a file of no bucket: %v", err)
	}
	s := openStore(t, ufs.Config{URI: "s3://bucket", Options: setKeys(t, server.Endpoint)})
	_, err = s.Stat(t.Context(), "k")
	if !errors.Is(err, errs.Permission) {
		t.Errorf("a wrong key: %v", err)
	}
	checkMessage(t, err, "s3://bucket/k")
	for _, err := range s.List(t.Context(), "d", ufs.ListOptions{}) {
		if !errors.Is(err, errs.Permission) {
			t.Errorf("a wrong key: %v", err)
		}
		checkMessage(t, err, "s3://bucket/d", "check the")
	}
}
