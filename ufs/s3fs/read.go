package s3fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/ufs"
)

// Read opens the bytes e of one version of a file: one GET, whose answer is
// checked against obj and e before a byte of it is passed on.
func (s *Store) Read(ctx context.Context, obj ufs.Object, e block.Extent) (io.ReadCloser, error) {
	const op = "read"
	if err := s.checkPath(op, obj.Path); err != nil {
		return nil, err
	}
	if e.IsEmpty() || e.Offset < 0 || e.End() > obj.Length || obj.Path == "" || obj.Tag == "" {
		return nil, errs.E(errs.Invalid, op, s.name(obj.Path), fmt.Errorf("extent %v of %d bytes, tag %q", e, obj.Length, obj.Tag))
	}
	head, content, err := s.get(ctx, obj, e)
	if err != nil {
		return nil, s.fail(ctx, op, obj.Path, err)
	}
	if err := checkAnswer(head, obj, e); err != nil {
		// Not drained: the body may be as long as the object.
		return nil, errs.Wrap(errors.Join(err, content.Close()), op, s.name(obj.Path))
	}
	b := &body{store: s, path: obj.Path, ctx: ctx, body: content, left: e.Length}
	return s.limiter.Body(ctx, b, s.name(obj.Path)), nil
}

// get asks for e: once without the SDK, and then, if that was no success, with
// it, which goes on from there.
func (s *Store) get(ctx context.Context, obj ufs.Object, e block.Extent) (answer, io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.key(obj.Path)), Range: aws.String(byteRange(e))}
	if modified, ok := tagModified(obj.Tag); ok {
		// A server that keeps fractions of a second has it modified after the
		// whole second that it tells. What the answer says is compared exactly.
		in.IfUnmodifiedSince = aws.Time(modified.Add(time.Second))
	} else {
		in.IfMatch = aws.String(`"` + obj.Tag + `"`)
	}
	s.identifyReader(in)
	var first *outcome
	if g := s.getter; g != nil && !g.off.Load() {
		resp, err := g.get(ctx, in, s.limiter)
		switch {
		case err != nil && ctx.Err() != nil:
			return answer{}, nil, err
		case err == nil && resp != nil && resp.StatusCode/100 == 2:
			return answerOf(resp), resp.Body, nil
		case err != nil || resp != nil:
			first = &outcome{resp: resp, err: err}
			ctx = context.WithValue(ctx, outcomeKey{}, first)
		}
	}
	out, err := s.client.GetObject(ctx, in)
	if cerr := first.close(); err != nil || cerr != nil {
		return answer{}, nil, errors.Join(err, cerr)
	}
	if first.refusal() {
		s.getter.off.Store(true)
	}
	head := answer{
		etag: aws.ToString(out.ETag), modified: aws.ToTime(out.LastModified), contentRange: aws.ToString(out.ContentRange), length: -1,
	}
	if raw, ok := awsmiddleware.GetRawResponse(out.ResultMetadata).(*smithyhttp.Response); ok {
		head.status = raw.StatusCode
	}
	if out.ContentLength != nil {
		head.length = *out.ContentLength
	}
	return head, out.Body, nil
}

// identifyReader adds what says who pays and what the object is encrypted with.
func (s *Store) identifyReader(in *s3.GetObjectInput) {
	in.RequestPayer = s.payer
	if k := s.customerKey; k != nil {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = aws.String(customerAlgorithm), &k.key, &k.md5
	}
}

// checkAnswer holds a GET's answer against what was asked for.
func checkAnswer(a answer, obj ufs.Object, e block.Extent) error {
	whole := e == (block.Extent{Length: obj.Length})
	v := version{etag: a.etag, modified: a.modified, length: obj.Length}
	if tag := v.tag(); tag != obj.Tag {
		return errs.E(errs.Stale, "", "", fmt.Errorf("the version is %s, not %s", tag, obj.Tag))
	}
	switch {
	case a.status == 206:
		if err := checkContentRange(a.contentRange, obj, e); err != nil {
			return err
		}
	case a.status == 200 && whole:
		// The length says the rest.
	case a.status == 200:
		return errs.E(errs.Unsupported, "", "", errors.New("the server ignores the Range header and sends the whole object"))
	default:
		return errs.E(errs.Unavailable, "", "", fmt.Errorf("unexpected HTTP status %d", a.status))
	}
	// Without a length the body itself is counted.
	if a.length < 0 || a.length == e.Length {
		return nil
	}
	if a.status == 200 { // a whole object of another length
		return errs.E(errs.Stale, "", "", fmt.Errorf("the object has %d bytes, not %d", a.length, obj.Length))
	}
	return errs.E(errs.Corrupt, "", "", fmt.Errorf("the answer has %d bytes, asked for were %d", a.length, e.Length))
}

// checkContentRange holds "bytes FIRST-LAST/LENGTH" against what was asked for.
func checkContentRange(header string, obj ufs.Object, e block.Extent) error {
	span, total, _ := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	if length, err := strconv.ParseInt(total, 10, 64); err == nil && length != obj.Length {
		return errs.E(errs.Stale, "", "", fmt.Errorf("the object has %d bytes, not %d", length, obj.Length))
	}
	want := byteRange(e)[len("bytes="):]
	if span != want || total != strconv.FormatInt(obj.Length, 10) || !strings.HasPrefix(header, "bytes ") {
		return errs.E(errs.Corrupt, "", "", fmt.Errorf("the server answers with Content-Range %q, asked for was bytes %s/%d", header, want, obj.Length))
	}
	return nil
}

// body passes on exactly the bytes that were asked for.
type body struct {
	store *Store
	path  string
	ctx   context.Context //nolint:containedctx // the reader's life is the request's
	body  io.ReadCloser
	left  int64
	err   error // sticky
}

// Read reads the next bytes.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.left == 0 {
		return 0, b.end()
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err == nil || (b.left == 0 && errors.Is(err, io.EOF)):
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	b.err = b.fail(err)
	return n, b.err
}

// end sees to it that nothing follows the last byte, which a server that sent
// no length could do.
func (b *body) end() error {
	var one [1]byte
	n, err := b.body.Read(one[:])
	switch {
	case n > 0:
		b.err = errs.E(errs.Corrupt, "read", b.store.name(b.path), errors.New("the server sends more than was asked for"))
	case errors.Is(err, io.EOF):
		b.err = io.EOF
	default:
		b.err = b.fail(err)
	}
	return b.err
}

// fail classifies an error in mid-body: none of them says that the object is
// not there, so that all but the caller's own are worth another request.
func (b *body) fail(err error) error {
	if b.ctx.Err() != nil {
		return errs.Wrap(b.ctx.Err(), "read", b.store.name(b.path))
	}
	return errs.E(errs.Unavailable, "read", b.store.name(b.path), fmt.Errorf("%d bytes are missing: %w", b.left, err))
}

// Close ends the request. A body that was read to its end leaves its
// connection to the next request; any other takes it along.
func (b *body) Close() error {
	if b.err == nil {
		b.err = errs.E(errs.Invalid, "read", b.store.name(b.path), errors.New("the reader is closed"))
	}
	return b.body.Close()
}
