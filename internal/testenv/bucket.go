package testenv

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"
)

// putConcurrency is how many objects PutMany stores at once.
const putConcurrency = 8

// Bucket is a bucket of a test's S3 server. Its methods fail the test on any
// error.
type Bucket struct {
	S3   *S3
	Name string
}

// Bucket makes a bucket.
func (s *S3) Bucket(tb testing.TB, name string) *Bucket {
	tb.Helper()
	if err := s.CreateBucket(tb.Context(), name); err != nil {
		tb.Fatalf("create bucket %s: %v", name, err)
	}
	return &Bucket{S3: s, Name: name}
}

// URI returns the URI of a prefix of the bucket, of the bucket itself for "".
func (b *Bucket) URI(prefix string) string {
	return strings.TrimSuffix("s3://"+b.Name+"/"+prefix, "/")
}

// Put stores an object and returns its ETag without quotes.
func (b *Bucket) Put(tb testing.TB, key string, data []byte) string {
	tb.Helper()
	tag, err := b.S3.PutObject(tb.Context(), b.Name, key, bytes.NewReader(data))
	if err != nil {
		tb.Fatalf("put %s/%s: %v", b.Name, key, err)
	}
	return tag
}

// PutMany stores n objects, several at once; object says what the i-th is and
// is called from several goroutines.
func (b *Bucket) PutMany(tb testing.TB, n int, object func(i int) (key string, data []byte)) {
	tb.Helper()
	g, ctx := errgroup.WithContext(tb.Context())
	g.SetLimit(putConcurrency)
	for i := range n {
		g.Go(func() error {
			key, data := object(i)
			_, err := b.S3.PutObject(ctx, b.Name, key, bytes.NewReader(data))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		tb.Fatalf("put %d objects to %s: %v", n, b.Name, err)
	}
}

// Delete removes an object.
func (b *Bucket) Delete(tb testing.TB, key string) {
	tb.Helper()
	if _, err := b.S3.Client().DeleteObject(tb.Context(), &s3.DeleteObjectInput{Bucket: &b.Name, Key: &key}); err != nil {
		tb.Fatalf("delete %s/%s: %v", b.Name, key, err)
	}
}

func unquote(etag string) string { return strings.Trim(etag, `"`) }
