package main

import (
	"errors"

	"github.com/spf13/cobra"

	"millrace/client"
)

func (a *app) duCommand() *cobra.Command {
	var cached bool
	c := &cobra.Command{
		Use:   "du PATH...",
		Short: "Sum the files at and below a path",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, pathArgs(args)...)
			if err != nil {
				return err
			}
			var list []client.Usage
			for _, p := range args {
				u, uerr := s.Usage(cmd.Context(), p)
				if uerr != nil {
					err = uerr
					break
				}
				u.Path = p
				list = append(list, u)
			}
			return errors.Join(err, a.printUsage(list, cached), s.Close())
		},
	}
	c.Flags().BoolVar(&cached, "cached", false, "also how much of it is cached")
	a.outputFlag(c.Flags())
	return c
}

// printUsage prints one sum as an object, several as one object a line.
func (a *app) printUsage(list []client.Usage, cached bool) error {
	if len(list) == 0 {
		return nil
	}
	if a.output == "json" {
		for _, u := range list {
			if err := a.jsonLine(struct {
				client.Usage

				PathBase64 string `json:"path_base64,omitempty"`
			}{u, rawPath(u.Path)}); err != nil {
				return err
			}
		}
		return nil
	}
	head := []string{"FILES", "BYTES", "SIZE", "PATH"}
	if cached {
		head = []string{"FILES", "BYTES", "SIZE", "CACHED", "", "PATH"}
	}
	t := a.table(head...)
	for _, u := range list {
		row := []string{countText(u.Files), countText(u.Bytes), sizeText(u.Bytes)}
		if cached {
			row = append(row, sizeText(u.CachedBytes), cachedText(u.CachedBytes, u.Bytes))
		}
		t.row(append(row, u.Path)...)
	}
	return t.flush()
}
