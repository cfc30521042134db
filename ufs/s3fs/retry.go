package s3fs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"millrace/internal/errs"
)

// Bounds of the SDK's retries: a reader waits for all of them, so that a
// connection that broke is worth little waiting, a server that asks for fewer
// requests more.
const (
	maxAttempts   = 5
	maxBackoff    = 5 * time.Second
	maxRetryAfter = 20 * time.Second // the most of what a server may ask for
	failedWait    = 100 * time.Millisecond
	throttleWait  = 500 * time.Millisecond
)

// newRetryer asks pause how long to wait, as backoff says it.
func newRetryer(pause func(attempt int, err error) (time.Duration, error)) aws.Retryer {
	return retry.NewStandard(func(r *retry.StandardOptions) {
		r.MaxAttempts = maxAttempts
		r.Backoff = retry.BackoffDelayerFunc(pause)
		r.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(isFinal)}, r.Retryables...)
		r.Retryables = append(r.Retryables, retry.RetryableHTTPStatusCode{
			Codes: map[int]struct{}{http.StatusTooManyRequests: {}},
		})
	})
}

// isFinal says no to what would be the same the next time, or has used up the
// reader's patience already: a server that takes connections and does not
// answer, for one.
func isFinal(err error) aws.Ternary {
	own, isOwn := errors.AsType[*errs.Error](err)
	if (isOwn && own.Kind == errs.Timeout) || errors.Is(err, errStalled) || timedOut(err) || tlsHint(err) != "" {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

// timedOut reports whether there was a connection, but no answer in time.
func timedOut(err error) bool {
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return false
	}
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// tlsHint says what to do about a server that cannot be spoken to safely, ""
// if that is not what happened.
func tlsHint(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return "the endpoint does not speak TLS: is it http:// rather than https://, or another port?"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the endpoint's certificate is signed by an authority that this host does not know: set AWS_CA_BUNDLE to a file with the authority's certificate"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the endpoint's certificate is for another host: use a name that it holds, or path_style=true if it does not hold the bucket's"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return "the endpoint's certificate is out of date, or the clock of this host is wrong"
		}
		return "the endpoint needs another certificate"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the endpoint needs another certificate"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "the endpoint refuses the TLS handshake: is it the right host and port, and does it speak TLS 1.2?"
	}
	return ""
}

// backoff returns how long to wait before the attempt that follows the given
// number of failed ones less one: twice as long each time, half of it random,
// and as long as the server asks for.
func backoff(attempt int, err error) (time.Duration, error) {
	wait := failedWait
	if throttled(err) {
		wait = throttleWait
	}
	for range attempt {
		wait = min(wait*2, maxBackoff)
	}
	half := wait / 2
	return max(half+rand.N(half), min(retryAfter(err, time.Now()), maxRetryAfter)), nil
}

// retryAfter returns how long the server asks to wait, in seconds or by a date,
// 0 if it does not.
func retryAfter(err error, now time.Time) time.Duration {
	response, ok := errors.AsType[*awshttp.ResponseError](err)
	if !ok || response.Response == nil || response.Response.Response == nil {
		return 0
	}
	header := response.Response.Header.Get("Retry-After")
	const most = int(maxRetryAfter / time.Second)
	if seconds, err := strconv.Atoi(header); err == nil {
		return time.Duration(min(max(seconds, 0), most)) * time.Second
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0
	}
	return max(at.Sub(now), 0)
}

func throttled(err error) bool {
	if (retry.ThrottleErrorCode{Codes: retry.DefaultThrottleErrorCodes}).IsErrorThrottle(err) == aws.TrueTernary {
		return true
	}
	var status interface{ HTTPStatusCode() int }
	if !errors.As(err, &status) {
		return false
	}
	switch status.HTTPStatusCode() {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	default:
		return false
	}
}
