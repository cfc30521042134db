package fsm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/internal/errs"
)

// Bounds of the replicated state.
const (
	MaxMounts       = 1000
	MaxWorkers      = 10_000
	MaxOpenJobs     = 1000 // jobs that are not final
	FinishedHistory = 100  // final jobs that are kept
)

// Result is the answer to a command. Exactly one of Err and the fields that
// belong to the command is set; a command without an answer of its own leaves
// all of them empty.
type Result struct {
	Err   error  `json:"-"`
	Mount *Mount `json:"mount,omitempty"` // of AddUFS
	JobID string `json:"job_id,omitempty"`
}

// writer is where apply puts what it changes, beside the state itself.
type writer interface {
	put(table, key string, v any)
	remove(table, key string)
}

// apply applies one command to s, which is changed only if the answer has no
// error.
func apply(s *State, w writer, index uint64, c *Command) Result {
	switch {
	case c.Bootstrap != nil:
		if s.ClusterID == "" {
			s.ClusterID = c.Bootstrap.ClusterID
		}
		return Result{}
	case c.RegisterMaster != nil:
		m := *c.RegisterMaster
		s.Masters[m.ID] = m
		w.put(tableMasters, m.ID, m)
		return Result{}
	case c.RemoveMaster != nil:
		delete(s.Masters, c.RemoveMaster.ID)
		w.remove(tableMasters, c.RemoveMaster.ID)
		return Result{}
	case c.AddUFS != nil:
		return addUFS(s, w, index, c.AddUFS)
	case c.RemoveUFS != nil:
		return removeUFS(s, w, index, c.RemoveUFS)
	case c.RegisterWorker != nil:
		return registerWorker(s, w, c.RegisterWorker)
	case c.DrainWorker != nil:
		return drainWorker(s, w, c.DrainWorker)
	case c.ForgetWorker != nil:
		return forgetWorker(s, w, c.ForgetWorker)
	case c.SubmitJob != nil:
		return submitJob(s, w, index, c.SubmitJob)
	case c.ProgressJob != nil:
		return progressJob(s, w, index, c.ProgressJob)
	default:
		return Result{Err: errs.E(errs.Internal, "apply", "", errors.New("empty command"))}
	}
}

func addUFS(s *State, w writer, index uint64, c *AddUFS) Result {
	i, taken := s.mountIndex(c.Path)
	if taken {
		m := s.Mounts[i]
		if m.URI == c.URI && maps.Equal(m.Options, c.Options) {
			return Result{Mount: &m}
		}
		return Result{Err: takenError(m, c.URI)}
	}
	if len(s.Mounts) >= MaxMounts {
		return Result{Err: errs.E(errs.NoSpace, "add under-store", string(c.Path), fmt.Errorf("there are %d under-store mounts, which is the bound", MaxMounts))}
	}
	s.LastMountID++
	m := Mount{
		ID: s.LastMountID, Path: c.Path, URI: c.URI, Options: c.Options,
		BlockSize: c.BlockSize, Freshness: c.Freshness, TTLMillis: c.TTLMillis, Changed: index,
	}
	s.Mounts = slices.Insert(s.Mounts, i, m)
	s.MountsVersion++
	s.InvalidatedIndex = index
	w.put(tableMounts, string(m.Path), m)
	return Result{Mount: &m}
}

// takenError says that m's path is not free for uri.
func takenError(m Mount, uri string) error {
	if m.URI == uri {
		return errs.E(errs.Exists, "add under-store", string(m.Path), fmt.Errorf("%s is bound here already, with other options", m.URI)).
			WithHint("remove it first to change its options")
	}
	return errs.E(errs.Exists, "add under-store", string(m.Path), fmt.Errorf("%s is bound here already, not %s", m.URI, uri))
}

func removeUFS(s *State, w writer, index uint64, c *RemoveUFS) Result {
	i, ok := s.mountIndex(c.Path)
	if !ok {
		return Result{Err: errs.E(errs.NotFound, "remove under-store", string(c.Path), errors.New("no under-store is bound here"))}
	}
	for _, m := range s.Mounts {
		if Below(string(m.Path), string(c.Path)) && m.Path != c.Path {
			return Result{Err: errs.E(errs.NotEmpty, "remove under-store", string(c.Path), fmt.Errorf("%s is bound below it, at %s", m.URI, m.Path)).
				WithHint("remove that first")}
		}
	}
	s.Mounts = slices.Delete(s.Mounts, i, i+1)
	s.MountsVersion++
	s.InvalidatedIndex = index
	w.remove(tableMounts, string(c.Path))
	return Result{}
}

// Below reports whether path is dir or lies below it. Both are clean.
func Below(path, dir string) bool {
	return dir == "/" || path == dir || (strings.HasPrefix(path, dir) && path[len(dir)] == '/')
}

// The states that a job's record may have. They are those of package loadjob,
// as text.
const (
	JobPlanning  = "planning"
	JobRunning   = "running"
	JobSucceeded = "succeeded"
	JobFailed    = "failed"
	JobCanceled  = "canceled"
)

func submitJob(s *State, w writer, index uint64, c *SubmitJob) Result {
	if _, ok := s.Jobs[c.ID]; ok {
		return Result{JobID: c.ID} // the ID is random: it is the same job
	}
	open := 0
	for _, j := range s.Jobs {
		if !j.Final() {
			open++
		}
	}
	if open >= MaxOpenJobs {
		return Result{Err: errs.E(errs.Busy, "submit load job", "", fmt.Errorf("%d jobs are under way, which is the bound", open))}
	}
	j := Job{ID: c.ID, Paths: c.Paths, State: JobPlanning, StartedMillis: c.StartedMillis}
	s.Jobs[j.ID] = j
	s.JobsIndex = index
	w.put(tableJobs, j.ID, j)
	return Result{JobID: j.ID}
}

func progressJob(s *State, w writer, index uint64, c *ProgressJob) Result {
	j, ok := s.Jobs[c.ID]
	if !ok {
		return Result{Err: errs.E(errs.NotFound, "move load job on", c.ID, nil)}
	}
	if j.Final() {
		return Result{Err: errs.E(errs.Stale, "move load job on", c.ID, fmt.Errorf("the job is %s already", j.State))}
	}
	j.State, j.Cursor, j.Files, j.Bytes, j.Error = c.State, c.Cursor, c.Files, c.Bytes, c.Error
	j.FinishedMillis = c.FinishedMillis
	s.Jobs[j.ID] = j
	s.JobsIndex = index
	w.put(tableJobs, j.ID, j)
	if j.Final() {
		forgetJobs(s, w)
	}
	return Result{}
}

// forgetJobs removes the oldest final jobs above FinishedHistory.
func forgetJobs(s *State, w writer) {
	var final []string
	for id, j := range s.Jobs {
		if j.Final() {
			final = append(final, id)
		}
	}
	slices.Sort(final)
	for _, id := range final[:max(len(final)-FinishedHistory, 0)] {
		delete(s.Jobs, id)
		w.remove(tableJobs, id)
	}
}
