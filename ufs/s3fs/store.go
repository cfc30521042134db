package s3fs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/ufslimit"
)

// Store is a bucket or a prefix of one. It is safe for concurrent use.
type Store struct {
	client      *s3.Client
	getter      *getter // nil: every GET is the SDK's
	transport   *http.Transport
	guard       *stallGuard
	limiter     *ufslimit.Limiter
	bucket      string
	prefix      string // "" or with a slash at its end
	uri         string // without a slash at its end
	endpoint    string // for messages
	payer       types.RequestPayer
	customerKey *customerKey // nil: none
	pageSize    int32        // keys per listing request
	bodies      bodies       // of listings
	now         func() time.Time
	pause       func(attempt int, err error) (time.Duration, error) // between attempts
}

var _ ufs.Opener = Open

// Open makes the store of cfg.URI, s3://BUCKET[/PREFIX]. It asks nothing of
// the network: a bucket that does not exist is seen by the first request.
// Options that are wrong are errs.Invalid and named.
func Open(ctx context.Context, cfg ufs.Config) (ufs.Store, error) {
	return open(ctx, cfg)
}

func open(ctx context.Context, cfg ufs.Config) (*Store, error) {
	set, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	awsConfig, err := loadConfig(ctx, set)
	if err != nil {
		return nil, errs.E(errs.Invalid, "open under-store", cfg.URI, fmt.Errorf("AWS configuration: %w", err))
	}
	// The SDK's own client has learned of AWS_CA_BUNDLE by now.
	buildable, ok := awsConfig.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		buildable = awshttp.NewBuildableClient()
	}
	s := &Store{
		transport: buildable.GetTransport(),
		bucket:    set.bucket,
		uri:       strings.TrimSuffix(scheme+set.bucket+"/"+set.prefix, "/"),
		pageSize:  1000, // the most that S3 answers
		bodies:    bodies{most: maxPageBody},
		now:       time.Now,
		pause:     backoff,
	}
	if err := s.setAccess(set); err != nil {
		return nil, errs.E(errs.Invalid, "open under-store", cfg.URI, err)
	}
	if set.prefix != "" {
		s.prefix = set.prefix + "/"
	}
	tuneTransport(s.transport, set.connections)
	s.guard = &stallGuard{next: s.transport, limit: stallTimeout}
	var rt http.RoundTripper = s.guard
	if cfg.Observer != nil {
		rt = &observed{next: rt, observer: cfg.Observer}
	}
	limits, err := ufs.ParseLimits(cfg.Options)
	if err != nil {
		return nil, errs.Wrap(err, "open under-store", cfg.URI)
	}
	s.limiter = ufslimit.New(limits)
	s.client = s.newClient(awsConfig, set, &http.Client{Transport: &adopter{next: rt}, CheckRedirect: keepRedirects})
	o := s.client.Options()
	s.getter = newGetter(ctx, o, set.bucket, set.anonymous, rt)
	s.endpoint = aws.ToString(o.BaseEndpoint)
	if s.customerKey != nil && !keepsSecrets(s.endpoint) {
		return nil, errs.E(errs.Invalid, "open under-store", cfg.URI,
			fmt.Errorf("a key of the customer's is sent over https alone, not to %s", s.endpoint))
	}
	if s.endpoint == "" {
		s.endpoint = "AWS in region " + o.Region
	}
	return s, nil
}

// setAccess sets what goes with each request besides the signature.
func (s *Store) setAccess(set settings) error {
	if set.requesterPays {
		s.payer = types.RequestPayerRequester
	}
	var err error
	s.customerKey, err = set.loadCustomerKey()
	return err
}

// loadConfig reads the SDK's environment variables and files, as far as the
// options do not overrule them.
func loadConfig(ctx context.Context, set settings) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient()),
		config.WithAppID("millrace"),
		config.WithLogger(logging.Nop{}), // what matters comes back as an error
	}
	if set.region != "" {
		opts = append(opts, config.WithRegion(set.region))
	}
	switch {
	case set.accessKeyEnv != "":
		opts = append(opts, config.WithCredentialsProvider(envCredentials{accessKey: set.accessKeyEnv, secretKey: set.secretKeyEnv}))
	case set.credentialsFile != "":
		// A profile that is named overrules AWS_ACCESS_KEY_ID, so the default
		// one is named too: who names a file means that file.
		profile := set.profile
		if profile == "" {
			profile = "default"
		}
		opts = append(opts, config.WithSharedConfigProfile(profile),
			config.WithSharedCredentialsFiles([]string{set.credentialsFile}),
			config.WithSharedConfigFiles([]string{}))
	case set.profile != "":
		opts = append(opts, config.WithSharedConfigProfile(set.profile))
	}
	return config.LoadDefaultConfig(ctx, opts...)
}

