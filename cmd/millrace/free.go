package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) freeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "free PATH...",
		Short: "Drop what is cached at and below a path",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd, pathArgs(args)...)
			if err != nil {
				return err
			}
			for _, p := range args {
				f, ferr := s.Free(cmd.Context(), p)
				if ferr != nil {
					err = ferr
					break
				}
				f.Path = p
				if a.output == "json" {
					err = a.jsonLine(f)
				} else {
					_, err = fmt.Fprintf(a.stdout, "freed %s, %s at %s\n", plural(f.Files, "file", "files"), sizeText(f.Bytes), printable(p))
				}
				if err != nil {
					break
				}
			}
			return errors.Join(err, s.Close())
		},
	}
	a.outputFlag(c.Flags())
	return c
}
