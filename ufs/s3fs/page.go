package s3fs

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// page is the answer to one ListObjectsV2.
type page struct {
	objects  []object // in byte order of the key
	prefixes []string // likewise
	encoding string   // of keys and prefixes
	more     bool
	token    string    // of the next page
	now      time.Time // when the server answered
}

// object is one object of a page.
type object struct {
	key      string // as the server wrote it
	etag     string
	size     int64 // below 0: not said
	modified time.Time
}

// listPage asks for a page.
func (s *Store) listPage(ctx context.Context, in *s3.ListObjectsV2Input) (*page, error) {
	out, err := s.client.ListObjectsV2(ctx, in, s3.WithAPIOptions(s.bodies.decodePages))
	if err != nil {
		return nil, err
	}
	p, ok := out.ResultMetadata.Get(pageKey{}).(*page)
	if !ok {
		p = pageOf(out)
	}
	p.now = s.serverTime(out.ResultMetadata)
	return p, nil
}

// pageOf returns what the SDK read.
func pageOf(out *s3.ListObjectsV2Output) *page {
	p := &page{
		objects: make([]object, 0, len(out.Contents)), encoding: string(out.EncodingType),
		more: aws.ToBool(out.IsTruncated), token: aws.ToString(out.NextContinuationToken),
	}
	for i := range out.Contents {
		o := &out.Contents[i]
		size := int64(-1)
		if o.Size != nil {
			size = *o.Size
		}
		p.objects = append(p.objects, object{
			key: aws.ToString(o.Key), etag: aws.ToString(o.ETag), size: size, modified: aws.ToTime(o.LastModified),
		})
	}
	for i := range out.CommonPrefixes {
		p.prefixes = append(p.prefixes, aws.ToString(out.CommonPrefixes[i].Prefix))
	}
	return p
}

// pageKey is the key of a page in the metadata of a call.
type pageKey struct{}

// maxPageBody bounds the answers that are read whole, in bytes; the SDK reads
// what is longer as it comes.
const maxPageBody = 8 << 20

// bodies are buffers for the bodies of answers.
type bodies struct {
	most int64 // bytes of a body that are read into one
	pool sync.Pool
}

func (b *bodies) get() *bytes.Buffer {
	if buf, ok := b.pool.Get().(*bytes.Buffer); ok {
		buf.Reset()
		return buf
	}
	return new(bytes.Buffer)
}

// decodePages makes the calls of a stack have their pages read by parsePage.
// What that does not know, and errors, are for the SDK.
func (b *bodies) decodePages(stack *middleware.Stack) error {
	d := &pageDecoder{bodies: b}
	var err error
	d.sdk, err = stack.Deserialize.Swap(d.ID(), d)
	return err
}

// pageDecoder stands in the place of the SDK's decoder of ListObjectsV2.
type pageDecoder struct {
	bodies *bodies
	sdk    middleware.DeserializeMiddleware
}

// ID implements middleware.DeserializeMiddleware.
func (*pageDecoder) ID() string { return "OperationDeserializer" }

// HandleDeserialize implements middleware.DeserializeMiddleware.
func (d *pageDecoder) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	middleware.DeserializeOutput, middleware.Metadata, error,
) {
	out, metadata, err := next.HandleDeserialize(ctx, in)
	again := middleware.DeserializeHandlerFunc(func(context.Context, middleware.DeserializeInput) (middleware.DeserializeOutput, middleware.Metadata, error) {
		return out, metadata, err
	})
	response, ok := out.RawResponse.(*smithyhttp.Response)
	if err != nil || !ok || response.StatusCode != http.StatusOK {
		return d.sdk.HandleDeserialize(ctx, in, again)
	}
	buf := d.bodies.get()
	defer d.bodies.pool.Put(buf)
	_, broken := buf.ReadFrom(io.LimitReader(response.Body, d.bodies.most))
	if broken == nil {
		if p, unusual := parsePage(buf.Bytes()); unusual == nil {
			out.Result = &s3.ListObjectsV2Output{}
			metadata.Set(pageKey{}, p)
			return out, metadata, response.Body.Close()
		}
	}
	response.Body = &readAgain{Reader: io.MultiReader(bytes.NewReader(buf.Bytes()), &failingReader{broken}, response.Body), Closer: response.Body}
	return d.sdk.HandleDeserialize(ctx, in, again)
}

// readAgain is a body that was read before.
type readAgain struct {
	io.Reader
	io.Closer
}

// failingReader fails with an error, if there is one, and ends otherwise.
type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return 0, io.EOF
}