func (s *Store) newClient(awsConfig aws.Config, set settings, client *http.Client) *s3.Client {
	return s3.NewFromConfig(awsConfig, func(o *s3.Options) {
		o.HTTPClient = client
		o.Credentials = boundedCredentials{next: awsConfig.Credentials}
		if set.anonymous {
			o.Credentials = aws.AnonymousCredentials{}
		}
		if set.endpoint != "" {
			o.BaseEndpoint = aws.String(set.endpoint)
		}
		if o.Region == "" {
			o.Region = defaultRegion
		}
		if set.pathStyle != nil {
			o.UsePathStyle = *set.pathStyle
		} else if o.BaseEndpoint != nil {
			o.UsePathStyle = wantsPathStyle(*o.BaseEndpoint)
		}
		// Pages have a CRC of our own from here on; a second checksum over
		// each body would cost as much as the rest of the read.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
		o.Retryer = newRetryer(func(attempt int, err error) (time.Duration, error) { return s.pause(attempt, err) })
		if s.limiter != nil {
			o.APIOptions = append(o.APIOptions, limitAttempts(s.limiter))
		}
	})
}

// limitAttempts makes each attempt wait for its turn, before it is signed: a
// signature is good for a quarter of an hour.
func limitAttempts(limiter *ufslimit.Limiter) func(*middleware.Stack) error {
	step := middleware.FinalizeMiddlewareFunc("MillraceLimit",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			if handedOver(ctx) != nil { // it had its turn
				return next.HandleFinalize(ctx, in)
			}
			if err := limiter.Request(ctx); err != nil {
				return middleware.FinalizeOutput{}, middleware.Metadata{}, err
			}
			return next.HandleFinalize(ctx, in)
		})
	return func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(step, (*retry.Attempt)(nil).ID(), middleware.After)
	}
}

// Close closes the idle connections.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Stat describes path: one HEAD for a file, a HEAD and a LIST of one key for a
// directory or nothing.
func (s *Store) Stat(ctx context.Context, path string) (ufs.Info, error) {
	const op = "stat"
	if err := s.checkPath(op, path); err != nil {
		return ufs.Info{}, err
	}
	if path != "" {
		info, err := s.statFile(ctx, path)
		if err == nil || !errors.Is(err, errs.NotFound) {
			return info, err
		}
	}
	exists, err := s.dirExists(ctx, op, path)
	switch {
	case err != nil:
		return ufs.Info{}, err
	case !exists:
		return ufs.Info{}, errs.E(errs.NotFound, op, s.name(path), nil)
	}
	return ufs.Info{Path: path, Type: ufs.Dir}, nil
}

func (s *Store) statFile(ctx context.Context, path string) (ufs.Info, error) {
	in := &s3.HeadObjectInput{Bucket: &s.bucket, Key: aws.String(s.key(path)), RequestPayer: s.payer}
	if k := s.customerKey; k != nil {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = aws.String(customerAlgorithm), &k.key, &k.md5
	}
	out, err := s.client.HeadObject(ctx, in)
	if err != nil {
		return ufs.Info{}, s.fail(ctx, "stat", path, err)
	}
	if out.ContentLength == nil || *out.ContentLength < 0 {
		return ufs.Info{}, errs.E(errs.Unavailable, "stat", s.name(path), errors.New("the server does not say how long the object is"))
	}
	v := version{etag: aws.ToString(out.ETag), modified: aws.ToTime(out.LastModified), length: *out.ContentLength}
	return s.fileInfo(path, v, s.serverTime(out.ResultMetadata)), nil
}

// dirExists reports whether any key is below path. The root exists when its
// bucket does.
func (s *Store) dirExists(ctx context.Context, op, path string) (bool, error) {
	out, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &s.bucket, Prefix: aws.String(s.dirKey(path)), MaxKeys: aws.Int32(1), RequestPayer: s.payer,
	})
	if err != nil {
		return false, s.fail(ctx, op, path, err)
	}
	return path == "" || len(out.Contents) > 0 || len(out.CommonPrefixes) > 0, nil
}

func (s *Store) fileInfo(path string, v version, now time.Time) ufs.Info {
	return ufs.Info{
		Path: path, Type: ufs.File, Size: v.length, MTime: v.modified,
		Tag: v.tag(), Unsettled: v.unsettled(now),
	}
}

// serverTime returns the time at which the server answered, by its own clock
// where it says so: LastModified is by that clock too.
func (s *Store) serverTime(m middleware.Metadata) time.Time {
	if t, ok := awsmiddleware.GetServerTime(m); ok && !t.IsZero() {
		return t
	}
	return s.now()
}

// key returns the key of a file.
func (s *Store) key(path string) string { return s.prefix + path }

// dirKey returns what the keys below path start with.
func (s *Store) dirKey(path string) string {
	if path == "" {
		return s.prefix
	}
	return s.prefix + path + "/"
}

// name returns the URI of path, for messages.
func (s *Store) name(path string) string {
	if path == "" {
		return s.uri
	}
	return s.uri + "/" + path
}

func (s *Store) checkPath(op, path string) error {
	if ufs.ValidPath(path) {
		return nil
	}
	return errs.E(errs.Invalid, op, s.name(path), errors.New(`the path has an empty component, "." or ".."`))
}
