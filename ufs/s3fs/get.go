package s3fs

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyauth "github.com/aws/smithy-go/auth"
	"github.com/aws/smithy-go/encoding/httpbinding"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/block"
	"millrace/ufs/ufslimit"
)

// getter makes the first attempt of a GET without the SDK, whose forty steps
// of middleware cost more than all else that a small object takes. It uses the
// SDK's endpoint, credentials and signer. Whatever is not a success is handed
// to the SDK as the outcome of its own first attempt, so that errors, retries
// and their budgets are the SDK's.
type getter struct {
	next        http.RoundTripper
	base        url.URL // of the bucket
	region      string  // to sign for
	credentials aws.CredentialsProvider
	signer      *v4.Signer // nil: anonymous
	// off is set when the server took from the SDK what it had refused
	// before: the SDK knows something that is not known here.
	off atomic.Bool
}

// emptyHash is the SHA-256 of no bytes, which is what a GET sends.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// newGetter makes the getter of a bucket; nil where the SDK signs in a way of
// its own.
func newGetter(ctx context.Context, o s3.Options, bucket string, anonymous bool, next http.RoundTripper) *getter {
	endpoint, err := o.EndpointResolverV2.ResolveEndpoint(ctx, s3.EndpointParameters{
		Bucket: &bucket, Region: &o.Region, Endpoint: o.BaseEndpoint, ForcePathStyle: &o.UsePathStyle,
		UseFIPS:      aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		UseDualStack: aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
		Accelerate:   &o.UseAccelerate,
	})
	if err != nil || len(endpoint.Headers) > 0 {
		return nil // the SDK says what is wrong
	}
	g := &getter{next: next, base: endpoint.URI, region: o.Region, credentials: o.Credentials}
	g.base.RawPath = g.base.EscapedPath()
	if anonymous {
		return g
	}
	schemes, ok := smithyauth.GetAuthOptions(&endpoint.Properties)
	if !ok || len(schemes) == 0 || schemes[0].SchemeID != signingScheme {
		return nil
	}
	if name, ok := smithyhttp.GetSigV4SigningName(&schemes[0].SignerProperties); ok && name != signingName {
		return nil
	}
	if region, ok := smithyhttp.GetSigV4SigningRegion(&schemes[0].SignerProperties); ok {
		g.region = region
	}
	g.signer = v4.NewSigner(func(so *v4.SignerOptions) { so.DisableURIPathEscaping = true })
	return g
}

// How an ordinary bucket's endpoint wants requests signed.
const (
	signingScheme = "sigv4"
	signingName   = "s3"
)

// answer is what the head of a GET's answer says.
type answer struct {
	status       int
	etag         string
	modified     time.Time
	contentRange string
	length       int64 // of the body; -1 if it is not said
}

// get makes one attempt of a GET. A nil response with a nil error says that
// there was none.
func (g *getter) get(ctx context.Context, in *s3.GetObjectInput, limiter *ufslimit.Limiter) (*http.Response, error) {
	u, key := g.base, *in.Key
	u.Path = smithyhttp.JoinPath(g.base.Path, key)
	u.RawPath = smithyhttp.JoinPath(g.base.RawPath, httpbinding.EscapePath(key, false))
	req := (&http.Request{
		Method: http.MethodGet, URL: &u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, 12),
	}).WithContext(ctx)
	set := func(name string, value *string) {
		if value != nil {
			req.Header[name] = []string{*value}
		}
	}
	req.Header["Accept-Encoding"] = []string{"identity"}
	req.Header["User-Agent"] = []string{"millrace"}
	req.Header["X-Amz-Content-Sha256"] = []string{emptyHash}
	set("Range", in.Range)
	set("If-Match", in.IfMatch)
	if t := in.IfUnmodifiedSince; t != nil {
		req.Header["If-Unmodified-Since"] = []string{t.UTC().Format(http.TimeFormat)}
	}
	if in.RequestPayer != "" {
		req.Header["X-Amz-Request-Payer"] = []string{string(in.RequestPayer)}
	}
	set("X-Amz-Server-Side-Encryption-Customer-Algorithm", in.SSECustomerAlgorithm)
	set("X-Amz-Server-Side-Encryption-Customer-Key", in.SSECustomerKey)
	set("X-Amz-Server-Side-Encryption-Customer-Key-Md5", in.SSECustomerKeyMD5)
	if g.signer != nil {
		credentials, err := g.credentials.Retrieve(ctx)
		if err != nil {
			return nil, nil //nolint:nilerr,nilnil // the SDK meets the same error and says it
		}
		if err := g.signer.SignHTTP(ctx, credentials, req, emptyHash, signingName, g.region, time.Now()); err != nil {
			return nil, nil //nolint:nilerr,nilnil // as above
		}
	}
	if err := limiter.Request(ctx); err != nil {
		return nil, err
	}
	return g.next.RoundTrip(req)
}

// byteRange is the Range header that asks for e.
func byteRange(e block.Extent) string {
	b := make([]byte, 0, 48)
	b = append(b, "bytes="...)
	b = strconv.AppendInt(b, e.Offset, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, e.End()-1, 10)
	return string(b)
}

// answerOf returns what the head of resp says.
func answerOf(resp *http.Response) answer {
	a := answer{
		status: resp.StatusCode, etag: resp.Header.Get("Etag"),
		contentRange: resp.Header.Get("Content-Range"), length: resp.ContentLength,
	}
	// A time that cannot be read is none: the tag will differ.
	a.modified, _ = http.ParseTime(strings.TrimSpace(resp.Header.Get("Last-Modified")))
	return a
}

// outcome is that of an attempt which the SDK takes for its own first one.
type outcome struct {
	resp  *http.Response
	err   error
	taken bool
}

type outcomeKey struct{}

// close ends an answer that the SDK did not come to take.
func (o *outcome) close() error {
	if o == nil || o.taken || o.resp == nil {
		return nil
	}
	return o.resp.Body.Close()
}

// handedOver returns the outcome that ctx brings and nobody took yet.
func handedOver(ctx context.Context) *outcome {
	if o, ok := ctx.Value(outcomeKey{}).(*outcome); ok && !o.taken {
		return o
	}
	return nil
}

// adopter gives the SDK the outcome of the attempt that was made before it was
// asked.
type adopter struct{ next http.RoundTripper }

// RoundTrip does one attempt, unless it was done.
func (a *adopter) RoundTrip(req *http.Request) (*http.Response, error) {
	if o := handedOver(req.Context()); o != nil {
		o.taken = true
		return o.resp, o.err
	}
	return a.next.RoundTrip(req)
}

// refusal reports whether an outcome says that the server minds the request
// itself, which another way of asking may change.
func (o *outcome) refusal() bool {
	if o == nil || o.resp == nil {
		return false
	}
	switch o.resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return false
	default:
		return o.resp.StatusCode < http.StatusInternalServerError
	}
}
