package testenv

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// MemoryObject is what a MemoryS3 knows of one object.
type MemoryObject struct {
	Size     int64
	ETag     string      // without quotes; "" sends none
	Modified time.Time   // whole seconds
	Data     io.ReaderAt // nil reads as zeros
}

// KeySet is the contents of a bucket: keys of any bytes, ascending and each
// once. It may be made up as it is asked for, so that a bucket of a million
// keys costs nothing. Its methods are called from several goroutines.
type KeySet interface {
	Len() int
	Key(i int) string
	Object(i int) MemoryObject
}

// MemoryS3 is a small S3 server in this process, for what no server on a file
// system can hold: keys of any bytes and length, keys that are an object and a
// prefix of others, millions of keys, objects of terabytes. It answers
// GetObject, HeadObject and ListObjectsV2, path style, as S3 does, and looks at
// no signature. It is safe for concurrent use.
type MemoryS3 struct {
	Endpoint string // http://127.0.0.1:PORT

	lists   atomic.Int64
	mu      sync.RWMutex
	buckets map[string]KeySet
}

// NewMemoryS3 returns a server without buckets, for who serves it himself.
func NewMemoryS3() *MemoryS3 { return &MemoryS3{buckets: map[string]KeySet{}} }

// StartMemoryS3 starts a server without buckets; it is stopped when the test
// ends.
func StartMemoryS3(tb testing.TB) *MemoryS3 {
	tb.Helper()
	m := NewMemoryS3()
	srv := httptest.NewServer(m)
	tb.Cleanup(srv.Close)
	m.Endpoint = srv.URL
	return m
}

// SetBucket makes or replaces a bucket.
func (m *MemoryS3) SetBucket(name string, keys KeySet) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buckets[name] = keys
}

// Lists returns how many listings were asked for.
func (m *MemoryS3) Lists() int64 { return m.lists.Load() }

// ServeHTTP answers one request.
func (m *MemoryS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amz-Request-Id", "MEMORY")
	// The path is taken byte by byte: "//", "." and ".." are parts of keys.
	name, key, isKey := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	m.mu.RLock()
	keys, ok := m.buckets[name]
	m.mu.RUnlock()
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		memoryError(w, r, http.StatusMethodNotAllowed, "MethodNotAllowed")
	case !ok:
		memoryError(w, r, http.StatusNotFound, "NoSuchBucket")
	case isKey && key != "":
		serveObject(w, r, keys, key)
	case r.URL.Query().Get("list-type") == "2":
		m.lists.Add(1)
		l := memoryList{keys: keys}
		if err := l.parse(r.URL.Query()); err != nil {
			memoryError(w, r, http.StatusBadRequest, "InvalidArgument")
			return
		}
		l.serve(w)
	default:
		memoryError(w, r, http.StatusNotImplemented, "NotImplemented")
	}
}

func memoryError(w http.ResponseWriter, r *http.Request, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		// The client may be gone; then there is nobody to tell.
		_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>"+http.StatusText(status)+"</Message></Error>")
	}
}

func serveObject(w http.ResponseWriter, r *http.Request, keys KeySet, key string) {
	const longest = 1024
	if len(key) > longest {
		memoryError(w, r, http.StatusBadRequest, "KeyTooLongError")
		return
	}
	i := sort.Search(keys.Len(), func(i int) bool { return keys.Key(i) >= key })
	if i == keys.Len() || keys.Key(i) != key {
		memoryError(w, r, http.StatusNotFound, "NoSuchKey")
		return
	}
	o := keys.Object(i)
	data := o.Data
	if data == nil {
		data = zeroData{}
	}
	if o.ETag != "" {
		w.Header().Set("ETag", `"`+o.ETag+`"`)
	}
	w.Header().Set("Content-Type", "binary/octet-stream")
	http.ServeContent(w, r, "", o.Modified, io.NewSectionReader(data, 0, o.Size))
}

// zeroData is as many zeros as one likes.
type zeroData struct{}

func (zeroData) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// memoryList is one ListObjectsV2.
type memoryList struct {
	keys              KeySet
	prefix, delimiter string
	from              int // index of the first key
	limit             int
	escape            bool
}

func (l *memoryList) parse(q url.Values) error {
	const most = 1000
	l.prefix, l.delimiter, l.escape, l.limit = q.Get("prefix"), q.Get("delimiter"), q.Get("encoding-type") == "url", most
	if v := q.Get("max-keys"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return errors.New("max-keys")
		}
		l.limit = min(n, most)
	}
	after := q.Get("start-after")
	if token := q.Get("continuation-token"); token != "" {
		last, err := hex.DecodeString(token)
		if err != nil {
			return err
		}
		after = string(last)
	}
	l.from = sort.Search(l.keys.Len(), func(i int) bool { k := l.keys.Key(i); return k > after && k >= l.prefix })
	if l.delimiter != "" && len(after) > len(l.prefix) && strings.HasSuffix(after, l.delimiter) && strings.HasPrefix(after, l.prefix) {
		l.from = l.skip(l.from, after)
	}
	return nil
}

