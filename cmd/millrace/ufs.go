package main

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/hdfsfs"
	"millrace/ufs/localfs"
	"millrace/ufs/s3fs"
)

// underStores is every kind of under-store that this binary knows.
func underStores() ufs.Registry {
	return ufs.Registry{"file": localfs.Open, "hdfs": hdfsfs.Open, "s3": s3fs.Open}
}

func (a *app) ufsCommand() *cobra.Command {
	c := &cobra.Command{Use: "ufs", Short: "Bind under-stores to paths of the namespace"}
	c.AddCommand(a.ufsAddCommand(), a.ufsListCommand(), a.ufsRemoveCommand())
	return c
}

func (a *app) ufsAddCommand() *cobra.Command {
	var options []string
	c := &cobra.Command{
		Use:   "add PATH URI",
		Short: "Bind an under-store, such as s3://bucket/prefix, to a path",
		Long:  "Binds an under-store, such as s3://bucket/prefix, hdfs://namenode/dir or file:///dir, to a path.\n" + ufsOptionsHelp(),
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := parseUFSOptions(options)
			if err != nil {
				return err
			}
			uri, err := checkURI(args[1])
			if err != nil {
				return err
			}
			s, err := a.connect(cmd, &args[0])
			if err != nil {
				return err
			}
			_, err = s.AddUFS(cmd.Context(), args[0], uri, opts)
			return errors.Join(err, s.Close())
		},
	}
	addUFSOptFlag(c, &options)
	return c
}

func addUFSOptFlag(c *cobra.Command, options *[]string) {
	c.Flags().StringArrayVar(options, "ufs-opt", nil, "option of the under-store, `key=value`; may be repeated (ufs add --help lists them)")
}

func (a *app) ufsListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the under-stores and where they are bound",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			list, err := s.ListUFS(cmd.Context())
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(noNil(list))
			}
			t := a.table("PATH", "URI", "OPTIONS")
			for _, m := range list {
				t.row(m.Path, m.URI, optionsText(m.Options))
			}
			return t.flush()
		},
	}
	a.outputFlag(c.Flags())
	return c
}

func (a *app) ufsRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm PATH",
		Short: "Unbind the under-store at a path; its data stays where it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, &args[0])
			if err != nil {
				return err
			}
			return errors.Join(s.RemoveUFS(cmd.Context(), args[0]), s.Close())
		},
	}
}

func optionsText(m map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+m[k])
	}
	return strings.Join(list, ",")
}

// parseUFSOptions reads the values of --ufs-opt. Their values are never
// repeated in a message, since one of them may be a secret by mistake.
func parseUFSOptions(list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef("--ufs-opt: want key=value")
		}
		if holdsSecret(k) {
			return nil, usagef("--ufs-opt %s: a secret is not given on the command line; name the environment variable that holds it (access_key_env, secret_key_env) or a file (credentials_file)", k)
		}
		if _, twice := m[k]; twice {
			return nil, usagef("--ufs-opt %s is given twice", k)
		}
		m[k] = v
	}
	return m, nil
}

// holdsSecret says that a key would hold a secret rather than name one.
func holdsSecret(key string) bool {
	if strings.HasSuffix(key, "_env") || strings.HasSuffix(key, "_file") {
		return false
	}
	for _, word := range []string{"secret", "password", "token", "access_key", "credential"} {
		if strings.Contains(strings.ToLower(key), word) {
			return true
		}
	}
	return false
}

// checkURI refuses what cannot be an under-store's URI, and returns it in the
// one form in which it is kept and compared: without a slash at its end.
func checkURI(uri string) (string, error) {
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		return "", usagef("the under-store's URI cannot be read, want one like s3://bucket/prefix, hdfs://namenode/dir or file:///dir")
	case u.User != nil:
		return "", usagef("%s: credentials do not belong into the URI", u.Redacted())
	case u.Scheme == "":
		return "", usagef("%q is no URI of an under-store, want one like s3://bucket/prefix, hdfs://namenode/dir or file:///dir", uri)
	}
	if known := underStores(); known[u.Scheme] == nil {
		return "", errs.E(errs.Unsupported, "open under-store", uri,
			fmt.Errorf("scheme %q is unknown, known are %s", u.Scheme, strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
	}
	if trimmed := strings.TrimRight(uri, "/"); strings.Contains(trimmed, "://") {
		return trimmed, nil
	}
	return uri, nil
}

// noNil turns a list that is not there into an empty one, which is what JSON
// should say.
func noNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
