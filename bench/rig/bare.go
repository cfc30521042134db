package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"
)

// Part is the length in bytes of the ranges in which the bare client asks for
// large objects.
const Part int64 = 8 << 20

// Bare is the bare S3 client, the yardstick of every cold figure: the AWS SDK
// with pooled buffers, as many idle connections as readers, no checksum
// validation, and nothing else. It is safe for concurrent use.
type Bare struct {
	s3      *s3.Client
	bucket  string
	buffers sync.Pool
}

// Endpoint says where an S3 server is and how to sign in.
type Endpoint struct {
	URL, Region, AccessKey, SecretKey string
}

// NewBare makes a client for one bucket, for at most readers concurrent
// requests.
func NewBare(e Endpoint, bucket string, readers int) *Bare {
	httpClient := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = readers, readers
		t.ReadBufferSize = 64 << 10
	})
	client := s3.New(s3.Options{
		BaseEndpoint:               aws.String(e.URL),
		Region:                     e.Region,
		Credentials:                credentials.NewStaticCredentialsProvider(e.AccessKey, e.SecretKey, ""),
		UsePathStyle:               true,
		HTTPClient:                 httpClient,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})
	return &Bare{s3: client, bucket: bucket, buffers: sync.Pool{New: func() any {
		b := make([]byte, 1<<20)
		return &b
	}}}
}

// CreateBucket makes the bucket.
func (b *Bare) CreateBucket(ctx context.Context) error {
	_, err := b.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &b.bucket})
	return err
}

func (b *Bare) put(ctx context.Context, o Object) error {
	_, err := b.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.bucket, Key: &o.Key, Body: newContentReader(o), ContentLength: &o.Size,
	})
	return err
}

// Read gets every object of the set with that many readers at once: large
// ones in ranges of Part, small ones whole. The bytes are thrown away.
func (b *Bare) Read(ctx context.Context, d Dataset, readers int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, o := range d.Objects {
		for off := int64(0); off < o.Size; off += Part {
			g.Go(func() error { return b.get(ctx, o, off, min(Part, o.Size-off)) })
		}
	}
	return g.Wait()
}

func (b *Bare) get(ctx context.Context, o Object, off, n int64) error {
	in := &s3.GetObjectInput{Bucket: &b.bucket, Key: &o.Key}
	if n < o.Size {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	out, err := b.s3.GetObject(ctx, in)
	if err != nil {
		return err
	}
	buf := b.buffers.Get().(*[]byte) //nolint:forcetypeassert // the pool holds nothing else
	defer b.buffers.Put(buf)
	var got int64
	for err == nil {
		var k int
		k, err = out.Body.Read(*buf)
		got += int64(k)
	}
	if cerr := out.Body.Close(); errors.Is(err, io.EOF) {
		err = cerr
	}
	if err == nil && got != n {
		err = fmt.Errorf("get %s: %d bytes of %d", o.Key, got, n)
	}
	return err
}
