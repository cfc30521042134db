package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/bench/rig"
	"millrace/internal/testenv"
)

// says requires an error whose text has all the parts, upper and lower case
// alike: the path, the cause, and what to do.
func says(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(part)) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

// upAt tries `up` on a bucket at an endpoint, which fails, and returns how.
func upAt(t *testing.T, endpoint string, env ...string) error {
	t.Helper()
	c := cli{t: t, env: append([]string{
		"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_PROFILE=", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_ENDPOINT_URL=" + endpoint,
	}, env...)}
	dir := filepath.Join(t.TempDir(), "data")
	out, err := c.try("up", "s3://some-bucket", "--data-dir", dir, "--random-ports")
	if out != "" {
		t.Errorf("up printed %q", out)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory of an up that failed: %v, want none", err)
	}
	return err
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Nothing listens at the endpoint.
func TestEndpointDown(t *testing.T) {
	t.Parallel()
	l := listen(t)
	l.Close()
	says(t, upAt(t, "http://"+l.Addr().String()), "s3://some-bucket", "connection refused", "is the endpoint right")
}

// The endpoint takes connections and never answers.
func TestEndpointIsABlackHole(t *testing.T) {
	t.Parallel()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	says(t, upAt(t, "http://"+l.Addr().String()), "s3://some-bucket", "timed out", "is the endpoint right")
}

// The endpoint speaks TLS and is asked in clear, or the other way round, or
// shows a certificate of nobody.
func TestTLSMismatch(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer secure.Close()
	t.Run("https at a plain server", func(t *testing.T) {
		says(t, upAt(t, strings.Replace(plain.URL, "http:", "https:", 1)), "s3://some-bucket", "HTTP response to HTTPS client", "endpoint")
	})
	t.Run("http at a TLS server", func(t *testing.T) {
		says(t, upAt(t, strings.Replace(secure.URL, "https:", "http:", 1)), "s3://some-bucket", "HTTP 400")
	})
	t.Run("unknown certificate", func(t *testing.T) {
		says(t, upAt(t, secure.URL), "s3://some-bucket", "certificate", "endpoint")
	})
}

// impatient settings let a read that cannot succeed fail soon, and yet after
// all attempts of a worker that S3 tells to slow down, on a busy machine too.
func impatient() []string {
	return []string{"MILLRACE_CLIENT_READ_RETRY_FOR=26s", "MILLRACE_CLIENT_READ_TIMEOUT=25s"}
}

// While S3 fails in a way, what is cached is read all the same, what is not is
// an error of the right kind, through the mount and by cat, which says why;
// and when S3 is well again, so are the reads: nothing of the answers was
// kept as data.
func TestUnderStoreFailsUnderALiveMount(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const size = 300 << 10
	closed := make(chan struct{})
	cases := []struct {
		name  string
		fault testenv.Fault
		errno error
		says  []string // by cat, beside the path
	}{
		{"wrong credentials", testenv.Fault{Status: http.StatusForbidden, Code: "SignatureDoesNotMatch"}, unix.EACCES, []string{"check the access key"}},
		{"access denied", testenv.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}, unix.EACCES, []string{"policy"}},
		{"server error", testenv.Fault{Status: http.StatusInternalServerError}, unix.EIO, []string{"HTTP 500"}},
		{"throttled", testenv.Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}, unix.EIO, []string{"SlowDown"}},
		{"disconnects", testenv.Fault{Disconnect: true}, unix.EIO, []string{"EOF"}},
		{"black hole", testenv.Fault{Hold: closed}, unix.EIO, []string{"no answer within", "under-store"}},
		{"body shorter than promised", testenv.Fault{Cut: 1000}, unix.EIO, []string{"EOF"}},
		{"wrong Content-Range", testenv.Fault{SetHeaders: map[string]string{"Content-Range": "bytes 5-9/307200"}}, unix.EIO, []string{"Content-Range"}},
		{"no Content-Range", testenv.Fault{SetHeaders: map[string]string{"Content-Range": ""}}, unix.EIO, []string{"Content-Range"}},
		{"another version", testenv.Fault{SetHeaders: map[string]string{"Etag": `"0123456789abcdef0123456789abcdef"`}}, unix.ESTALE, []string{"version"}},
	}
	s.fill(t, "cached", size)
	sizes := make([]int64, 2*len(cases)) // one for the mount, one for cat
	for i := range sizes {
		sizes[i] = size
	}
	s.fill(t, "f", sizes...)
	u := newUp(t, s, true)
	u.env = append(u.env, impatient()...)
	u.start()
	u.run("ls", "/f") // the files are known; S3 is asked for bytes alone
	check := func(key string) error { return compareFile(filepath.Join(u.mountPoint, key), key, size) }
	for i := range sizes {
		if _, err := os.Stat(filepath.Join(u.mountPoint, fmt.Sprintf("f/%04d.bin", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := check("cached/0000.bin"); err != nil {
		t.Fatal(err)
	}
	var healed atomic.Bool
	s.proxy.Inject(func(r *http.Request, op string) testenv.Fault {
		var i int
		if n, _ := fmt.Sscanf(filepath.Base(r.URL.Path), "%d.bin", &i); n != 1 || op != testenv.OpGet || healed.Load() {
			return testenv.Fault{}
		}
		return cases[i/2].fault
	})
	key := func(i int) string { return fmt.Sprintf("f/%04d.bin", i) }
	byMount, byCat := make([]error, len(cases)), make([]error, len(cases))
	var all sync.WaitGroup // at once, since most of the time is spent waiting
	for i := range cases {
		all.Go(func() { byMount[i] = check(key(2 * i)) })
		all.Go(func() { _, byCat[i] = u.try("cat", "/"+key(2*i+1)) })
	}
	if err := check("cached/0000.bin"); err != nil {
		t.Errorf("a cached file: %v", err)
	}
	all.Wait()
	healed.Store(true)
	close(closed)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if !errors.Is(byMount[i], c.errno) {
				t.Errorf("a read through the mount: %v, want %v", byMount[i], c.errno)
			}
			says(t, byCat[i], append([]string{"/" + key(2*i+1)}, c.says...)...)
			for _, key := range []string{key(2 * i), key(2*i + 1)} {
				eventually(t, key+" is read again", func() error { return check(key) })
			}
		})
	}
}

