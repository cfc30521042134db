package s3fs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"millrace/internal/errs"
)

// fail gives an error of the SDK its kind, and a text that a user can act on.
// ctx is the caller's own: a deadline of a part of the request is not his.
func (s *Store) fail(ctx context.Context, op, path string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return errs.Wrap(cause, op, s.name(path))
	}
	if credentials, ok := errors.AsType[*credentialsError](err); ok {
		return errs.E(errs.Permission, op, s.name(path), credentials).
			WithHint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the option profile, credentials_file, access_key_env with secret_key_env, or anonymous=true")
	}
	if own, ok := errors.AsType[*errs.Error](err); ok { // of the limiter or the pages
		return errs.Wrap(own, op, s.name(path))
	}
	response, ok := errors.AsType[*awshttp.ResponseError](err)
	if !ok || response.HTTPStatusCode() == 0 || errors.Is(err, errStalled) {
		return s.failWithout(op, path, err)
	}
	status := response.HTTPStatusCode()
	code, message := "", http.StatusText(status)
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
		if m := api.ErrorMessage(); m != "" {
			message = m
		}
	}
	kind, hint := s.classify(response, path, code)
	text := fmt.Sprintf("%s (HTTP %d", message, status)
	if code != "" && code != message {
		text += ", " + code
	}
	if id := response.ServiceRequestID(); id != "" {
		text += ", request " + id
	}
	e := errs.E(kind, op, s.name(path), errors.New(text+")"))
	if hint != "" {
		e = e.WithHint(hint)
	}
	return e
}

// classify returns the kind of an answer that is an error, and a hint.
func (s *Store) classify(response *awshttp.ResponseError, path, code string) (errs.Kind, string) {
	kind, hint := classify(response.HTTPStatusCode(), code)
	if region := response.Response.Header.Get("X-Amz-Bucket-Region"); region != "" && kind == errs.Invalid {
		hint = "the bucket is in region " + region + ": set the option region"
	}
	if code == codeNoSuchBucket && path == "" {
		kind = errs.NotFound // the root itself; see the function classify
	}
	if hint == "" && response.HTTPStatusCode() == http.StatusBadRequest {
		hint = s.badRequestHint(code)
	}
	return kind, hint
}

// badRequestHint guesses what a server minds that says no more than 400.
func (s *Store) badRequestHint(code string) string {
	switch {
	case code == "KeyTooLongError":
		return "the server takes no key as long as this"
	case strings.HasPrefix(s.endpoint, "http://") && !strings.HasPrefix(code, "Invalid"):
		return "does the endpoint speak https? If the object is encrypted with a key of the customer's, set the option sse_c_key_file"
	default:
		return "if the object is encrypted with a key of the customer's, set the option sse_c_key_file"
	}
}

// failWithout classifies an error that came without an answer.
func (s *Store) failWithout(op, path string, err error) error {
	var unwritten *smithy.SerializationError
	var params smithy.InvalidParamsError
	if errors.As(err, &unwritten) || errors.As(err, &params) {
		return errs.E(errs.Invalid, op, s.name(path), err)
	}
	// What the SDK puts in front, the operation and the URL, says nothing new.
	if operation, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = operation.Unwrap()
	}
	if request, ok := errors.AsType[*url.Error](err); ok {
		err = request.Unwrap()
	}
	hint := tlsHint(err)
	switch {
	case hint != "":
	case timedOut(err), errors.Is(err, errStalled):
		hint = "the endpoint takes connections and does not answer: is it an S3 server, and is it well?"
	default:
		hint = "is the endpoint right, and can it be reached?"
	}
	return errs.E(errs.Unavailable, op, s.name(path), fmt.Errorf("endpoint %s: %w", s.endpoint, err)).WithHint(hint)
}

// codeNoSuchBucket is the code of an answer that is no word on any object.
const codeNoSuchBucket = "NoSuchBucket"

// classify returns what a status and a code mean, and a hint.
func classify(status int, code string) (errs.Kind, string) {
	switch code {
	case codeNoSuchBucket:
		// The files are not gone: who sees a mistyped or vanished bucket as
		// deleted files would forget what he has of them.
		return errs.Unavailable, "the bucket does not exist: check its name, the endpoint and the region"
	case "NoSuchKey", "NotFound":
		return errs.NotFound, ""
	case "XAdminUserNotFound", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken":
		return errs.Permission, "check the access key and the secret key"
	case "RequestTimeTooSkewed":
		return errs.Permission, "the clock of this host is wrong"
	case "SlowDown", "Throttling", "TooManyRequests", "RequestLimitExceeded":
		return errs.Throttled, ""
	case "InvalidObjectState":
		return errs.Unsupported, "the object is archived: restore it first"
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return errs.Invalid, "the bucket is in another region: set the option region"
	}
	switch status {
	case http.StatusNotFound:
		if code == "" || strings.HasPrefix(code, "NoSuch") {
			return errs.NotFound, ""
		}
		// Something else than the object is not there; to take that for the
		// object would make it look deleted.
		return errs.Unavailable, "is the endpoint an S3 server?"
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return errs.Stale, ""
	case http.StatusUnauthorized, http.StatusForbidden:
		return errs.Permission, "these credentials may not do this: check the keys, the bucket's policy, and whether the bucket wants requester_pays=true"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return errs.Throttled, ""
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect:
		return errs.Invalid, "the bucket is in another region: set the option region"
	}
	if status >= http.StatusInternalServerError || status < http.StatusBadRequest {
		return errs.Unavailable, ""
	}
	return errs.Invalid, ""
}
