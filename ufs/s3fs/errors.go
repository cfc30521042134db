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
	response, ok := errors.AsType[*awshttp.ResponseError](err)
	if !ok || response.HTTPStatusCode() == 0 {
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
	kind, hint := classify(status, code)
	if region := response.Response.Header.Get("X-Amz-Bucket-Region"); region != "" && kind == errs.Invalid {
		hint = "the bucket is in region " + region + ": set the option region"
	}
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
	return errs.E(errs.Unavailable, op, s.name(path), err).WithHint("is the endpoint right, and can it be reached?")
}

// classify returns the kind of an answer that is an error, and a hint.
func classify(status int, code string) (errs.Kind, string) {
	switch code {
	case "NoSuchBucket":
		return errs.NotFound, "the bucket does not exist: check its name, the endpoint and the region"
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
		return errs.Permission, "these credentials may not do this: check the keys and the bucket's policy"
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