// Single failures are not seen by readers at all.
func TestUnderStoreFailsOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "f", 5<<20+1, 300<<10, 1<<20, 2<<20, 70<<10)
	u := newUp(t, s, true)
	u.start()
	var mu sync.Mutex
	n := 0
	faults := []testenv.Fault{
		{Cut: 100_000},
		{Disconnect: true},
		{Status: http.StatusServiceUnavailable, Code: "SlowDown"},
		{Status: http.StatusInternalServerError},
		{Cut: testenv.CutAll},
	}
	s.proxy.Inject(func(_ *http.Request, op string) testenv.Fault {
		mu.Lock()
		defer mu.Unlock()
		if n++; op == testenv.OpGet && n%2 == 1 {
			return faults[n/2%len(faults)]
		}
		return testenv.Fault{}
	})
	u.readAll(s)
	mu.Lock()
	defer mu.Unlock()
	if n < len(faults) {
		t.Errorf("S3 was asked %d times only", n)
	}
}

// versions are two objects of one length that have no MiB in common.
func versions(size int64) (first, second []byte) {
	return content("version/1", size), content("version/2", size)
}

// readOn reads what is left of a file that changed under the reader: only
// bytes of the version that it opened may come, and then ESTALE.
func readOn(t *testing.T, r io.Reader, want []byte) (n int, err error) {
	t.Helper()
	buf := make([]byte, 256<<10)
	for {
		k, err := r.Read(buf)
		if n+k > len(want) || !bytes.Equal(buf[:k], want[n:n+k]) {
			t.Fatalf("bytes %d to %d are not of the version that was opened", n, n+k)
		}
		n += k
		if err != nil {
			return n, err
		}
	}
}

