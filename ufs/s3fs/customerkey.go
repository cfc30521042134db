package s3fs

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the protocol wants an MD5 of the key, to see that it came whole
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// Server-side encryption with a key that the customer keeps and sends along
// with each request (SSE-C).
const (
	customerAlgorithm = "AES256"
	customerKeyBytes  = 32
)

// customerKey is a key as its headers want it. It never shows itself.
type customerKey struct{ key, md5 string } // both base64

// String keeps the key out of messages.
func (*customerKey) String() string { return "(a secret)" }

// GoString keeps the key out of messages.
func (*customerKey) GoString() string { return "(a secret)" }

// loadCustomerKey reads the key that the options name, nil when they name none.
// Its errors never repeat what was read.
func (s *settings) loadCustomerKey() (*customerKey, error) {
	var data []byte
	var option string
	switch {
	case s.sseCKeyFile != "":
		option = optSSECKeyFile
		var err error
		if data, err = os.ReadFile(s.sseCKeyFile); err != nil {
			return nil, fmt.Errorf("option %s: %w", option, err)
		}
	case s.sseCKeyEnv != "":
		option = optSSECKeyEnv
		v := os.Getenv(s.sseCKeyEnv) //nolint:forbidigo // the option names the variable: secrets are named, never passed
		if v == "" {
			return nil, fmt.Errorf("option %s: the environment variable %s is not set in this process", option, s.sseCKeyEnv)
		}
		data = []byte(v)
	default:
		return nil, nil //nolint:nilnil // no key is asked for
	}
	raw := data
	if len(raw) != customerKeyBytes {
		decoded, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(data)))
		if err != nil || len(decoded) != customerKeyBytes {
			return nil, fmt.Errorf("option %s: want a key of %d bytes, or their base64", option, customerKeyBytes)
		}
		raw = decoded
	}
	sum := md5.Sum(raw) //nolint:gosec // see the import
	return &customerKey{key: base64.StdEncoding.EncodeToString(raw), md5: base64.StdEncoding.EncodeToString(sum[:])}, nil
}

// keepsSecrets reports whether nobody between here and an endpoint can read
// along; "" is AWS itself.
func keepsSecrets(endpoint string) bool {
	if endpoint == "" || strings.HasPrefix(endpoint, "https://") {
		return true
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || (ip != nil && ip.IsLoopback())
}
