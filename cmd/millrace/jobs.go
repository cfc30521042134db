package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/client"
	"millrace/internal/errs"
)

func (a *app) jobsCommand() *cobra.Command {
	c := &cobra.Command{Use: "jobs", Short: "Look after load jobs"}
	c.AddCommand(a.jobsListCommand(), a.jobsShowCommand(), a.jobsWatchCommand(), a.jobsCancelCommand())
	return c
}

func (a *app) jobsListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the jobs, newest first",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			list, err := s.Jobs(cmd.Context())
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(noNil(list))
			}
			t := a.table("ID", "STATE", "FILES", "BYTES", "FAILED", "STARTED", "PATHS")
			for _, j := range list {
				t.row(j.ID, j.State, countText(sumDone(j.Files))+"/"+countText(j.Files.Listed),
					sizeText(sumDone(j.Bytes))+"/"+sizeText(j.Bytes.Listed), countText(j.Files.Failed),
					timeText(j.Started), strings.Join(j.Paths, " "))
			}
			return t.flush()
		},
	}
	a.outputFlag(c.Flags())
	return c
}

func (a *app) jobsShowCommand() *cobra.Command {
	return a.jobCommand("show ID", "Describe a job", func(ctx context.Context, s *session, id string) error {
		j, err := s.Job(ctx, id)
		if err != nil {
			return err
		}
		return a.printJob(&j)
	})
}

func (a *app) jobsWatchCommand() *cobra.Command {
	return a.jobCommand("watch ID", "Follow a job to its end", func(ctx context.Context, s *session, id string) error {
		return a.follow(ctx, s, id, a.output == "json")
	})
}

func (a *app) jobsCancelCommand() *cobra.Command {
	return a.jobCommand("cancel ID", "End a job; what it has loaded stays", func(ctx context.Context, s *session, id string) error {
		j, err := s.CancelJob(ctx, id)
		if err != nil {
			return err
		}
		return a.printJob(&j)
	})
}

func (a *app) jobCommand(use, short string, do func(context.Context, *session, string) error) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			return errors.Join(do(cmd.Context(), s, args[0]), s.Close())
		},
	}
	a.outputFlag(c.Flags())
	return c
}

// follow shows a job's progress until it ends. With stream, each state is an
// object a line on stdout. It fails unless every file is cached.
func (a *app) follow(ctx context.Context, s *session, id string, stream bool) error {
	var last client.Job
	p := a.progress("job " + id)
	var failed error
	for j, err := range s.WatchJob(ctx, id) {
		if err != nil {
			failed = err
			break
		}
		last = j
		p.update(progressState{
			doneBytes: sumDone(j.Bytes), totalBytes: j.Bytes.Listed,
			doneFiles: sumDone(j.Files), totalFiles: j.Files.Listed, final: j.Final(),
		})
		if stream {
			if failed = a.jsonLine(j); failed != nil {
				break
			}
		}
	}
	p.end()
	if ctx.Err() != nil {
		_, _ = fmt.Fprintf(a.stderr, "no longer watching; job %s goes on: see it with `millrace jobs show %s`, end it with `millrace jobs cancel %s`\n", id, id, id)
		return errTold
	}
	if failed != nil {
		return failed
	}
	if !last.Final() {
		return errs.E(errs.Unavailable, "watch job", id, errors.New("the watch ended before the job"))
	}
	if !stream {
		if err := a.printJob(&last); err != nil {
			return err
		}
	}
	return outcome(&last)
}

// outcome is nil only when every file of the job is cached.
func outcome(j *client.Job) error {
	switch {
	case j.State == client.JobSucceeded && j.Files.Failed == 0:
		return nil
	case j.Error != "":
		return fmt.Errorf("job %s %s: %s", j.ID, j.State, j.Error)
	case j.Files.Failed > 0:
		return fmt.Errorf("job %s: %s could not be loaded", j.ID, plural(j.Files.Failed, "file", "files"))
	default:
		return fmt.Errorf("job %s %s", j.ID, j.State)
	}
}

// sumDone is what of the sums needs no more work.
func sumDone(s client.JobSums) int64 { return s.Loaded + s.AlreadyCached + s.Failed + s.Gone }

func (a *app) printJob(j *client.Job) error {
	if a.output == "json" {
		return a.json(j)
	}
	t := a.table()
	t.row("job", j.ID)
	t.row("state", j.State)
	t.row("paths", strings.Join(j.Paths, " "))
	t.row("files", sumsText(j.Files, countText))
	t.row("bytes", sumsText(j.Bytes, sizeText))
	t.row("started", timeText(j.Started))
	if j.Finished != nil {
		t.row("finished", timeText(*j.Finished)+" after "+j.Finished.Sub(j.Started).Round(time.Millisecond).String())
	}
	if j.Error != "" {
		t.row("error", j.Error)
	}
	return t.flush()
}

func sumsText(s client.JobSums, text func(int64) string) string {
	parts := []string{text(s.Listed) + " listed", text(s.Loaded) + " loaded", text(s.AlreadyCached) + " already cached"}
	if s.Failed > 0 {
		parts = append(parts, text(s.Failed)+" failed")
	}
	if s.Gone > 0 {
		parts = append(parts, text(s.Gone)+" gone")
	}
	return strings.Join(parts, ", ")
}