// An object is replaced or deleted while it is read: the reader gets bytes of
// the version that it opened, and an error when there are no more; a mix,
// never. A later open, after the time for which answers hold, sees what is
// there now.
func TestObjectChangesWhileItIsRead(t *testing.T) {
	t.Parallel()
	const size = 48 << 20
	const start = 1 << 20
	first, second := versions(size)
	for _, c := range []struct {
		name   string
		change func(t *testing.T, s *store, key string)
		after  func(err error) error // of a later open and read
	}{
		{"replaced", func(t *testing.T, s *store, key string) { t.Helper(); s.Put(t, key, second) }, func(err error) error { return err }},
		{"deleted", func(t *testing.T, s *store, key string) { t.Helper(); s.Delete(t, key) }, func(err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("got %w, want that it does not exist", err)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			for _, key := range []string{"mount", "cat"} {
				s.Put(t, key, first)
			}
			u := newUp(t, s, true, "--ufs-opt", "ttl=1h") // time alone must not help
			u.start()

			f, err := os.Open(filepath.Join(u.mountPoint, "mount"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := readOn(t, io.LimitReader(f, start), first); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			c.change(t, s, "mount")
			n, err := readOn(t, f, first[start:])
			if !errors.Is(err, unix.ESTALE) {
				t.Errorf("the reader got %d bytes and then %v, want ESTALE", start+n, err)
			}
			eventually(t, "a new open sees what is there now", func() error {
				got, err := os.ReadFile(filepath.Join(u.mountPoint, "mount"))
				if err == nil && !bytes.Equal(got, second) {
					t.Fatal("a new open read bytes that are not of the new version")
				}
				return c.after(err)
			})
			u.catWhile(first, start, func() { c.change(t, s, "cat") })
		})
	}
}

// catWhile runs cat of /cat, changes the object when cat has printed a little,
// and requires that cat prints bytes of the first version alone and then says
// what happened.
func (u *up) catWhile(first []byte, start int64, change func()) {
	u.t.Helper()
	cmd := exec.CommandContext(u.t.Context(), binary, "cat", "/cat")
	cmd.Env = append(append(os.Environ(), u.env...), "MILLRACE_MASTERS="+u.masters)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		u.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	if _, err := readOn(u.t, io.LimitReader(out, start), first); !errors.Is(err, io.EOF) {
		u.t.Fatal(err)
	}
	change()
	n, err := readOn(u.t, out, first[start:])
	if !errors.Is(err, io.EOF) {
		u.t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		u.t.Errorf("cat succeeded with %d bytes", start+int64(n))
	}
	says(u.t, errors.New(stderr.String()), "/cat", "it has changed or was deleted", "open it again")
}

// An object without a byte is a file like others.
func TestZeroByteObjects(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.fill(t, "empty", 0, 0)
	u := newUp(t, s, true)
	u.start()
	u.readAll(s)
	if got := u.run("cat", "/empty/0000.bin"); got != "" {
		t.Errorf("cat printed %q", got)
	}
	dst := filepath.Join(t.TempDir(), "copy")
	u.run("get", "-r", "/empty", dst)
	if err := compareFile(filepath.Join(dst, "0001.bin"), "empty/0001.bin", 0); err != nil {
		t.Error(err)
	}
	u.run("load", "/")
	f, err := os.Open(filepath.Join(u.mountPoint, "empty/0000.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.ReadAt(make([]byte, 10), 5); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("a read behind the end: %d, %v", n, err)
	}
	if got := s.proxy.Snapshot().Get; got != 0 {
		t.Errorf("S3 was asked for bytes %d times", got)
	}
}

// The largest object that S3 can hold: its size is told and its bytes are
// read at all ends. The server makes them up.
func TestFiveTiBObject(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Fuse, testenv.Root)
	const size = 5 << 40
	server := httptest.NewServer(fakeS3{key: "huge.bin", size: size})
	defer server.Close()
	u := &up{cli: cli{t: t, env: []string{
		"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_PROFILE=", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_ENDPOINT_URL=" + server.URL,
	}}, uri: "s3://bucket", dataDir: filepath.Join(t.TempDir(), "data"), mountPoint: filepath.Join(t.TempDir(), "mnt")}
	if err := os.Mkdir(u.mountPoint, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.cleanup)
	u.start()

	f, err := os.Open(filepath.Join(u.mountPoint, "huge.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Fatalf("stat: %v, %v; want %d bytes", st, err, int64(size))
	}
	p, scratch := make([]byte, 100_000), make([]byte, 100_000)
	whole := rig.NewContent("huge.bin", size)
	for _, off := range []int64{0, 1<<32 - 50_000, 1<<40 + 7, 3 << 40, size - 100_000} {
		if _, err := f.ReadAt(p, off); err != nil {
			t.Errorf("at %d: %v", off, err)
		} else if err := whole.Check(p, off, scratch); err != nil {
			t.Error(err)
		}
	}
	if n, err := f.ReadAt(p, size-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("the last bytes: %d, %v", n, err)
	}
	got := u.run("cat", "/huge.bin", "--offset", fmt.Sprint(int64(size-1000)))
	if err := whole.Check([]byte(got), size-1000, scratch); err != nil || len(got) != 1000 {
		t.Errorf("cat of the last 1000 bytes: %d bytes, %v", len(got), err)
	}
	var st struct {
		Size   int64 `json:"size"`
		Blocks []struct {
			Index int64 `json:"index"`
		} `json:"blocks"`
	}
	u.query(&st, "stat", "/huge.bin")
	if st.Size != size || len(st.Blocks) == 0 {
		t.Errorf("stat: %d bytes, %d blocks", st.Size, len(st.Blocks))
	}
	var ls []struct {
		Size int64 `json:"size"`
	}
	u.query(&ls, "ls", "/")
	if len(ls) != 1 || ls[0].Size != size {
		t.Errorf("ls: %+v", ls)
	}
}

// fakeS3 is a server with one object in any bucket.
type fakeS3 struct {
	key  string
	size int64
}

func (s fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const etag, modified = `"5f363e0e58a95f06cbe9bbc662c5dfb6-9999"`, "Mon, 02 Jan 2006 15:04:05 GMT"
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	h := w.Header()
	switch {
	case r.URL.Query().Has("list-type"):
		h.Set("Content-Type", "application/xml")
		entry := ""
		if strings.HasPrefix(s.key, r.URL.Query().Get("prefix")) {
			entry = fmt.Sprintf("<Contents><Key>%s</Key><Size>%d</Size><ETag>%s</ETag><LastModified>2006-01-02T15:04:05Z</LastModified></Contents>", s.key, s.size, etag)
		}
		fmt.Fprintf(w, `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>`, entry)
	case key != s.key:
		h.Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusNotFound)
		if r.Method != http.MethodHead {
			fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>`)
		}
	default:
		h.Set("Etag", etag)
		h.Set("Last-Modified", modified)
		if r.Method == http.MethodHead {
			h.Set("Content-Length", fmt.Sprint(s.size))
			return
		}
		var first, last int64
		if n, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n != 2 || err != nil || last >= s.size {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, s.size))
		h.Set("Content-Length", fmt.Sprint(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		p := make([]byte, last-first+1)
		rig.NewContent(s.key, s.size).ReadAt(p, first)
		_, _ = w.Write(p) // the client may be gone
	}
}
