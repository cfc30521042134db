package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"millrace/bench/rig"
)

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func size(n int64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// print writes the table of all phases.
func (d *demo) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, set := range d.sets {
		_, _ = fmt.Fprintf(t, "%d x %s\tseconds\trate\tS3 GETs\tother S3 requests\tmillrace CPU s\treader CPU s\t\n",
			len(set.Objects), size(set.Objects[0].Size))
		for _, r := range d.rows {
			if r.set.Name == set.Name {
				_, _ = fmt.Fprintf(t, "%s\t%.2f\t%s\t%d\t%d\t%.2f\t%.2f\t\n", r.phase, r.cost.Wall.Seconds(),
					rig.Rate(set, r.cost.Wall), r.cost.Gets, r.cost.Others, r.cost.Daemon.Seconds(), r.cost.Client.Seconds())
			}
		}
		_, _ = fmt.Fprintln(t, "\t\t\t\t\t\t\t")
	}
	_ = t.Flush()
	_, _ = fmt.Fprintln(w, "Readers: "+strconv.Itoa(bareReaders)+" requests at once direct from S3; files one after the other for the large, "+
		strconv.Itoa(smallReaders)+" at once for the small.\nThe kernel's caches were dropped before each phase, if this runs as root; the S3 server shares the processors.")
}
