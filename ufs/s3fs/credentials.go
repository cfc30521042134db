package s3fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// credentialsTimeout bounds how long the SDK's chain may look for credentials:
// outside of EC2 its last station does not answer.
const credentialsTimeout = 5 * time.Second

// credentialsError says that there is no one to sign as. It keeps the text of
// its cause alone, so that the SDK's retryer does not take a metadata service
// that cannot be reached for a reason to ask again.
type credentialsError struct{ text string }

func (e *credentialsError) Error() string { return "no credentials: " + e.text }

// RetryableError tells the SDK's retryer to give up.
func (*credentialsError) RetryableError() bool { return false }

// boundedCredentials gives up in time and says so clearly.
type boundedCredentials struct{ next aws.CredentialsProvider }

// Retrieve returns the credentials to sign with.
func (c boundedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if c.next == nil {
		return aws.Credentials{}, &credentialsError{text: "none are configured"}
	}
	bounded, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	v, err := c.next.Retrieve(bounded)
	if err == nil || ctx.Err() != nil {
		return v, err
	}
	if errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return aws.Credentials{}, &credentialsError{text: fmt.Sprintf("the AWS SDK's chain found none within %v", credentialsTimeout)}
	}
	return aws.Credentials{}, &credentialsError{text: err.Error()}
}

// envCredentials reads the keys from the environment variables that the
// options name.
type envCredentials struct{ accessKey, secretKey string }

// Retrieve returns the credentials to sign with.
func (e envCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	v := aws.Credentials{Source: "environment variables named by options"}
	for _, key := range []struct {
		env string
		to  *string
	}{{e.accessKey, &v.AccessKeyID}, {e.secretKey, &v.SecretAccessKey}} {
		*key.to = os.Getenv(key.env) //nolint:forbidigo // the option names the variable: secrets are named, never passed
		if *key.to == "" {
			return aws.Credentials{}, fmt.Errorf("the environment variable %s is not set in this process", key.env)
		}
	}
	return v, nil
}
