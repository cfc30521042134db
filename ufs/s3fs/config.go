package s3fs

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"millrace/internal/errs"
	"millrace/ufs"
)

// The option keys of an S3 under-store mount.
const (
	optEndpoint        = "endpoint"         // http(s)://HOST[:PORT]; default AWS's, or AWS_ENDPOINT_URL
	optRegion          = "region"           // default the SDK's, then us-east-1
	optPathStyle       = "path_style"       // bucket in the path, not in the host name; by itself for IPs and hosts without a dot
	optAnonymous       = "anonymous"        // do not sign
	optProfile         = "profile"          // of the AWS configuration files
	optCredentialsFile = "credentials_file" // in the format of ~/.aws/credentials
	optAccessKeyEnv    = "access_key_env"   // name of the environment variable of the access key
	optSecretKeyEnv    = "secret_key_env"   //nolint:gosec // the option names the environment variable of the secret key
	optConnections     = "connections"      // idle connections kept, default 128
	optRequesterPays   = "requester_pays"   // who asks pays for the request
	optSSECKeyFile     = "sse_c_key_file"   // file with the customer's key: 32 bytes, or their base64
	optSSECKeyEnv      = "sse_c_key_env"    // name of the environment variable with its base64
)

const (
	scheme             = "s3://"
	defaultConnections = 128
	maxConnections     = 1 << 16
	defaultRegion      = "us-east-1"
)

// settings are the parsed URI and options.
type settings struct {
	bucket, prefix  string // the prefix has no slash at either end
	endpoint        string
	region          string
	pathStyle       *bool // nil: by the endpoint
	anonymous       bool
	profile         string
	credentialsFile string
	accessKeyEnv    string
	secretKeyEnv    string
	connections     int
	requesterPays   bool
	sseCKeyFile     string
	sseCKeyEnv      string
}

func parse(cfg ufs.Config) (settings, error) {
	s := settings{connections: defaultConnections}
	bad := func(format string, args ...any) error {
		return errs.E(errs.Invalid, "open under-store", cfg.URI, fmt.Errorf(format, args...))
	}
	rest, ok := strings.CutPrefix(cfg.URI, scheme)
	if !ok {
		return s, bad("want s3://BUCKET[/PREFIX]")
	}
	s.bucket, s.prefix, _ = strings.Cut(rest, "/")
	s.prefix = strings.TrimSuffix(s.prefix, "/")
	if !validBucket(s.bucket) {
		return s, bad("%q is no bucket name: want s3://BUCKET[/PREFIX]", s.bucket)
	}
	if !ufs.ValidPath(s.prefix) {
		return s, bad(`the prefix %q has an empty component, "." or ".."`, s.prefix)
	}
	err := ufs.CheckOptions(cfg, optEndpoint, optRegion, optPathStyle, optAnonymous, optProfile,
		optCredentialsFile, optAccessKeyEnv, optSecretKeyEnv, optConnections,
		optRequesterPays, optSSECKeyFile, optSSECKeyEnv)
	if err != nil {
		return s, err
	}
	if err := s.setOptions(cfg.Options); err != nil {
		return s, bad("%w", err)
	}
	return s, nil
}

func (s *settings) setOptions(options map[string]string) error {
	s.region = options[optRegion]
	s.profile = options[optProfile]
	s.credentialsFile = options[optCredentialsFile]
	s.accessKeyEnv, s.secretKeyEnv = options[optAccessKeyEnv], options[optSecretKeyEnv]
	if v := options[optEndpoint]; v != "" {
		if err := checkEndpoint(v); err != nil {
			return fmt.Errorf("option %s: %w", optEndpoint, err)
		}
		s.endpoint = v
	}
	if options[optPathStyle] != "" {
		s.pathStyle = new(bool)
		if err := parseBool(options, optPathStyle, s.pathStyle); err != nil {
			return err
		}
	}
	if err := parseBool(options, optAnonymous, &s.anonymous); err != nil {
		return err
	}
	if err := parseBool(options, optRequesterPays, &s.requesterPays); err != nil {
		return err
	}
	if v := options[optConnections]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxConnections {
			return fmt.Errorf("option %s: want a number from 1 to %d, not %q", optConnections, maxConnections, v)
		}
		s.connections = n
	}
	s.sseCKeyFile, s.sseCKeyEnv = options[optSSECKeyFile], options[optSSECKeyEnv]
	switch {
	case s.sseCKeyFile != "" && s.sseCKeyEnv != "":
		return errors.New("options sse_c_key_file and sse_c_key_env exclude each other")
	case s.requesterPays && s.anonymous:
		return errors.New("options requester_pays and anonymous exclude each other: there is nobody to pay")
	}
	return s.checkCredentialOptions()
}

// parseBool sets to where the option is given.
func parseBool(options map[string]string, key string, to *bool) error {
	v := options[key]
	if v == "" {
		return nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("option %s: want true or false, not %q", key, v)
	}
	*to = b
	return nil
}

// checkCredentialOptions reports options that say two things about who asks.
func (s *settings) checkCredentialOptions() error {
	fromEnv := s.accessKeyEnv != "" || s.secretKeyEnv != ""
	fromFile := s.profile != "" || s.credentialsFile != ""
	switch {
	case s.anonymous && (fromEnv || fromFile):
		return errors.New("option anonymous excludes the options that name credentials")
	case fromEnv && fromFile:
		return errors.New("options access_key_env and secret_key_env exclude profile and credentials_file")
	case fromEnv && (s.accessKeyEnv == "" || s.secretKeyEnv == ""):
		return errors.New("options access_key_env and secret_key_env are needed together")
	}
	if s.credentialsFile != "" {
		f, err := os.Open(s.credentialsFile)
		if err != nil {
			return fmt.Errorf("option %s: %w", optCredentialsFile, err)
		}
		return f.Close()
	}
	return nil
}

// checkEndpoint does not repeat an endpoint with a user part, which may hold a
// password.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return errors.New("want http(s)://HOST[:PORT]")
	case u.User != nil:
		return errors.New("a user or password does not belong into the endpoint")
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("want http(s)://HOST[:PORT], not %q", endpoint)
	}
	return nil
}

// validBucket accepts all that any S3 server names a bucket, and nothing that
// would change the meaning of a URL.
func validBucket(name string) bool {
	const longest = 255
	if name == "" || len(name) > longest || name == "." || name == ".." {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// wantsPathStyle reports whether the host of an endpoint can carry no bucket
// name in front of it: an IP, or a name of one label, which is of this host or
// of a container network and has no names below it.
func wantsPathStyle(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	host := u.Hostname()
	return !strings.Contains(host, ".") || net.ParseIP(host) != nil
}
