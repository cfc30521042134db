package s3fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"millrace/internal/testenv"
)

const plainListing = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix><KeyCount>3</KeyCount><MaxKeys>1000</MaxKeys><Delimiter>/</Delimiter><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t/=</NextContinuationToken>
  <Contents><Key>a+b%2Fc</Key><LastModified>2024-05-06T07:08:09.010Z</LastModified><ETag>&quot;x&quot;</ETag><Size>12</Size><Owner><ID>i</ID><DisplayName>d</DisplayName></Owner><StorageClass>STANDARD</StorageClass></Contents>
  <Contents><Key>d&amp;e&lt;&gt;&apos;&#34;</Key><ETag/></Contents>
  <CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
</ListBucketResult>
`

func TestParsePage(t *testing.T) {
	got, err := parsePage([]byte(plainListing))
	if err != nil {
		t.Fatal(err)
	}
	want := &page{
		objects: []object{
			{key: "a+b%2Fc", etag: `"x"`, size: 12, modified: time.Date(2024, 5, 6, 7, 8, 9, 10e6, time.UTC)},
			{key: `d&e<>'"`, size: -1},
		},
		prefixes: []string{"p/"}, encoding: "url", more: true, token: "t/=",
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(page{}, object{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// unusual are listings, right and wrong ones, that are for the SDK.
var unusual = map[string]string{
	"nothing":           ``,
	"other root":        `<ListBucketResults></ListBucketResults>`,
	"cut":               plainListing[:len(plainListing)/2],
	"something behind":  plainListing + "x",
	"comment":           `<ListBucketResult><!-- x --></ListBucketResult>`,
	"CDATA":             `<ListBucketResult><Contents><Key><![CDATA[k]]></Key></Contents></ListBucketResult>`,
	"doctype":           `<!DOCTYPE x><ListBucketResult></ListBucketResult>`,
	"other encoding":    `<?xml version="1.0" encoding="ISO-8859-1"?><ListBucketResult></ListBucketResult>`,
	"other case":        `<ListBucketResult><contents><Key>k</Key></contents></ListBucketResult>`,
	"name space":        `<a:ListBucketResult xmlns:a="x"><a:Contents/></a:ListBucketResult>`,
	"attribute":         `<ListBucketResult><Contents><Key x="y">k</Key></Contents></ListBucketResult>`,
	"unknown element":   `<ListBucketResult><Contents><Key>k</Key><New>1</New></Contents></ListBucketResult>`,
	"unknown entity":    `<ListBucketResult><Contents><Key>&eacute;</Key></Contents></ListBucketResult>`,
	"character by code": `<ListBucketResult><Contents><Key>&#xe9;</Key></Contents></ListBucketResult>`,
	"not ASCII":         `<ListBucketResult><Contents><Key>é</Key></Contents></ListBucketResult>`,
	"no UTF-8":          "<ListBucketResult><Contents><Key>\xff</Key></Contents></ListBucketResult>",
	"line ends":         "<ListBucketResult><Contents><Key>a\r\nb</Key></Contents></ListBucketResult>",
	"two keys":          `<ListBucketResult><Contents><Key>a</Key><Key>b</Key></Contents></ListBucketResult>`,
	"no key":            `<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>`,
	"bad size":          `<ListBucketResult><Contents><Key>a</Key><Size>1x</Size></Contents></ListBucketResult>`,
	"bad time":          `<ListBucketResult><Contents><Key>a</Key><LastModified>now</LastModified></Contents></ListBucketResult>`,
	"crossed":           `<ListBucketResult><Contents><Key>a</Contents></Key></ListBucketResult>`,
	"text between":      `<ListBucketResult>x<Contents><Key>a</Key></Contents></ListBucketResult>`,
	"empty in empty":    `<ListBucketResult><Contents/></ListBucketResult>`,
	"a tag twice":       `<ListBucketResult><Contents><Key>a</Key><ETag>"x"</ETag><ETag/></Contents></ListBucketResult>`,
	"encoding twice":    `<ListBucketResult><EncodingType>url</EncodingType><EncodingType></EncodingType></ListBucketResult>`,
	"token twice":       `<ListBucketResult><NextContinuationToken>t</NextContinuationToken><NextContinuationToken/></ListBucketResult>`,
	"no name of XML":    `<ListBucketResult><Contents><Key>a</Key><Owner><1>x</1></Owner></Contents></ListBucketResult>`,
	"two prefixes":      `<ListBucketResult><CommonPrefixes><Prefix>a/</Prefix><Prefix>b/</Prefix></CommonPrefixes></ListBucketResult>`,
}

func TestParsePageLeavesToTheSDK(t *testing.T) {
	for name, body := range unusual {
		if p, err := parsePage([]byte(body)); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// bodyClient answers each request with a body.
type bodyClient struct {
	body []byte
	err  error // behind the body
}

func (c *bodyClient) Do(*http.Request) (*http.Response, error) {
	body := io.MultiReader(bytes.NewReader(c.body), &failingReader{c.err})
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(body)}, nil
}

// store is one that reads bodies of up to 256 KiB at once.
func (c *bodyClient) store() *Store {
	client := s3.New(s3.Options{
		Region: "r", HTTPClient: c, Retryer: aws.NopRetryer{}, Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""),
	})
	return &Store{client: client, now: time.Now, bodies: bodies{most: 256 << 10}}
}

// ask reads a body as this package does, and as the SDK does alone.
func (c *bodyClient) ask(t testing.TB) (ours, sdk *page, ourErr, sdkErr error) {
	t.Helper()
	s := c.store()
	in := &s3.ListObjectsV2Input{Bucket: aws.String("b")}
	ours, ourErr = s.listPage(t.Context(), in)
	out, sdkErr := s.client.ListObjectsV2(t.Context(), in)
	if sdkErr == nil {
		sdk = pageOf(out)
	}
	return ours, sdk, ourErr, sdkErr
}

// same checks that a body means to us what it means to the SDK.
func (c *bodyClient) same(t *testing.T) {
	t.Helper()
	ours, sdk, ourErr, sdkErr := c.ask(t)
	if fmt.Sprint(ourErr) != fmt.Sprint(sdkErr) {
		t.Fatalf("error %v, the SDK has %v", ourErr, sdkErr)
	}
	if sdkErr != nil {
		return
	}
	ours.now = time.Time{}
	if d := cmp.Diff(sdk, ours, cmp.AllowUnexported(page{}, object{}), cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) }),
		cmp.Transformer("none", func(o []object) []object { return append([]object{}, o...) })); d != "" {
		t.Fatalf("(-SDK +ours)\n%s", d)
	}
}

