package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"millrace/internal/config"
	"millrace/internal/errs"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check and show the configuration"}
	c.AddCommand(a.configCheckCommand(), a.configShowCommand(), a.configDefaultCommand())
	return c
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Name every mistake in a configuration file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return errs.Wrap(err, "read configuration", args[0])
			}
			src := configSources(nil) // the file alone, whatever the environment says
			src.File, src.Data = args[0], b
			if _, _, err := loadSettings(src); err != nil {
				_, _ = fmt.Fprintln(a.stderr, err)
				return errTold
			}
			return nil
		},
	}
}

func (a *app) configShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the effective values and where each comes from",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, loaded, err := a.settings(cmd, nil)
			if err != nil {
				return err
			}
			if a.output == "json" {
				type row struct {
					Key    string `json:"key"`
					Value  any    `json:"value"`
					Origin string `json:"origin"`
					Env    string `json:"env"`
				}
				rows := []row{}
				for _, k := range loaded.Keys() {
					rows = append(rows, row{k.Path, k.Value(), k.Origin, k.Env})
				}
				return a.json(rows)
			}
			t := a.table("KEY", "VALUE", "ORIGIN")
			for _, k := range loaded.Keys() {
				t.row(k.Path, k.Literal(), k.Origin)
			}
			return t.flush()
		},
	}
	a.outputFlag(c.Flags())
	return c
}

func (a *app) configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print the default configuration file, with its documentation",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, defaultFileHead)
			if err != nil {
				return err
			}
			return config.WriteDefault(a.stdout, defaultSettings(), newElements(), keyDoc)
		},
	}
}

const defaultFileHead = `# The configuration of Millrace: one file for all roles, each of which reads
# its own sections. Everything here is the default; a key that is left out has
# it too. A key is also an environment variable, worker.listen for one is
# MILLRACE_WORKER_LISTEN, and the common ones are flags. A flag goes over the
# environment, that over this file.
#
# Sizes are written as "64MiB", "10GB" or "1048576", durations as "30s".
`

// keyDoc returns the documentation of a table or key.
func keyDoc(path string) string { return keyDocs()[path] }
