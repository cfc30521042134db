package main

import (
	"fmt"
	"strings"
)

// ufsOption is one --ufs-opt, for the help. docs/ufs.md says more.
type ufsOption struct{ key, value, text string }

// ufsOptions are those of all kinds of under-stores, those of S3, and those of
// HDFS.
func ufsOptions() (all, s3, hdfs []ufsOption) {
	all = []ufsOption{
		{"freshness", "ttl|never|always", "for how long what is known of names is believed (ttl)"},
		{"ttl", "DURATION", "how long that is with freshness=ttl (60s)"},
		{"block_size", "SIZE", "of the blocks that files are divided into (64MiB)"},
		{"placement", "local|spread", "replicas on the hosts that read, or none (local)"},
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
	hdfs = []ufsOption{
		{"namenodes", "HOST:PORT,...", "all NameNodes of a cluster that has several (by the URI and HADOOP_CONF_DIR)"},
		{"user", "NAME", "who asks (HADOOP_USER_NAME, else the process's user)"},
		{"conf_dir", "DIR", "with core-site.xml and hdfs-site.xml (HADOOP_CONF_DIR)"},
		{"keytab", "FILE", "switches Kerberos on; with principal"},
		{"principal", "NAME@REALM", "of the keytab"},
		{"krb5_conf", "FILE", "(KRB5_CONFIG, else /etc/krb5.conf)"},
		{"namenode_principal", "NAME/HOST", "of the NameNodes (as configured, else nn/_HOST)"},
		{"use_hostname", "BOOL", "DataNodes by name, not by IP (as configured)"},
		{"datanode_timeout", "DURATION", "how long a DataNode may bring nothing (2s)"},
		{"namenode_timeout", "DURATION", "how long a call of a NameNode may take (5s)"},
		{"clients", "NUMBER", "connections to the NameNode (4)"},
	}
	return all, s3, hdfs
}

// ufsOptionsHelp is the list of all options with their defaults.
func ufsOptionsHelp() string {
	var b strings.Builder
	all, s3, hdfs := ufsOptions()
	for _, group := range []struct {
		title string
		list  []ufsOption
	}{{"Options of every under-store (--ufs-opt key=value), with their defaults:", all}, {"of S3:", s3}, {"and of HDFS:", hdfs}} {
		fmt.Fprintf(&b, "\n%s\n", group.title)
		for _, o := range group.list {
			fmt.Fprintf(&b, "  %-30s %s\n", o.key+"="+o.value, o.text)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}
