package s3fs

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
)

// Bounds of the SDK's retries: a reader waits for all of them, so that a
// connection that broke is worth little waiting, a server that asks for fewer
// requests more.
const (
	maxAttempts  = 5
	maxBackoff   = 5 * time.Second
	failedWait   = 100 * time.Millisecond
	throttleWait = 500 * time.Millisecond
)

// backoff returns how long to wait before the attempt that follows the given
// number of failed ones less one: twice as long each time, half of it random.
func backoff(attempt int, err error) (time.Duration, error) {
	wait := failedWait
	if throttled(err) {
		wait = throttleWait
	}
	for range attempt {
		wait = min(wait*2, maxBackoff)
	}
	half := wait / 2
	return half + rand.N(half), nil
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