// skip returns the index of the first key from i on that does not start with
// prefix.
func (l *memoryList) skip(i int, prefix string) int {
	return i + sort.Search(l.keys.Len()-i, func(j int) bool { return !strings.HasPrefix(l.keys.Key(i+j), prefix) })
}

func (l *memoryList) text(key string) string {
	if l.escape {
		return url.QueryEscape(key)
	}
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(key)
}

func (l *memoryList) serve(w http.ResponseWriter) {
	var objects, prefixes strings.Builder
	last, truncated, n := "", false, 0
	for i := l.from; i < l.keys.Len(); n++ {
		key := l.keys.Key(i)
		rest, ok := strings.CutPrefix(key, l.prefix)
		if !ok {
			break
		}
		if n == l.limit {
			truncated = l.limit > 0
			break
		}
		if at := strings.Index(rest, l.delimiter); l.delimiter != "" && at >= 0 {
			last = l.prefix + rest[:at+len(l.delimiter)]
			prefixes.WriteString("<CommonPrefixes><Prefix>" + l.text(last) + "</Prefix></CommonPrefixes>")
			i = l.skip(i, last)
			continue
		}
		last = key
		o := l.keys.Object(i)
		objects.WriteString("<Contents><Key>" + l.text(key) + "</Key><LastModified>" + o.Modified.UTC().Format("2006-01-02T15:04:05.000Z") + "</LastModified>")
		if o.ETag != "" {
			objects.WriteString("<ETag>&quot;" + o.ETag + "&quot;</ETag>")
		}
		objects.WriteString("<Size>" + strconv.FormatInt(o.Size, 10) + "</Size><StorageClass>STANDARD</StorageClass></Contents>")
		i++
	}
	head := `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` +
		"<Prefix>" + l.text(l.prefix) + "</Prefix><KeyCount>" + strconv.Itoa(n) + "</KeyCount><MaxKeys>" + strconv.Itoa(l.limit) +
		"</MaxKeys><IsTruncated>" + strconv.FormatBool(truncated) + "</IsTruncated>"
	if l.escape {
		head += "<EncodingType>url</EncodingType>"
	}
	if truncated {
		head += "<NextContinuationToken>" + hex.EncodeToString([]byte(last)) + "</NextContinuationToken>"
	}
	w.Header().Set("Content-Type", "application/xml")
	// The client may be gone; then there is nobody to tell.
	_, _ = io.WriteString(w, head+objects.String()+prefixes.String()+"</ListBucketResult>")
}

// Keys is a KeySet of these keys, each an object that holds its own key.
type Keys []string

// NewKeys returns the set of keys, in any order.
func NewKeys(keys ...string) Keys {
	out := append(Keys(nil), keys...)
	sort.Strings(out)
	return out
}

// Len returns the number of keys.
func (k Keys) Len() int { return len(k) }

// Key returns the i-th key.
func (k Keys) Key(i int) string { return k[i] }

// Object returns the i-th object.
func (k Keys) Object(i int) MemoryObject {
	return MemoryObject{Size: int64(len(k[i])), ETag: madeUpETag(k[i]), Modified: madeUpTime(), Data: strings.NewReader(k[i])}
}

// NumberedKeys is a KeySet of N keys, made up as they are asked for: Prefix and
// a number of eight digits, each an object of Size zeros.
type NumberedKeys struct {
	Prefix string
	N      int // at most 100,000,000
	Size   int64
}

// Len returns the number of keys.
func (k NumberedKeys) Len() int { return k.N }

// Key returns the i-th key.
func (k NumberedKeys) Key(i int) string {
	const wide = 100_000_000
	return k.Prefix + strconv.Itoa(wide + i)[1:]
}

// Object returns the i-th object.
func (k NumberedKeys) Object(i int) MemoryObject {
	return MemoryObject{Size: k.Size, ETag: madeUpETag(strconv.Itoa(i)), Modified: madeUpTime()}
}

func madeUpETag(of string) string {
	sum := sha256.Sum256([]byte(of))
	return hex.EncodeToString(sum[:16])
}

func madeUpTime() time.Time { return time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC) }

// BlackHole listens on loopback, takes connections and never answers; it
// returns its address. It ends with the test.
func BlackHole(tb testing.TB) string {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", loopback(0))
	if err != nil {
		tb.Fatal(err)
	}
	var conns []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
	}()
	tb.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().String()
}