func TestPagesAreTheSDKs(t *testing.T) {
	t.Parallel()
	(&bodyClient{body: []byte(plainListing)}).same(t)
	for name, body := range unusual {
		t.Run(name, func(t *testing.T) { (&bodyClient{body: []byte(body)}).same(t) })
	}
	t.Run("broken off", func(t *testing.T) {
		(&bodyClient{body: []byte(plainListing[:200]), err: errors.New("connection reset")}).same(t)
	})
	t.Run("longer than is read at once", func(t *testing.T) {
		object := "<Contents><Key>" + strings.Repeat("k", 1<<10) + "</Key></Contents>"
		body := "<ListBucketResult>" + strings.Repeat(object, 300) + "</ListBucketResult>"
		(&bodyClient{body: []byte(body)}).same(t)
	})
}

// FuzzPages holds the parser against the SDK's.
func FuzzPages(f *testing.F) {
	f.Add([]byte(plainListing))
	for _, body := range unusual {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := parsePage(body); err == nil {
			(&bodyClient{body: body}).same(t)
		}
	})
}

// TestListingIsParsedHere makes sure that the answers of a server that is like
// S3 are not left to the SDK.
func TestListingIsParsedHere(t *testing.T) {
	s := memoryStore(t, nil, testenv.NumberedKeys{Prefix: "d/", N: 3})
	for _, delimiter := range []string{"", "/"} {
		out, err := s.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{
			Bucket: &s.bucket, Delimiter: &delimiter,
		}, s3.WithAPIOptions(s.bodies.decodePages))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := out.ResultMetadata.Get(pageKey{}).(*page); !ok {
			t.Errorf("delimiter %q: the SDK read the answer", delimiter)
		}
	}
}

// BenchmarkPage is one object of a page of 1,000, read here and by the SDK.
func BenchmarkPage(b *testing.B) {
	var body bytes.Buffer
	body.WriteString(`<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
	for i := range 1000 {
		fmt.Fprintf(&body, "<Contents><Key>dataset/part-00042/image-%08d.jpeg</Key><LastModified>2024-05-06T07:08:09.000Z</LastModified>"+
			"<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>102400</Size><StorageClass>STANDARD</StorageClass></Contents>", i)
	}
	body.WriteString("</ListBucketResult>")
	c := &bodyClient{body: body.Bytes()}
	s := c.store()
	in := &s3.ListObjectsV2Input{Bucket: aws.String("b")}
	for name, ask := range map[string]func() error{
		"here": func() error { _, err := s.listPage(b.Context(), in); return err },
		"sdk":  func() error { _, err := s.client.ListObjectsV2(b.Context(), in); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := ask(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/object")
		})
	}
}
