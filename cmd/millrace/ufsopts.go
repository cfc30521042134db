package main

import (
	"fmt"
	"strings"
)

// ufsOption is one --ufs-opt, for the help. docs/ufs.md says more.
type ufsOption struct{ key, value, text string }

// ufsOptions are those of all kinds of under-stores, and those of S3.
func ufsOptions() (all, s3 []ufsOption) {
	all = []ufsOption{
		{"freshness", "ttl|never|always", "for how long what is known of names is believed (ttl)"},
		{"ttl", "DURATION", "how long that is with freshness=ttl (60s)"},
		{"block_size", "SIZE", "of the blocks that files are divided into (64MiB)"},
		{"verify", "once|always", "how often a cached page is compared with its checksum (once)"},
		{"max_bandwidth", "SIZE[/s]", "bytes of files per second and process (no limit)"},
		{"max_requests", "NUMBER[/s]", "requests per second and process (no limit)"},
	}
	s3 = []ufsOption{
		{"endpoint", "URL", "http(s)://HOST[:PORT] (AWS_ENDPOINT_URL, else AWS)"},
		{"region", "NAME", "(that of the AWS environment, else us-east-1)"},
		{"path_style", "BOOL", "the bucket in the path, not in the host name (by the endpoint)"},
		{"anonymous", "BOOL", "do not sign requests"},
		{"profile", "NAME", "of the AWS configuration files"},
		{"credentials_file", "FILE", "in the format of ~/.aws/credentials"},
		{"access_key_env", "NAME", "environment variable that holds the access key"},
		{"secret_key_env", "NAME", "environment variable that holds the secret key"},
		{"requester_pays", "BOOL", "who asks pays"},
		{"sse_c_key_file", "FILE", "key of objects that are encrypted with the customer's"},
		{"sse_c_key_env", "NAME", "environment variable that holds that key, as base64"},
		{"connections", "NUMBER", "idle connections that are kept (128)"},
	}
	return all, s3
}

// ufsOptionsHelp is the list of all options with their defaults.
func ufsOptionsHelp() string {
	var b strings.Builder
	all, s3 := ufsOptions()
	for _, group := range []struct {
		title string
		list  []ufsOption
	}{{"Options of every under-store (--ufs-opt key=value), with their defaults:", all}, {"and of S3:", s3}} {
		fmt.Fprintf(&b, "\n%s\n", group.title)
		for _, o := range group.list {
			fmt.Fprintf(&b, "  %-30s %s\n", o.key+"="+o.value, o.text)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}
